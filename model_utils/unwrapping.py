"""From what a weight file holds to the weights of one model, in one step.

A file of a training holds weights in containers (`state_dict`, `model`), perhaps twice (`ema`), and
their keys have prefixes of what was around the model (`module.`, `net.`). Containers are joined to
the keys with dots. Then both are the same: what stands before names that a format knows.
"""

import re
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np

from projects.SegFormer.model_utils.key_rules import (
    KEY_FORMATS,
    LIBAI,
    LIBAI_TRANSPOSED,
    KeyFormat,
    names_of,
    plain,
    separator,
    with_numbers,
)
from projects.SegFormer.modeling.bounds import TENSORS
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_json

NAME_LETTERS = 400  # a longer key is no weight's; the longest of SegFormer have 80

# Networks whose keys are like SegFormer's.
_OTHER_NETWORKS = re.compile(
    r"(?:[^.]+\.)*?(?:(?P<PVT>pos_embed[1-4]|pvt\..*)"
    r"|(?P<PVTv2>pvt_v2\..*|stages\.\d+\.blocks\.\d+\.attn\.kv\..*))"
)
# Of several sets of weights in a file, one that is named so is taken last.
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|teacher|swa|averaged?|shadow)(?:[._]|$)")

_ADAPTER = re.compile(r".*\.(?:lora|ia3|hada|lokr|oft|boft|vera|ln_tuning)_\w+(?:\..*)?")
_LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>\w+))?\.weight")
_SAVED_BESIDE = re.compile(r"\.modules_to_save\.\w+\.")  # whole layers that an adapter replaces
_MERGE = "load it with PEFT, call merge_and_unload() and save the model that this gives"


def flatten(content) -> dict:
    """The tensors in dicts and lists that hold each other, by their names joined with dots.

    The name of a container is left out where no other holds tensors. What has a number for its name
    is an optimizer's, and is left out too. So is a name too long for a weight.
    Raises InputError for too many of them.
    """
    containers: list[tuple[str, dict]] = []
    count = 0

    def look_into(value, path: str) -> None:
        nonlocal count
        items = value.items() if isinstance(value, dict) else enumerate(value)
        tensors = {}
        for name, item in items:
            if isinstance(value, dict) and not isinstance(name, str):
                continue
            if isinstance(name, str) and len(path) + len(name) > NAME_LETTERS:
                continue
            if hasattr(item, "numpy") and hasattr(item, "shape"):
                tensors[str(name)] = item
            elif isinstance(item, (dict, list, tuple)):
                look_into(item, f"{path}{name}.")
        count += len(tensors)
        if count > TENSORS:
            raise InputError(f"it has more than {TENSORS:,} tensors")
        if tensors:
            containers.append((path, tensors))

    if isinstance(content, (dict, list, tuple)):
        look_into(content, "")
    found = {}
    for path, tensors in containers:
        path = path if len(containers) > 1 else ""
        for name, tensor in tensors.items():
            if path + name in found:
                raise InputError(f"it holds {path + name} twice")
            found[path + name] = tensor
    return found


