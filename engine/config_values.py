"""What values the settings of a config may have: a table, and the check of a config against it."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from numbers import Real
from typing import NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason
from projects.SegFormer.modeling.settings import check_settings

LARGEST = 10**12  # a period without an end, a number of things that nobody has


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        expected: what a person is told that it is.
        take: gives the value that a setting means, from what is written; raises ValueError for what
            is none.
    """

    expected: str
    take: Callable


def _number(value, least, most, is_whole, below):
    """1e3 is a whole number; text, true and nan are none."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most or below and value == most:
        raise ValueError
    if is_whole and value != int(value):
        raise ValueError
    return int(value) if is_whole else value


def whole(least: int = 0, most: int = LARGEST) -> Kind:
    """A whole number from `least` to `most`."""
    ends = f"{least} to {most}" if most < LARGEST else f"{least} or up"
    return Kind(
        f"a whole number, {ends}",
        partial(_number, least=least, most=most, is_whole=True, below=False),
    )


def number(least: float = 0.0, most: float = math.inf, below: bool = False) -> Kind:
    """A number from `least` to `most`, or to `below` it."""
    ends = f"from {least:g} to {'below ' * below}{most:g}" if most < LARGEST else f"{least:g} or up"
    return Kind(
        f"a number, {ends}", partial(_number, least=least, most=most, is_whole=False, below=below)
    )


def _flag(value):
    if not isinstance(value, bool):
        raise ValueError
    return value


def _numbers_by_name(value):
    if not isinstance(value, dict):
        raise ValueError
    return {_name(name): number().take(item) for name, item in value.items()}


def _name(value):
    """A number is one as well."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError
    return str(value)


def _path(value):
    """A home folder is written out, as the shell does at the beginning of a word."""
    if not isinstance(value, str) or not value:
        raise ValueError
    return os.path.expanduser(value)


def _listed(value, kind: Kind, count: int | None):
    if not isinstance(value, (list, tuple)) or count and len(value) != count or not value:
        raise ValueError
    return [kind.take(item) for item in value]


def several(kind: Kind, count: int | None = None) -> Kind:
    """A list of `count` values of a kind, or of any number of them."""
    each = f"{count} of them" if count else "a list of them"
    return Kind(f"{kind.expected}; {each}, as [a,b]", partial(_listed, kind=kind, count=count))


def either(*kinds: Kind) -> Kind:
    """What is of one of the kinds; of several, of the first."""

    def take(value):
        for kind in kinds:
            try:
                return kind.take(value)
            except (ValueError, TypeError):
                continue
        raise ValueError

    return Kind(", or ".join(kind.expected for kind in kinds), take)


def _one_of(value, written, means):
    if isinstance(value, bool) or value not in written:
        raise ValueError
    return means


NULL = Kind("null", partial(_one_of, written=(None, ""), means=None))
NO_WEIGHTS = Kind("null for none", partial(_one_of, written=(None, ""), means=""))
# What 0, -1 and null mean elsewhere as well.
NEVER = Kind("0, -1 or null for never", partial(_one_of, written=(0, -1, None), means=LARGEST))
ALL = Kind("-1 or null for all", partial(_one_of, written=(-1, None), means=LARGEST))
NO_LIMIT = Kind("0, -1 or null for none", partial(_one_of, written=(0, -1, None), means=0))
FLAG = Kind("true or false", _flag)
PATH = Kind("a path", _path)
PATHS = Kind("a list of paths, as [a,b]", several(PATH).take)
NUMBERS_BY_NAME = Kind("a number for each name, as {a:0.5}", _numbers_by_name)
NAMES = Kind("a list of names", several(Kind("a name", _name)).take)

PERIOD = either(whole(1), NEVER)
COUNT = either(whole(1), NULL)
PAIR = several(whole(1), 2)
SIZE = either(PAIR, whole(1))

