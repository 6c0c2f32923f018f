"""Weights from one format to another.

    python tools/convert_weights.py --from WEIGHTS --to huggingface --output FOLDER
    python tools/convert_weights.py --from WEIGHTS --to official --output FILE.pth
    python tools/convert_weights.py --from WEIGHTS --to libai --output FOLDER

WEIGHTS is an output folder of a training or a checkpoint in it, a folder of Hugging Face's
save_pretrained, or a file of the paper's authors or of mmsegmentation; its format is told by its
keys. All float32 numbers arrive bit for bit.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
from libai.config import LazyConfig
from omegaconf import OmegaConf
from safetensors import SafetensorError

from projects.SegFormer.dataset.transforms import IMAGENET_MEAN, IMAGENET_STD
from projects.SegFormer.engine import command_line
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.libai_mends import mend_for_one_process
from projects.SegFormer.evaluation.classifier import class_names as classes_of_data
from projects.SegFormer.evaluation.prediction import (
    classes_and_palette,
    find_weights,
    mean_and_std,
)
from projects.SegFormer.model_utils.huggingface_config import (
    ARCHITECTURES,
    class_names,
    image_processor,
    read_config,
    to_settings,
)
from projects.SegFormer.model_utils.key_rules import (
    EPS_NAMES,
    HUGGINGFACE,
    HUGGINGFACE_STAGES,
    OFFICIAL_SEGMENTATION,
    KeyFormat,
)
from projects.SegFormer.model_utils.lazy_state import LazyState
from projects.SegFormer.model_utils.model_weights import load_state
from projects.SegFormer.model_utils.segf_loader import (
    check_size,
    eps_of,
    model_arguments,
    open_in_any_format,
    read_description,
)
from projects.SegFormer.model_utils.sizes import sizes_of
from projects.SegFormer.model_utils.weight_files import SETTINGS_FILE, read_meta
from projects.SegFormer.model_utils.weight_paths import snapshot
from projects.SegFormer.model_utils.weight_writers import (
    architecture_of,
    write_huggingface,
    write_libai,
    write_official,
)
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_json
from projects.SegFormer.modeling.segformer_model import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)
from projects.SegFormer.modeling.settings import STAGE_SETTINGS, check_settings

MODELS = dict(
    zip(ARCHITECTURES, (SegformerForSemanticSegmentation, SegformerForImageClassification))
)
KEY_LAYOUTS = {"block": HUGGINGFACE, "stages": HUGGINGFACE_STAGES}
# What does not show in the weights, and is the same for all MiT.
FAMILY = dict(num_attention_heads=[1, 2, 5, 8], strides=[4, 2, 2, 2])


@dataclass
class Description:
    """What belongs to weights: settings of the model, names of its classes, its image processor."""

    settings: dict
    classes: list[str] = field(default_factory=list)
    image_processor: dict = field(default_factory=dict)


DESCRIPTION = tuple(Description.__dataclass_fields__)


def main(arguments: list[str]) -> None:
    args = _parser().parse_args(arguments)
    if os.path.exists(args.output):
        raise InputError(f"{args.output} is already there: remove it, or choose another --output")
    mend_for_one_process()
    args.source, _ = find_weights(snapshot(args.source))
    opened, key_format = open_in_any_format(args.source)
    state = dict(opened.read())
    try:
        model = describe(args.source, args.config, state, key_format)
        check(state, model.settings, args.source)
        if args.target == "official":
            check_family(model.settings)
    except InputError as error:
        raise InputError(f"cannot convert {args.source}: {error}") from error
    for key, value in state.items():
        if not np.isfinite(value).all():
            raise InputError(f"cannot convert {args.source}: {key} is not finite everywhere")
    with _whole_or_nothing(args.output) as output:
        if args.target == "huggingface":
            layout = KEY_LAYOUTS[args.key_layout]
            write_huggingface(
                output, state, model.settings, model.classes, model.image_processor, layout
            )
        elif args.target == "libai":
            write_libai(output, state, model.settings, model.classes, model.image_processor)
        else:
            write_official(output, state, model.classes)
    print(f"{len(state)} tensors, {key_format.name} to {args.target}: see {args.output}")
    _tell_eps(model.settings, args.target)


@contextmanager
def _whole_or_nothing(output: str):
    """A path to write to, which becomes `output` when all is written."""
    partial = output.rstrip(os.sep) + ".partial"
    try:
        yield partial
        os.rename(partial, output)
    except (OSError, RuntimeError, SafetensorError) as error:  # the latter two of the libraries
        raise InputError(f"cannot write {output}: {str(error).splitlines()[0]}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            os.remove(partial)


def describe(source: str, config: str | None, state: dict, key_format: KeyFormat) -> Description:
    """From `config`, else from what is stored with the weights, else from their shapes.

    Args:
        source: where the weights were read.
        config: a config file, or None.
        state: the weights, named as in this project.
        key_format: the format they were in.
    """
    architecture = architecture_of(state)
    folder = source if os.path.isdir(source) else os.path.dirname(source)
    if config:
        model = _from_config(config)
    elif key_format.eps == HUGGINGFACE.eps and os.path.isfile(os.path.join(folder, "config.json")):
        model = _from_huggingface(folder)
    elif os.path.isfile(os.path.join(source, SETTINGS_FILE)):
        stored = read_description(os.path.join(source, SETTINGS_FILE))
        model = Description(*(stored[name] for name in DESCRIPTION))
    elif key_format.eps:
        names = read_meta(source).get("CLASSES")
        classes = list(map(str, names)) if isinstance(names, (list, tuple)) else []
        model = Description(
            sizes_of({key: value.shape for key, value in state.items()}) | FAMILY, classes
        )
    elif config_of_training := find_weights(source)[1]:
        model = _from_config(config_of_training)
    else:
        raise InputError(
            f"{source} does not say what model it is of: give the config of its training, "
            "--config configs/... or the config.yaml in its train.output_dir"
        )
    model.settings |= dict(zip(EPS_NAMES, eps_of(source, key_format) or ()))
    missing = {"num_classes", *STAGE_SETTINGS, *EPS_NAMES} - model.settings.keys()
    if missing:
        raise InputError(f"what is written down with it lacks {', '.join(sorted(missing))}")
    check_settings(model.settings)
    count = model.settings["num_classes"]
    if len(model.classes) != count:
        model.classes = [f"LABEL_{index}" for index in range(count)]
    if not model.image_processor:
        model.image_processor = image_processor(architecture, IMAGENET_MEAN, IMAGENET_STD)
    return model


def _from_config(file: str) -> Description:
    """From a config to run, or from one of configs/models, which says nothing of classes."""
    if file.endswith(".py") and os.path.isfile(file):
        config = LazyConfig.load(file)
        if "train" not in config:
            return Description(_settings(config.cfg))
    config = load_config(file)
    settings = _settings(config.model.cfg)
    inference = config.get("inference") or {}
    if inference.get("resize") or inference.get("crop_size"):
        print(
            f"note: {file} scales images or takes windows of them (inference.resize, "
            "inference.crop_size). Other libraries do not read that: they see whole images"
        )
    dataset = config.dataloader.test[0].dataset
    is_classifier = config.model["_target_"] is SegformerForImageClassification
    if is_classifier:
        classes = classes_of_data(config, file) or []
    else:
        classes, _ = classes_and_palette(dataset)
    if normalisation := mean_and_std(dataset):
        processor = image_processor(ARCHITECTURES[is_classifier], *normalisation)
        return Description(settings, classes, processor)
    return Description(settings, classes)


def _settings(cfg) -> dict:
    """A model's config without what is not the model's own."""
    if not OmegaConf.is_config(cfg):
        cfg = OmegaConf.create(cfg)
    settings = OmegaConf.to_container(cfg, resolve=True)  # a config may name sizes by model_size
    for name in ("pretrained_model_path", "loss"):
        settings.pop(name, None)
    return settings


def _from_huggingface(folder: str) -> Description:
    config = read_config(folder)
    processor = os.path.join(folder, "preprocessor_config.json")
    return Description(
        to_settings(config, folder),
        class_names(config, folder),
        read_json(processor) if os.path.isfile(processor) else {},
    )


def check_family(settings: dict) -> None:
    """Raises InputError for what the paper's files have no place for and its code does not do."""
    for name, values in FAMILY.items():
        if list(settings[name]) != values:
            raise InputError(
                f"the paper's code has {name} of {values}, this model {list(settings[name])}"
            )