# ---- Formats and prefixes -----------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """How keys are in a format.

    Attributes:
        key_format: the format.
        prefix: what stands before the names of the format, wrappers not counted.
        keys: those of the weights.
        others: prefixes of other weights that are in a format as well.
    """

    key_format: KeyFormat
    prefix: str
    keys: tuple[str, ...]
    others: tuple[str, ...]


def find_fit(shapes: dict[str, tuple], source: str) -> Fit:
    """The format, and the prefix behind which most of the keys are known.

    A prefix counts where half of all behind it is known. Where several sets of weights are known,
    one that is not an average goes before one that is, then the larger one, then the one with the
    shorter prefix, then the first in the file. What begins as no format's names do is beside the
    model, and left out.

    Raises InputError, naming `source`, when nothing is known, or another network.
    """
    names = {key: plain(key) for key in shapes if len(key) <= NAME_LETTERS}
    known: dict[tuple[str, KeyFormat], set[str]] = {}  # by prefix and format
    for key, name in names.items():
        if other := _OTHER_NETWORKS.fullmatch(name):
            raise InputError(
                f"{source} holds weights of {other.lastgroup} (key {key}), which is another "
                "network: expected those of a SegFormer"
            )
        for key_format in KEY_FORMATS:
            if match := _names_there(key_format).fullmatch(name):
                known.setdefault((match["prefix"], key_format), set()).add(key)
    anywhere = set().union(*known.values())

    def is_half(candidate) -> bool:
        mine = known[candidate]
        behind = [key for key, name in names.items() if name.startswith(candidate[0])]
        return 2 * len(mine) >= sum(key in mine or key not in anywhere for key in behind)

    # A file with more prefixes than these is no model's.
    largest = sorted(known, key=lambda candidate: len(known[candidate]), reverse=True)[:20]
    fitting = [candidate for candidate in largest if is_half(candidate)]
    if not fitting:
        examples = ", ".join(key[:80] for key in sorted(shapes)[:3]) or "none at all"
        raise InputError(
            f"{source} holds no SegFormer weights: its keys ({examples}) are none of "
            + ", ".join(key_format.name for key_format in KEY_FORMATS)
        )

    def are_whole(keys: set[str]) -> bool:
        return 2 * len(keys) >= len(known[fitting[0]])

    prefix, key_format = chosen = min(
        (candidate for candidate in fitting if are_whole(known[candidate])),
        key=lambda candidate: (
            _AVERAGED.search(candidate[0]) is not None,
            -len(known[candidate]),
            candidate[0].count("."),
        ),
    )
    others = {other for other, of in fitting if are_whole(known[other, of] - known[chosen])}
    within = tuple(other for other in others if other != prefix and other.startswith(prefix))
    keys = tuple(
        key
        for key, name in names.items()
        if name.startswith(prefix) and not name.startswith(within)
        if _roots().match(name, len(prefix))
    )
    if key_format is LIBAI and _is_transposed({key: shapes[key] for key in keys}):
        key_format = LIBAI_TRANSPOSED
    return Fit(key_format, prefix, keys, tuple(sorted(others - {prefix})))


@cache
def _names_there(key_format: KeyFormat) -> re.Pattern:
    """A key of the format, in any spelling, behind the shortest prefix that there can be."""
    names = _spelled(key_format)
    keys = (with_numbers(name, "{1}") + re.escape(separator(name)) for name in names)
    return re.compile(rf"(?P<prefix>(?:[^.]+\.)*?)(?:{'|'.join(keys)})\w+")


@cache
def _roots() -> re.Pattern:
    """The first part of all names of all formats."""
    names = {name.partition(".")[0] for of in KEY_FORMATS for name in _spelled(of)}
    return re.compile(rf"(?:{'|'.join(with_numbers(name, '{1}') for name in sorted(names))})\.")


def _spelled(key_format: KeyFormat) -> list[str]:
    """All names of a format."""
    names = {name for rule in key_format.rules for name in names_of(rule.there)}
    others = {
        name.replace(begin, other, 1)
        for begin, other in key_format.respelled
        for name in names
        if name.startswith(begin)
    }
    return sorted(names | others)


def _is_transposed(shapes: dict[str, tuple]) -> bool:
    """Keys and values are joined along the outputs, twice as many as inputs."""
    joined = [shape for key, shape in shapes.items() if key.endswith("attn.kv.weight")]
    return bool(joined) and all(len(shape) == 2 and shape[0] == 2 * shape[1] for shape in joined)


# ---- Adapters of PEFT ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Merged:
    """A weight with LoRA's change: (out, ...) + scale * (out, r) (r, ...)."""

    weight: object
    a: object
    b: object
    scale: float

    def __post_init__(self):
        rank, out = self.a.shape[0], self.b.shape[0]
        if prod(self.b.shape) != out * rank or prod(self.shape) != out * prod(self.a.shape[1:]):
            raise InputError(
                f"its LoRA factors of shapes {self.a.shape} and {self.b.shape} do not go with a "
                f"weight of {self.shape}: {_MERGE}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def dtype(self) -> np.dtype:
        return self.weight.dtype

    def numpy(self) -> np.ndarray:
        a, b, weight = (part.numpy().astype(np.float32) for part in (self.a, self.b, self.weight))
        rank = len(a)
        return weight + self.scale * (b.reshape(-1, rank) @ a.reshape(rank, -1)).reshape(self.shape)


def merge_adapters(tensors: dict, config_file: str) -> dict:
    """`tensors` with the factors of LoRA merged into the weights that they change.

    Args:
        tensors: by key. Those of no adapter come back as they are.
        config_file: adapter_config.json, which says how strong the change is.
    Raises InputError for an adapter without the weights under it, one of another kind or without
    its config, and several.
    """
    adapters = {key for key in tensors if _ADAPTER.fullmatch(key)}
    beside = any(_SAVED_BESIDE.search(key) for key in tensors)
    if not adapters and not beside:
        return tensors
    factors: dict[str, dict] = {}
    names = set()
    for key in sorted(adapters):
        match = _LORA.fullmatch(key)
        if match is None:
            raise InputError(f"it holds {key}, of an adapter that is not plain LoRA: {_MERGE}")
        factors.setdefault(match["layer"], {})[match["factor"]] = tensors[key]
        names.add(match["adapter"])
    if len(names) > 1:
        raise InputError(f"it holds the adapters {', '.join(sorted(map(str, names)))}: {_MERGE}")
    merged = {
        _SAVED_BESIDE.sub(".", key).replace(".base_layer.", "."): tensor
        for key, tensor in tensors.items()
        if key not in adapters and not (beside and ".original_module." in key)
    }
    for layer, pair in factors.items():
        if pair.keys() != {"A", "B"}:
            raise InputError(f"it holds one of the two LoRA factors of {layer}: {_MERGE}")
        if f"{layer}.weight" not in merged:
            raise InputError(
                f"it holds a LoRA adapter without the weights that it changes ({layer}.weight): "
                f"{_MERGE}"
            )
    if factors:
        scale = _scale(config_file, {pair["A"].shape[0] for pair in factors.values()})
    for layer, pair in factors.items():
        key = f"{layer}.weight"
        merged[key] = _Merged(merged[key], pair["A"], pair["B"], scale)
    return merged


def _scale(config_file: str, ranks: set[int]) -> float:
    try:
        config = read_json(config_file, "lora_alpha", "r")
    except InputError as error:
        raise InputError(
            f"the strength of its LoRA adapter is unknown ({error}): put adapter_config.json "
            f"beside it, or {_MERGE}"
        ) from error
    rank, alpha = config["r"], config["lora_alpha"]
    others = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
    unusual = [name for name in others if config.get(name)]
    if unusual:
        raise InputError(f"{config_file} has {unusual[0]}, which is not plain LoRA: {_MERGE}")
    is_number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
    if not is_number or ranks != {rank} or not rank:
        raise InputError(f"{config_file} has r {rank!r} and lora_alpha {alpha!r}: {_MERGE}")
    return alpha / rank
