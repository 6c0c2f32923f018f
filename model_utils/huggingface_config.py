"""config.json and preprocessor_config.json of transformers, and what they are in this project."""

import os

from projects.SegFormer.model_utils.weight_files import read_json
from projects.SegFormer.modeling.errors import InputError

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
    """The content of config.json. Raises InputError when there is none or it is no SegFormer's."""
    file = os.path.join(folder, "config.json")
    if not os.path.isfile(file):
        raise InputError(f"no config.json in {folder}: expected a save_pretrained folder")
    config = read_json(file)
    kind = config.get("model_type", "segformer")
    if kind != "segformer":
        raise InputError(f"{file} is of a {kind!r} model: expected 'segformer'")
    if config.get("hidden_act", "gelu") != "gelu":
        raise InputError(
            f"{file} has the activation {config['hidden_act']!r}: this project has gelu alone"
        )
    return config


def to_settings(config: dict) -> dict:
    """The settings of a model here, from the content of config.json.

    `num_encoder_blocks` cuts the lists, as in transformers. `reshape_last_stage` is the shape in
    which transformers returns the last map: it is a map here always, with the same values.
    """
    stages = config.get("num_encoder_blocks", 4)
    settings = {}
    for theirs, ours, default in SETTINGS:
        value = config.get(theirs, default)
        settings[ours] = list(value[:stages]) if theirs in PER_STAGE else value
    settings["num_classes"] = len(class_names(config))
    return settings


def class_names(config: dict) -> list[str]:
    """By index. transformers leaves them out of config.json where there are two without names."""
    names = config.get("id2label") or {
        index: f"LABEL_{index}" for index in range(config.get("num_labels", 2))
    }
    return [name for _, name in sorted((int(index), name) for index, name in names.items())]


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