def check(state: dict, settings: dict, source: str) -> None:
    """Raises InputError unless the weights fill the model that is written down with them."""
    model = MODELS[architecture_of(state)]
    check_size(settings, LazyState.of(state))
    load_state(model(**model_arguments(model, settings)), lambda: LazyState.of(state), source)


def _tell_eps(settings: dict, target: str) -> None:
    fixed = {"huggingface": HUGGINGFACE, "official": OFFICIAL_SEGMENTATION}.get(target)
    eps = tuple(settings[name] for name in EPS_NAMES)
    if fixed and eps != fixed.eps:
        names = " and ".join(EPS_NAMES)
        print(
            f"note: these weights were used with {names} of {eps}; the code that reads {target} "
            f"weights has {fixed.eps}. docs/weights.md says what that changes."
        )


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(__doc__)
    parser.add_argument("--from", dest="source", required=True, help="folder or file of weights")
    parser.add_argument(
        "--to", dest="target", required=True, choices=("huggingface", "official", "libai")
    )
    parser.add_argument("--output", required=True, help="a new folder; a new file for official")
    parser.add_argument(
        "--config", help="config of the training, where the weights do not tell their model"
    )
    parser.add_argument(
        "--key-layout",
        choices=tuple(KEY_LAYOUTS),
        default="block",
        help="keys for huggingface: `block`, which all versions of transformers read, or `stages`, "
        "the modules of its versions since 5.10",
    )
    return parser


if __name__ == "__main__":
    command_line.run(main)
