"""What an ONNX file says of itself, so that it can be used without a config and without this
project: its metadata, a JSON value a name.

    channel_order   "RGB"; not there for images of another number of channels than 3
    layout          "NCHW", of the input `images`
    value_range     [0, 255], what mean and std are of
    mean, std       a value a channel: the input is (image - mean) / std
    classes         names, by index
    palette         [red, green, blue] of each class, from 0 to 255
    ignore_index    the label that counted nowhere in training
    trained_on      [height, width] of the crops of its training
    inference       how an image goes through: see `evaluation.inference.Inference`. `resize` and
                    `divisor` are the recommended size, `crop_size` and `stride` the windows
    size            [height, width] that images are scaled to, whatever their ratio, or a number for
                    the shorter side; where it is not there `inference` alone says the size
    resample        how they are scaled then, as Pillow numbers its filters
"""

import json
from collections.abc import Callable, Mapping
from numbers import Real

import numpy as np
import onnx
from PIL import Image

from projects.SegFormer.model_utils.beside_weights import Beside
from projects.SegFormer.modeling.bounds import JSON_BYTES
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import check_nesting, reason

LONGEST_SIDE = 2**15
MOST_SCALES, LARGEST_SCALE = 32, 8
CONSTANTS = {"layout": "NCHW", "value_range": [0, 255]}
OF_COLOURS = {"channel_order": "RGB"}


def add_metadata(proto: onnx.ModelProto, values: Beside, channels: int) -> None:
    """Write down what is known of a model into its graph, in place."""
    found = CONSTANTS | (OF_COLOURS if channels == 3 else {})
    found |= {name: getattr(values, name) for name in ENTRIES}
    if values.size is None:
        found["resample"] = None
    onnx.helper.set_model_props(
        proto,
        {
            name: json.dumps(value, ensure_ascii=False)
            for name, value in found.items()
            if value is not None
        },
    )


def beside_onnx(metadata: Mapping[str, str], file: str) -> Beside:
    """The metadata of an ONNX file; files of earlier versions have `classes`, `mean` and `std`.

    Raises InputError for what is no list of names, of numbers and so on, or of images that are laid
    out otherwise.
    """
    try:
        if sum(map(len, metadata.values())) > JSON_BYTES:
            raise InputError(f"it has more than {JSON_BYTES:,} letters")
        fixed = CONSTANTS | OF_COLOURS
        known = [name for name in (*fixed, *ENTRIES) if name in metadata]
        content = {name: json.loads(metadata[name]) for name in known}
        check_nesting(content, JSON_BYTES)
        for name in fixed.keys() & content.keys():
            if (value := content.pop(name)) != fixed[name]:
                raise InputError(f"{name} is {value!r:.60}: expected {fixed[name]!r}")
        for name, value in content.items():
            expected, is_right = ENTRIES[name]
            if not is_right(value):
                raise InputError(f"{name} is no {expected}")
            if _is_size(value):
                content[name] = tuple(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"the metadata of {file}: {reason(error)}; export it again") from error
    return Beside(file, **content)


def _is_number(value, least: float = -np.inf, most: float = np.inf) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and np.isfinite(value) and least <= value <= most


def _is_whole(value, least: int, most: int) -> bool:
    return isinstance(value, int) and _is_number(value, least, most)


def _is_list(value, kind: Callable[..., bool], *arguments) -> bool:
    return isinstance(value, list) and all(kind(item, *arguments) for item in value)


def _are_names(value) -> bool:
    return _is_list(value, lambda name: isinstance(name, str))


def _is_size(value) -> bool:
    return _is_list(value, _is_whole, 1, LONGEST_SIDE) and len(value) == 2


def _are_numbers(value) -> bool:
    return _is_list(value, _is_number) and len(value) > 0


def _are_above_0(value) -> bool:
    return _are_numbers(value) and min(value) > 0


def _is_colour(value) -> bool:
    return _is_list(value, _is_whole, 0, 255) and len(value) == 3


INFERENCE: dict[str, Callable[[object], bool]] = {
    "crop_size": lambda value: value is None or _is_size(value),
    "stride": lambda value: value is None or _is_size(value),
    "resize": lambda value: value is None or _is_size(value),
    "divisor": lambda value: _is_whole(value, 1, LONGEST_SIDE),
    "scales": lambda value: (
        _is_list(value, _is_number, 0.01, LARGEST_SCALE) and 0 < len(value) <= MOST_SCALES
    ),
    "flip": lambda value: isinstance(value, bool),
}


def _is_inference(value) -> bool:
    is_known = isinstance(value, dict) and value.keys() <= INFERENCE.keys()
    return is_known and all(INFERENCE[name](item) for name, item in value.items())


# Of each what is expected, and whether a value is that. The names are those of Beside.
ENTRIES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "mean": ("list of numbers", _are_numbers),
    "std": ("list of numbers above 0", _are_above_0),
    "classes": ("list of names", _are_names),
    "palette": ("list of [red, green, blue] from 0 to 255", lambda it: _is_list(it, _is_colour)),
    "ignore_index": ("whole number", lambda it: _is_whole(it, -(2**31), 2**31 - 1)),
    "trained_on": ("[height, width]", _is_size),
    "inference": (f"settings of {', '.join(INFERENCE)}", _is_inference),
    "size": (
        "[height, width] or number of pixels",
        lambda it: _is_size(it) or _is_whole(it, 1, LONGEST_SIDE),
    ),
    "resample": ("filter of Pillow's", lambda it: it in list(Image.Resampling)),
}
