"""A config file and overrides from the command line to a config."""

import difflib
import os
import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from libai.config import LazyConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from projects.SegFormer.engine.config_values import check_values, is_path, kind_of
from projects.SegFormer.engine.described_data import fill_in
from projects.SegFormer.engine.yaml_config import load_yaml
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.settings import check_settings

PARTS = ("train", "model", "dataloader", "optim", "graph")
INNER_PARTS = ("model.cfg", "train.dist", "dataloader.train.dataset", "dataloader.test[0].dataset")
SIDES = ("data.scale", "data.crop")
DESCRIBED_BY = ("data.root", "data.scale", "train.global_batch_size", "train.train_*")

apply_overrides = LazyConfig.apply_overrides  # LiBai's, before libai_mends puts `complete` there


def load_config(file: str, overrides: list[str] | None = None) -> DictConfig:
    """The config in `file`, with `overrides` of the form "key.subkey=value" applied.

    Raises InputError: no such file or not a config, or as `complete`.
    """
    return complete(_loaded(file), overrides or [], file)


def complete(config: DictConfig, overrides: list[str], file: str = "the config") -> DictConfig:
    """What LiBai's LazyConfig loaded from `file`, checked and with `overrides` applied.

    `cfg` in the file is the model's config: "cfg.num_classes=3" is "model.cfg.num_classes=3".
    `model_size=b3` picks one of the sizes that the file has.

    Raises InputError: not a config to run, no such model size, a key that is not there (nearest
    names are told), or a value that is none of its kind.
    """
    _hold(config, PARTS, file)
    if "cfg" in config:  # edits of it in the file count, also those after `model` was made
        config.model.cfg = config.pop("cfg")
    _hold(config, INNER_PARTS, file)
    # A number for a pair of sides is a square; where a number stands, it is a short side.
    pairs = [key for key in SIDES if not isinstance(OmegaConf.select(config, key), int)]
    overrides = list(map(full_key, overrides))
    for override in overrides:
        key, _, written = override.partition("=")
        _check(config, override)
        try:
            if is_path(key):
                OmegaConf.update(config, key, _path_as_written(written), merge=False)
            else:
                config = apply_overrides(config, [override])
        except Exception as error:  # Hydra's and OmegaConf's have no common class
            raise InputError(
                f"cannot read the override {override!r}: a list is [1,2], a text with signs is "
                "'in quotes'"
            ) from error
    _hold(config, PARTS + INNER_PARTS, "with these overrides it")
    written = {override.partition("=")[0] for override in overrides}
    by_epochs = "train.train_epoch" in written and "train.train_iter" not in written
    if by_epochs and config.train.train_epoch:  # of both LiBai takes the longer
        config.train.train_iter = 0
    for key in pairs:
        side = OmegaConf.select(config, key)
        if isinstance(side, int) and not isinstance(side, bool):
            OmegaConf.update(config, key, [side, side], merge=False)
    sizes = config.get("model_size")
    if sizes and sizes.name not in sizes.choices:
        raise InputError(f"model_size={sizes.name}: expected one of {', '.join(sizes.choices)}")

    def check(only: Sequence[str] = ()) -> None:
        try:
            check_values(config, only)
        except InputError as error:
            here = str(error).partition("=")[0] in written
            raise InputError(str(error) if here else f"{file}: {error}") from error

    check(DESCRIBED_BY)
    fill_in(config)
    check()
    return config


def _hold(config: DictConfig, parts: Sequence[str], file: str) -> None:
    """Raises InputError: the config lacks one of these parts."""
    for name in parts:
        kinds = DictConfig if name in PARTS else (DictConfig, ListConfig)
        if not isinstance(OmegaConf.select(config, name), kinds):
            raise InputError(f"{file} is not a config to run: it has no `{name}`")


def file_values(file: str) -> DictConfig:
    """The values that a config file itself has, in the order of `complete`, not checked."""
    config = _loaded(file)
    if "cfg" in config:
        config.model.cfg = config.pop("cfg")
    return config


def model_settings(file: str, overrides: list[str]) -> DictConfig:
    """The model's config in a config to run, or in one of configs/models.

    Raises InputError for a config that cannot be read, and for a setting that the model lacks.
    """
    model = _model_of_file(file, overrides) or load_config(file, overrides).model
    model_class = model.get("_target_")
    if not hasattr(model_class, "from_config"):
        raise InputError(f"{file} has no model of this project: expected its class as _target_")
    try:
        model_class.from_config(model.cfg)
        check_settings(model.cfg)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    return model.cfg


def _model_of_file(file: str, overrides: list[str]) -> DictConfig | None:
    """`model` of a file of configs/models with `overrides`; None if it is another file."""
    if not (file.endswith(".py") and os.path.isfile(file)):
        return None
    try:
        config = LazyConfig.load(file)
    except Exception:  # load_config tells of it
        return None
    if "train" in config or "cfg" not in config or "model" not in config:
        return None
    for override in overrides:
        if not override.startswith("cfg.") or "=" not in override:
            raise InputError(f"override {override!r}: expected cfg.key=value for {file}")
    try:
        config = apply_overrides(config, overrides)
    except Exception as error:  # Hydra's and OmegaConf's have no common class
        raise InputError(f"cannot read the overrides {' '.join(overrides)}") from error
    config.model.cfg = config.cfg
    return config.model


def full_key(override: str) -> str:
    """An override with the whole name of its key."""
    return re.sub(r"^model_size=", "model_size.name=", re.sub(r"^cfg\.", "model.cfg.", override))


def _loaded(file: str) -> DictConfig:
    if not os.path.isfile(file):
        raise InputError(f"no config file {file}")
    if file.endswith((".yaml", ".yml")):
        return load_yaml(file)
    try:
        return LazyConfig.load(file)
    except (SyntaxError, ImportError, ValueError) as error:
        raise InputError(f"cannot load the config {file}: {error}") from error


def _path_as_written(text: str):
    """The path that the shell handed over, with all its signs: "data (1)", "a,b", "a=b".

    In Hydra's form are only null, a list of paths, and a path in quotes, unless a file is called
    so. Raises what Hydra raises for a quote that is left open.
    """
    if os.path.lexists(os.path.expanduser(text)):
        return text
    if text == "null" or text[:1] + text[-1:] in ("[]", "''", '""') or text[:1] in ("'", '"'):
        return OverridesParser.create().parse_override(f"key={text}").value()
    return text


def _check(config: DictConfig, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise InputError(f"override {override!r}: expected key=value")
    node = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        names = _names(node)
        where = ".".join(parts[:depth]) or "the config"
        if not names:
            raise InputError(f"no {part!r} in {where}: that is a value, without keys of its own")
        if part not in names:
            near = difflib.get_close_matches(part, names, n=3) or names
            raise InputError(f"no {part!r} in {where}: did you mean {', '.join(near)}?")
        node = OmegaConf.select(config, ".".join(parts[: depth + 1]))
    names, value = _names(node), value.strip()
    is_part = isinstance(node, DictConfig) and names and kind_of(key) is None
    # null takes away what may be missing, such as a transform, and not what can be turned off.
    if is_part and not value.startswith("{") and (value != "null" or "enabled" in names):
        raise InputError(f"{key} holds settings: set one of them, as {key}.{names[0]}=...")


def _names(node) -> list[str]:
    if isinstance(node, DictConfig):
        return [str(name) for name in node if name != "_target_"]
    if isinstance(node, ListConfig):
        return [str(index) for index in range(len(node))]
    return []
