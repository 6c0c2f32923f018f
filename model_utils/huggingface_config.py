"""config.json and preprocessor_config.json of transformers, and what they are in this project."""

import os

from projects.SegFormer.model_utils.weight_paths import how_to_get
from projects.SegFormer.modeling.bounds import MODEL_SETTINGS
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_json
from projects.SegFormer.modeling.sizes import SIZES

# Name in transformers' config.json, name here, value when it is left out (SegformerConfig's).
SETTINGS = (
    ("num_channels", "num_channels", 3),
    ("depths", "depths", [2, 2, 2, 2]),
    ("hidden_sizes", "hidden_sizes", [32, 64, 160, 256]),
    ("num_attention_heads", "num_attention_heads", [1, 2, 5, 8]),
    ("sr_ratios", "sr_ratios", [8, 4, 2, 1]),
    ("mlp_ratios", "mlp_ratios", [4, 4, 4, 4]),
    ("patch_sizes", "patch_sizes", [7, 3, 3, 3]),
    ("strides", "strides", [4, 2, 2, 2]),
    ("drop_path_rate", "drop_path_rate", 0.1),
    ("decoder_hidden_size", "decoder_hidden_size", 256),
    ("classifier_dropout_prob", "decoder_dropout", 0.1),
    ("semantic_loss_ignore_index", "ignore_index", 255),
)
PER_STAGE = tuple(
    theirs for theirs, _, value in SETTINGS if isinstance(value, list)
)  # lists with a value a stage
ARCHITECTURES = ("SegformerForSemanticSegmentation", "SegformerForImageClassification")


def read_config(folder: str) -> dict:
    """The content of config.json; segmentation_models.pytorch's as transformers would have it.

    Raises InputError when there is none or it is no SegFormer's.
    """
    file = os.path.join(folder, "config.json")
    if not os.path.isfile(file):
        raise InputError(
            f"no config.json in {folder}: expected a save_pretrained folder"
            + ("" if os.path.isdir(folder) else how_to_get(folder))
        )
    config = read_json(file)
    if "encoder_name" in config:
        return _from_smp(config, file)
    kind = config.get("model_type", "segformer")
    if kind != "segformer":
        raise InputError(f"{file} is of a {kind!r} model: expected 'segformer'")
    if config.get("hidden_act") not in ("gelu", None):
        raise InputError(
            f"{file} has the activation {config['hidden_act']!r}: this project has gelu alone"
        )
    return config


def _from_smp(config: dict, file: str) -> dict:
    """What the arguments of segmentation_models.pytorch's Segformer are in transformers."""
    name, kind = config["encoder_name"], config.get("_model_class", "Segformer")
    size = name[-2:] if isinstance(name, str) else None
    if kind != "Segformer" or size not in SIZES or name != f"mit_{size}":
        raise InputError(
            f"{file} is of a {kind} with the encoder {name!r}: expected a Segformer with one of "
            "mit_b0 to mit_b5"
        )
    return dict(
        architectures=[ARCHITECTURES[0]],
        hidden_sizes=list(SIZES[size]["hidden_sizes"]),
        depths=list(SIZES[size]["depths"]),
        num_channels=config.get("in_channels"),
        decoder_hidden_size=config.get("decoder_segmentation_channels"),
        num_labels=1 if config.get("classes") is None else config["classes"],
    )


def to_settings(config: dict, source: str) -> dict:
    """The settings of a model here, from the content of config.json in `source`.

    A setting that is null has its default.
    `num_encoder_blocks` cuts the lists, as in transformers. `reshape_last_stage` is the shape in
    which transformers returns the last map: it is a map here always, with the same values.
    Raises InputError for values that are not of their kind.
    """
    config = {name: value for name, value in config.items() if value is not None}
    stages = config.get("num_encoder_blocks", 4)
    settings = {}
    for theirs, ours, default in SETTINGS:
        value = config.get(theirs, default)
        problem = _problem(value, default, stages, *MODEL_SETTINGS[ours])
        if problem:
            raise InputError(f"config.json of {source} has {theirs} {value!r}: expected {problem}")
        settings[ours] = list(value[:stages]) if theirs in PER_STAGE else value
    settings["num_classes"] = len(class_names(config, source))
    return settings


def _problem(value, default, stages, lowest, highest) -> str:
    """What was expected instead of `value`, judged by the kind of `default`, or nothing."""
    if isinstance(default, float):
        is_rate = isinstance(value, (int, float)) and 0 <= value < 1
        return "" if is_rate else "a number from 0 to below 1"
    if isinstance(default, int):
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        in_range = is_whole and lowest <= value <= highest
        return "" if in_range else f"a whole number from {lowest} to {highest}"
    if not _is_count(stages):
        return "a whole number above 0 for num_encoder_blocks"
    is_list = isinstance(value, list) and len(value) >= stages
    return (
        "" if is_list and all(_is_size(n) for n in value[:stages]) else f"{stages} numbers above 0"
    )


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_size(value) -> bool:
    """A count, or a ratio as in mlp_ratios."""
    return _is_count(value) or isinstance(value, float) and value > 0 and not value.is_integer()


def class_names(config: dict, source: str) -> list[str]:
    """By index. transformers leaves them out of config.json where there are two without names.

    Raises InputError when they are not names by index.
    """
    names = config.get("id2label")
    most = MODEL_SETTINGS["num_classes"][1]
    if not names:
        count = config.get("num_labels")
        count = 2 if count is None else count
        if not _is_count(count) or count > most:
            raise InputError(
                f"config.json of {source} has num_labels {count!r}: expected a number up to {most}"
            )
        return [f"LABEL_{index}" for index in range(count)]
    try:
        by_index = sorted((int(index), str(name)) for index, name in names.items())
    except (AttributeError, ValueError) as error:  # no dict, or keys that are no numbers
        raise InputError(
            f"config.json of {source} has an id2label that is not names by number"
        ) from error
    return [name for _, name in by_index]


def from_settings(settings: dict, architecture: str, classes: list[str]) -> dict:
    """The content of config.json for a model with `settings`. The reverse of `to_settings`."""
    config = {
        "architectures": [architecture],
        "model_type": "segformer",
        "torch_dtype": "float32",
        "num_encoder_blocks": len(settings["depths"]),
        "hidden_act": "gelu",
        "reshape_last_stage": True,
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "label2id": {name: index for index, name in enumerate(classes)},
    }
    for theirs, ours, default in SETTINGS:
        value = settings.get(ours, default)
        config[theirs] = list(value) if theirs in PER_STAGE else value
    return config


def image_processor(architecture: str, mean, std) -> dict:
    """The content of preprocessor_config.json; mean and std are of 8-bit RGB, 0 to 255.

    Segmentation keeps the size of the image, as evaluation and prediction here do; classification
    has the 224x224 of ImageNet.
    """
    is_segmentation = architecture == ARCHITECTURES[0]
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": not is_segmentation,
        "size": {"height": 224, "width": 224},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(value / 255, 6) for value in mean],
        "image_std": [round(value / 255, 6) for value in std],
        "do_reduce_labels": False,
    }
