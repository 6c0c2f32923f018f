"""Loaders: a model class, a config and a path in; a model with those weights out."""

import os

import numpy as np
import oneflow as flow

from projects.SegFormer.model_utils.key_rules import HUGGINGFACE, LIBAI, KeyFormat, to_here
from projects.SegFormer.model_utils.weight_files import (
    find_weight_files,
    load_state,
    read_json,
    read_weights,
)
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation

# Fields of transformers' config.json, and what they are called here.
HUGGINGFACE_CONFIG = {
    "num_channels": "num_channels",
    "depths": "depths",
    "hidden_sizes": "hidden_sizes",
    "num_attention_heads": "num_attention_heads",
    "sr_ratios": "sr_ratios",
    "mlp_ratios": "mlp_ratios",
    "patch_sizes": "patch_sizes",
    "strides": "strides",
    "drop_path_rate": "drop_path_rate",
}
# transformers writes layer_norm_eps 1e-6 to its configs and never reads it: nn.LayerNorm's default.
HUGGINGFACE_EPS = 1e-5


class SegFLoader:
    """Builds `model(libai_cfg)` and fills it with the weights at `pretrained_model_path`.

    Args:
        model: a model class of modeling/.
        libai_cfg: its config, a dict.
        pretrained_model_path: a folder or a file.
        strict: stop on missing, unexpected or wrongly shaped keys.
        settings: config values that override the others.
    """

    key_format: KeyFormat
    file_names: tuple[str, ...]

    def __init__(self, model, libai_cfg, pretrained_model_path: str, *, strict=True, **settings):
        self.model, self.path, self.strict = model, pretrained_model_path, strict
        self.libai_cfg = {**libai_cfg, **self.stored_config(), **settings}

    def stored_config(self) -> dict:
        """Config values that are stored with the weights."""
        return {}

    def read(self) -> dict[str, np.ndarray]:
        """The weights, named and laid out as in this project."""
        state = {}
        for file in find_weight_files(self.path, self.file_names):
            state.update(read_weights(file))
        return to_here(state, self.key_format)

    def load(self):
        """The model with its weights, in evaluation mode.

        Raises InputError for files that are missing, broken or do not fit the model.
        """
        model = self.model(**self.libai_cfg)
        load_state(model, self.read(), self.path, strict=self.strict)
        return model.eval()


class SegFLoaderHuggerFace(SegFLoader):
    """Loads a folder written by transformers' `save_pretrained`."""

    key_format = HUGGINGFACE
    file_names = ("model.safetensors", "pytorch_model.bin")

    def stored_config(self) -> dict:
        file = os.path.join(self.path, "config.json")
        if not os.path.isfile(file):
            raise InputError(f"no config.json in {self.path}: expected a save_pretrained folder")
        stored = read_json(file)
        config = {
            ours: stored[theirs] for theirs, ours in HUGGINGFACE_CONFIG.items() if theirs in stored
        }
        config.update(layer_norm_eps=HUGGINGFACE_EPS, embed_norm_eps=HUGGINGFACE_EPS)
        if "id2label" in stored:
            config["num_classes"] = len(stored["id2label"])
        if "decoder_hidden_size" in stored and "decoder_hidden_size" in self.model.argument_names():
            config["decoder_hidden_size"] = stored["decoder_hidden_size"]
        return config


class SegFLoaderLiBai(SegFLoader):
    """Loads a checkpoint that LiBai's trainer wrote: a folder with a `model` folder in it."""

    key_format = LIBAI

    def read(self) -> dict[str, np.ndarray]:
        folder = os.path.join(self.path, "model")
        if not os.path.isdir(folder):
            raise InputError(f"no checkpoint in {self.path}: expected a folder `model` in it")
        try:
            state = flow.load(folder)
        except Exception as error:
            raise InputError(f"cannot read the checkpoint {self.path}: {error}") from error
        return to_here({key: value.numpy() for key, value in state.items()}, LIBAI)


def load_weights(libai_cfg, path: str):
    """A segmentation model with the weights at `path`, in whichever format they are.

    A folder with config.json is transformers', any other folder a checkpoint of LiBai's trainer.
    Raises InputError when the weights are missing, broken or do not fit.
    """
    is_huggingface = os.path.isfile(os.path.join(path, "config.json"))
    loader = SegFLoaderHuggerFace if is_huggingface else SegFLoaderLiBai
    settings = {key: value for key, value in libai_cfg.items() if key != "pretrained_model_path"}
    return loader(SegformerForSemanticSegmentation, settings, path).load()
