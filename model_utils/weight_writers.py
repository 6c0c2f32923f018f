"""Writers: this project's state to disk, as other tools read it."""

import os

import numpy as np
import oneflow as flow

from projects.SegFormer.model_utils.huggingface_config import ARCHITECTURES, from_settings
from projects.SegFormer.model_utils.key_rules import (
    HUGGINGFACE,
    OFFICIAL_IMAGENET,
    OFFICIAL_SEGMENTATION,
    KeyFormat,
    from_here,
)
from projects.SegFormer.model_utils.torch_files import save_torch
from projects.SegFormer.model_utils.weight_files import SETTINGS_FILE
from projects.SegFormer.model_utils.weight_paths import LIBAI_FOLDER
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import write_json

# The paper's code has this layer in its head and never calls it: 128 channels in all its configs.
SPARE_CLASSIFIER, SPARE_CHANNELS = "head.conv_seg", 128


def architecture_of(state: dict[str, np.ndarray]) -> str:
    """transformers' name of the model that `state` is of. Raises InputError without a head."""
    for key, architecture in zip(("head.linear_pred.weight", "head.weight"), ARCHITECTURES):
        if key in state:
            return architecture
    raise InputError(
        "these weights are an encoder without a head: what is written has one. Load them with "
        "cfg.pretrained_model_path, or train first"
    )


def write_huggingface(
    folder: str,
    state: dict[str, np.ndarray],
    settings: dict,
    classes: list[str],
    image_processor: dict,
    key_format: KeyFormat = HUGGINGFACE,
) -> None:
    """A folder that transformers loads with `from_pretrained`.

    Args:
        state: named as in this project.
        settings: of the model here.
        classes: names of the classes, by index.
        image_processor: the content of preprocessor_config.json.
        key_format: HUGGINGFACE, which all versions read, or HUGGINGFACE_STAGES.
    """
    from safetensors.numpy import save_file

    os.makedirs(folder)
    state = {key: value for key, value in state.items() if not key.startswith(SPARE_CLASSIFIER)}
    tensors = from_here(_with_batch_count(state), key_format)
    save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    config = from_settings(settings, architecture_of(state), classes)
    write_json(os.path.join(folder, "config.json"), config)
    write_json(os.path.join(folder, "preprocessor_config.json"), image_processor)


def write_official(file: str, state: dict[str, np.ndarray], classes: list[str]) -> None:
    """A file that the paper's code loads, of segmentation or of ImageNet-1K classification."""
    if architecture_of(state) == ARCHITECTURES[1]:
        content = from_here(state, OFFICIAL_IMAGENET)
    else:
        bias = np.zeros_like(state["head.linear_pred.bias"])
        weight = np.zeros((*bias.shape, SPARE_CHANNELS, 1, 1), bias.dtype)
        spare = {f"{SPARE_CLASSIFIER}.weight": weight, f"{SPARE_CLASSIFIER}.bias": bias}
        state = {**spare, **_with_batch_count(state)}
        tensors = from_here(state, OFFICIAL_SEGMENTATION)
        content = {"meta": {"CLASSES": list(classes)}, "state_dict": tensors}
    os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
    save_torch(file, content)


def write_libai(
    folder: str,
    state: dict[str, np.ndarray],
    settings: dict,
    classes: list[str],
    image_processor: dict,
) -> None:
    """A checkpoint of LiBai's form, and the settings of its model beside it."""
    os.makedirs(folder)
    # ascontiguousarray makes a vector of a scalar, such as batch norm's count of batches.
    tensors = {
        key: flow.tensor(np.ascontiguousarray(value).reshape(value.shape))
        for key, value in state.items()
    }
    flow.save(tensors, os.path.join(folder, LIBAI_FOLDER))
    description = dict(settings=settings, classes=classes, image_processor=image_processor)
    write_json(os.path.join(folder, SETTINGS_FILE), description)


def _with_batch_count(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With PyTorch's count of batches beside the statistics of batch norm, which nothing reads."""
    count = {
        key.replace("running_mean", "num_batches_tracked"): np.array(0)
        for key in state
        if key.endswith("running_mean")
    }
    return {**count, **state}
