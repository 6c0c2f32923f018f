"""What lies beside weights and says how they are used: names of classes, and how images are made
ready.

Of transformers in config.json and preprocessor_config.json, of this project in segformer.json; of
an ONNX file in its metadata, see onnx_metadata.py.
"""

import os
from collections.abc import Mapping
from numbers import Real
from typing import NamedTuple

import numpy as np
from PIL import Image

from projects.SegFormer.model_utils.huggingface_config import class_names, read_config
from projects.SegFormer.model_utils.segf_loader import read_description
from projects.SegFormer.model_utils.weight_files import SETTINGS_FILE
from projects.SegFormer.model_utils.weight_paths import snapshot
from projects.SegFormer.modeling.bounds import image_pixels
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_json, reason

PROCESSOR = "preprocessor_config.json"


class Beside(NamedTuple):
    """What is known of weights; None where it is not.

    Attributes:
        source: the file that says so.
        classes: names, by index.
        mean, std: a value a channel, of images from 0 to 255.
        size: (height, width) that images are scaled to, whatever their ratio, or one number for the
            shorter side.
        resample: how they are scaled then, as Pillow numbers its filters.
        reduce_labels: whether label files count the classes from 1, with 0 for none.
        palette: RGB of each class.
        ignore_index: the label that counted nowhere.
        trained_on: (height, width) of the crops of the training.
        inference: arguments of `evaluation.inference.Inference`.
    """

    source: str
    classes: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    size: tuple[int, int] | int | None = None
    resample: int = Image.BILINEAR
    reduce_labels: bool = False
    palette: list[list[int]] | None = None
    ignore_index: int | None = None
    trained_on: tuple[int, int] | None = None
    inference: dict | None = None


class Scaled:
    """A transform: `size` and `resample` of a Beside, on uint8 images as transformers has it.

    Pillow's filters see all pixels of an image that is made smaller.
    """

    def __init__(self, size: tuple[int, int] | int, resample: int):
        self.size, self.resample = size, resample

    def __call__(self, image: np.ndarray, label, rng):
        size = self.size
        if isinstance(size, int):
            scale = size / min(image.shape[:2])
            size = tuple(max(1, int(side * scale)) for side in image.shape[:2])
        if size[0] * size[1] > image_pixels():
            raise InputError(
                f"scaled to {size[0]}x{size[1]} it has more than {image_pixels():,} pixels"
            )
        bands = [
            Image.fromarray(np.ascontiguousarray(band)).resize(size[::-1], self.resample)
            for band in image.transpose(2, 0, 1)
        ]
        return np.stack([np.asarray(band) for band in bands], axis=-1), label


def beside_weights(path: str) -> Beside | None:
    """What lies beside the weights at `path`, a folder; None where nothing does.

    Raises InputError for files that are damaged, or say what cannot be.
    """
    path = snapshot(path)
    config, processor, description = (
        os.path.join(path, name) for name in ("config.json", PROCESSOR, SETTINGS_FILE)
    )
    if os.path.isfile(config):
        found = Beside(config, class_names(read_config(path), path))
        if not os.path.isfile(processor):
            return found
        return _prepared(found, read_json(processor), processor)
    if os.path.isfile(description):
        content = read_description(description)
        found = Beside(description, content["classes"] or None)
        return _prepared(found, content["image_processor"], description)
    return None


def _prepared(found: Beside, processor: Mapping, file: str) -> Beside:
    """`found`, with what an image processor of transformers does before the network."""
    processor = {name: value for name, value in processor.items() if value is not None}
    if not processor:
        return found
    try:
        factor = _values(processor, "rescale_factor", 1 / 255)[0]
        factor = factor if processor.get("do_rescale", True) else 1.0
        mean, std = [0.0], [1.0]
        if processor.get("do_normalize", True):
            mean, std = (_values(processor, f"image_{name}") for name in ("mean", "std"))
        if not factor > 0 or std and not min(std) > 0:
            raise InputError("rescale_factor and image_std must be above 0")
        resample = processor.get("resample", Image.BILINEAR)
        if resample not in list(Image.Resampling) or isinstance(resample, bool):
            raise InputError(f"resample is {resample!r}: expected 0 to {max(Image.Resampling)}")
        return found._replace(
            source=file,
            mean=mean and [value / factor for value in mean],
            std=std and [value / factor for value in std],
            size=_size(processor.get("size", 512)) if processor.get("do_resize", True) else None,
            resample=int(resample),
            reduce_labels=bool(
                processor.get("do_reduce_labels", processor.get("reduce_labels", False))
            ),
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{file}: {reason(error)}") from error


def _values(content: Mapping, name: str, default=None) -> list[float] | None:
    """Numbers; one for all channels may stand alone."""
    values = content.get(name, default)
    if values is None:
        return None
    values = [values] if isinstance(values, Real) else values
    is_list = isinstance(values, list) and values
    if not is_list or not all(isinstance(it, Real) and np.isfinite(it) for it in values):
        raise InputError(f"{name} is no list of numbers")
    return [float(value) for value in values]


def _size(size) -> tuple[int, int] | int:
    """transformers' `size` has been a number, or has names for its sides."""
    square = {"height": size, "width": size}
    sides = size if isinstance(size, Mapping) else square
    names = ("height", "width") if "height" in sides else ("shortest_edge",)
    found = [sides.get(name) for name in names]
    if not all(type(side) is int and 1 <= side <= 2**15 for side in found):
        raise InputError(f"size is {size!r}: expected height and width in pixels")
    return tuple(found) if len(found) == 2 else found[0]