# What is not in the table is as free as its code takes it. The first pattern that fits counts.
TABLE = (
    ("train.output_dir", PATH),
    ("train.seed", whole(0, 2**32 - 1)),
    ("train.global_batch_size", COUNT),
    ("train.train_micro_batch_size", COUNT),
    ("train.num_accumulation_steps", COUNT),
    ("train.test_micro_batch_size", whole(1)),
    ("train.train_iter", whole()),
    ("train.train_epoch", number()),
    ("train.warmup_ratio", number(0, 1, below=True)),
    ("train.scheduler.warmup_factor", number(0, 1)),
    ("train.scheduler.min_factor", number(0, 1)),
    ("train.scheduler.power", number()),
    ("train.load_weight", either(PATHS, PATH, NO_WEIGHTS)),
    ("train.log_period", PERIOD),
    ("train.watchdog_seconds", either(number(1), NO_LIMIT)),
    ("train.checkpointer.period", PERIOD),
    ("train.checkpointer.max_to_keep", either(whole(1), ALL)),
    ("train.evaluation.eval_period", PERIOD),
    ("train.evaluation.eval_iter", either(whole(1), ALL)),
    ("train.evaluation.worst_images", whole()),
    ("train.ema.decay", number(0, 1, below=True)),
    ("train.zero_optimization.stage", whole(0, 3)),
    ("train.dist.*_size", whole(1)),
    ("train.dist.custom_pipeline_stage_id", either(NULL, several(whole()))),
    ("train.nccl_fusion_*", whole()),
    ("train.resume", FLAG),
    ("train.rdma_enabled", FLAG),
    ("train.evaluation.boundary_iou", FLAG),
    ("train.*.enabled", FLAG),
    ("graph.enabled", FLAG),
    ("graph.debug", whole(-1, 3)),
    ("optim.params.clip_grad_norm", either(NULL, number())),
    ("optim.params.lr_multipliers.*", number()),
    ("optim.params.lr_multipliers", either(NULL, NUMBERS_BY_NAME)),
    ("optim.params.*", number()),
    ("optim.betas", several(number(0, 1, below=True), 2)),
    ("optim.eps", number()),
    ("inference.flip", FLAG),
    ("inference.divisor", whole(1)),
    ("inference.scales", several(number(0.01, 100))),
    ("inference.*_size", either(PAIR, NULL)),
    ("inference.stride", either(PAIR, NULL)),
    ("inference.resize", either(PAIR, NULL)),
    ("model.cfg.pretrained_model_path", either(NULL, PATH)),
    ("model.cfg.loss.label_smoothing", number(0, 1)),
    ("model.cfg.loss.ohem_threshold", either(NULL, number(0, 1))),
    ("model.cfg.loss.ohem_min_kept", whole()),
    ("model.cfg.loss.dice_weight", number()),
    ("model.cfg.loss.class_weights", either(NULL, several(number()))),
    ("dataloader.*.num_workers", whole(0, 256)),
    ("dataloader.*.dataset.classes", NAMES),
    ("dataloader.*.root", PATH),
    ("dataloader.*.*_dir", PATH),
    ("dataloader.*.prob", number(0, 1)),
    ("dataloader.*_prob", number(0, 1)),
    ("dataloader.*_alpha", number()),
    ("dataloader.*.repeated_augmentation", whole(1)),
    ("dataloader.*.cat_max_ratio", number(0, 1)),
    ("dataloader.*.ratio_range", several(number(), 2)),
    ("dataloader.*.transforms.*.size", SIZE),
    ("data.root", PATH),
    ("data.scale", SIZE),
    ("data.crop", SIZE),
    ("data.mean", several(number())),
    ("data.std", several(number(1e-6))),
)


def kind_of(key: str) -> Kind | None:
    """That of the setting `key`, as "train.seed"; None for one that is not in the table."""
    return next((kind for pattern, kind in TABLE if fnmatchcase(key, pattern)), None)


def is_path(key: str) -> bool:
    """Whether the setting is a path, or may be one."""
    kind = kind_of(key)
    return kind is not None and PATH.expected in kind.expected


def check_values(config: DictConfig, only: Sequence[str] = ()) -> None:
    """Hold every setting against the table, and write down what it means where that is written
    otherwise: 1e3 as 1000, ~/x with the home folder, LARGEST for never and for all.

    Args:
        only: patterns of the keys to look at, and null passes: it is not filled in yet.
    Raises InputError for a value that is none of its kind.
    """
    for key, node in list(_nodes(config)):
        kind = kind_of(key)
        if kind is None:
            continue
        if only and (node is None or not any(fnmatchcase(key, it) for it in only)):
            continue
        value = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
        try:
            meant = kind.take(value)
        except (ValueError, TypeError):
            raise InputError(f"{key}={_shown(value)}: expected {kind.expected}") from None
        if repr(meant) != repr(value):
            OmegaConf.update(config, key, meant, merge=False)
    if not only:
        check_settings(config.model.cfg)


def _nodes(node, key: str = "") -> Iterator[tuple[str, object]]:
    """(key, value) of all settings, references resolved. A setting may have settings in it."""
    if key:
        yield key, node
    if isinstance(node, DictConfig):
        children = [(str(name), name) for name in node if name != "_target_"]
    elif isinstance(node, ListConfig):
        children = [(str(index), index) for index in range(len(node))]
    else:
        return
    for name, place in children:
        inner = f"{key}.{name}" if key else name
        try:
            child = node[place]
        except OmegaConfBaseException as error:  # a reference to nothing
            raise InputError(f"{inner} has no value: {reason(error)}") from error
        yield from _nodes(child, inner)


def _shown(value) -> str:
    """As it is written on the command line."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
