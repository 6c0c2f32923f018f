"""How each weight format names and lays out the parameters: one reversible table a format.

A rule pairs the names of modules in this project with their names elsewhere. `{i}` stands for a
stage counted from 0, `{I}` for one counted from 1, `{j}` for a block. Several names, with `|`
between them, are one tensor joined along its outputs; `*2` after a name says that it holds two of
the equal parts. After a name come a dot and `weight` or the like; after one that ends on `_` no
dot. The layout says how the tensors differ:

- "same": not at all;
- "linear": weights are (in, out) here, as in LiBai's Linear, and (out, in) there;
- "pointwise": (in, out) here, and (out, in, 1, 1) there, a 1x1 convolution.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from projects.SegFormer.model_utils.lazy_state import LazyState
from projects.SegFormer.modeling.errors import InputError

EPS_NAMES = ("layer_norm_eps", "embed_norm_eps")  # in configs, in the order of KeyFormat.eps


@dataclass(frozen=True)
class Rule:
    here: str
    there: str
    layout: str = "same"


@dataclass(frozen=True)
class KeyFormat:
    """A weight format.

    Attributes:
        name: as messages have it.
        rules: its table.
        respelled: (begin of names there, as some files spell it).
        eps: EPS_NAMES of the code that its weights come from; None where
            the config says.
    """

    name: str
    rules: tuple[Rule, ...]
    respelled: tuple[tuple[str, str], ...] = ()
    eps: tuple[float, float] | None = None


def _table(*rows: str) -> tuple[Rule, ...]:
    return tuple(Rule(*row.split()) for row in rows)


_LIBAI_NAMES = (
    "segformer.patch_embeds.{i}.proj",
    "segformer.patch_embeds.{i}.norm",
    "segformer.blocks.{i}.{j}.norm1",
    "segformer.blocks.{i}.{j}.attn.q",
    "segformer.blocks.{i}.{j}.attn.kv",
    "segformer.blocks.{i}.{j}.attn.proj",
    "segformer.blocks.{i}.{j}.attn.sr",
    "segformer.blocks.{i}.{j}.attn.norm",
    "segformer.blocks.{i}.{j}.norm2",
    "segformer.blocks.{i}.{j}.mlp.dense_h_to_4h",
    "segformer.blocks.{i}.{j}.mlp.dwconv.dwconv",
    "segformer.blocks.{i}.{j}.mlp.dense_4h_to_h",
    "segformer.layer_norms.{i}",
    "head.linear_c.{i}.proj",
    "head.linear_fuse",
    "head.batch_norm",
    "head.linear_pred",
    "head.conv_seg",
    "head",
)
_LIBAI_LINEAR = r".*\.(q|kv|attn\.proj|dense_h_to_4h|dense_4h_to_h|linear_c.*)|head"
_LIBAI_BARE = tuple(
    (f"segformer.{name}.", f"{name}.") for name in ("patch_embeds", "blocks", "layer_norms")
)

# Checkpoints of LiBai's trainer, of this project and of the first port.
LIBAI = KeyFormat("LiBai", tuple(Rule(name, name) for name in _LIBAI_NAMES), _LIBAI_BARE)

# The same written with a LiBai after 0.1.1, whose Linear has its weight as PyTorch has it.
LIBAI_TRANSPOSED = KeyFormat(
    "LiBai, linear weights (out, in)",
    tuple(
        Rule(name, name, "linear" if re.fullmatch(_LIBAI_LINEAR, name) else "same")
        for name in _LIBAI_NAMES
    ),
    _LIBAI_BARE,
)

# transformers up to 5.6 or so, and what all of its versions save; `head` is the classifier of
# SegformerForImageClassification. Its config has a layer_norm_eps of 1e-6 that no code reads.
HUGGINGFACE = KeyFormat(
    "Hugging Face",
    _table(
        "segformer.patch_embeds.{i}.proj segformer.encoder.patch_embeddings.{i}.proj",
        "segformer.patch_embeds.{i}.norm segformer.encoder.patch_embeddings.{i}.layer_norm",
        "segformer.blocks.{i}.{j}.norm1 segformer.encoder.block.{i}.{j}.layer_norm_1",
        "segformer.blocks.{i}.{j}.attn.q "
        "segformer.encoder.block.{i}.{j}.attention.self.query linear",
        "segformer.blocks.{i}.{j}.attn.kv*2 "
        "segformer.encoder.block.{i}.{j}.attention.self.key|"
        "segformer.encoder.block.{i}.{j}.attention.self.value linear",
        "segformer.blocks.{i}.{j}.attn.proj "
        "segformer.encoder.block.{i}.{j}.attention.output.dense linear",
        "segformer.blocks.{i}.{j}.attn.sr segformer.encoder.block.{i}.{j}.attention.self.sr",
        "segformer.blocks.{i}.{j}.attn.norm "
        "segformer.encoder.block.{i}.{j}.attention.self.layer_norm",
        "segformer.blocks.{i}.{j}.norm2 segformer.encoder.block.{i}.{j}.layer_norm_2",
        "segformer.blocks.{i}.{j}.mlp.dense_h_to_4h "
        "segformer.encoder.block.{i}.{j}.mlp.dense1 linear",
        "segformer.blocks.{i}.{j}.mlp.dwconv.dwconv "
        "segformer.encoder.block.{i}.{j}.mlp.dwconv.dwconv",
        "segformer.blocks.{i}.{j}.mlp.dense_4h_to_h "
        "segformer.encoder.block.{i}.{j}.mlp.dense2 linear",
        "segformer.layer_norms.{i} segformer.encoder.layer_norm.{i}",
        "head.linear_c.{i}.proj decode_head.linear_c.{i}.proj linear",
        "head.linear_fuse decode_head.linear_fuse",
        "head.batch_norm decode_head.batch_norm",
        "head.linear_pred decode_head.classifier",
        "head classifier linear",
    ),
    respelled=(("segformer.encoder.", "encoder."),),  # a bare encoder
    eps=(1e-5, 1e-5),
)

# The modules of transformers since the refactoring of 5.10.
HUGGINGFACE_STAGES = KeyFormat(
    "Hugging Face, by stages",
    _table(
        "segformer.patch_embeds.{i}.proj segformer.stages.{i}.patch_embeddings.proj",
        "segformer.patch_embeds.{i}.norm segformer.stages.{i}.patch_embeddings.layer_norm",
        "segformer.blocks.{i}.{j}.norm1 segformer.stages.{i}.blocks.{j}.layernorm_before",
        "segformer.blocks.{i}.{j}.attn.q segformer.stages.{i}.blocks.{j}.attention.q_proj linear",
        "segformer.blocks.{i}.{j}.attn.kv*2 "
        "segformer.stages.{i}.blocks.{j}.attention.k_proj|"
        "segformer.stages.{i}.blocks.{j}.attention.v_proj linear",
        "segformer.blocks.{i}.{j}.attn.proj "
        "segformer.stages.{i}.blocks.{j}.attention.o_proj linear",
        "segformer.blocks.{i}.{j}.attn.sr "
        "segformer.stages.{i}.blocks.{j}.attention.sequence_reduction.sequence_reduction",
        "segformer.blocks.{i}.{j}.attn.norm "
        "segformer.stages.{i}.blocks.{j}.attention.sequence_reduction.layer_norm",
        "segformer.blocks.{i}.{j}.norm2 segformer.stages.{i}.blocks.{j}.layernorm_after",
        "segformer.blocks.{i}.{j}.mlp.dense_h_to_4h segformer.stages.{i}.blocks.{j}.mlp.fc1 linear",
        "segformer.blocks.{i}.{j}.mlp.dwconv.dwconv "
        "segformer.stages.{i}.blocks.{j}.mlp.dwconv.dwconv",
        "segformer.blocks.{i}.{j}.mlp.dense_4h_to_h segformer.stages.{i}.blocks.{j}.mlp.fc2 linear",
        "segformer.layer_norms.{i} segformer.stages.{i}.layer_norm",
        "head.linear_c.{i}.proj decode_head.linear_projections.{i}.proj linear",
        "head.linear_fuse decode_head.linear_fuse",
        "head.batch_norm decode_head.batch_norm",
        "head.linear_pred decode_head.classifier",
        "head classifier linear",
    ),
    respelled=(
        ("segformer.stages.", "stages."),
        ("segformer.stages.", "encoder.stages."),
        ("segformer.stages.", "segformer.encoder.stages."),
        ("decode_head.linear_projections.", "decode_head.linear_c."),
    ),
    eps=(1e-5, 1e-5),
)

_OFFICIAL_ENCODER = (
    "segformer.patch_embeds.{i}.proj patch_embed{I}.proj",
    "segformer.patch_embeds.{i}.norm patch_embed{I}.norm",
    "segformer.blocks.{i}.{j}.norm1 block{I}.{j}.norm1",
    "segformer.blocks.{i}.{j}.attn.q block{I}.{j}.attn.q linear",
    "segformer.blocks.{i}.{j}.attn.kv block{I}.{j}.attn.kv linear",
    "segformer.blocks.{i}.{j}.attn.proj block{I}.{j}.attn.proj linear",
    "segformer.blocks.{i}.{j}.attn.sr block{I}.{j}.attn.sr",
    "segformer.blocks.{i}.{j}.attn.norm block{I}.{j}.attn.norm",
    "segformer.blocks.{i}.{j}.norm2 block{I}.{j}.norm2",
    "segformer.blocks.{i}.{j}.mlp.dense_h_to_4h block{I}.{j}.mlp.fc1 linear",
    "segformer.blocks.{i}.{j}.mlp.dwconv.dwconv block{I}.{j}.mlp.dwconv.dwconv",
    "segformer.blocks.{i}.{j}.mlp.dense_4h_to_h block{I}.{j}.mlp.fc2 linear",
    "segformer.layer_norms.{i} norm{I}",
)
_OFFICIAL_EPS = (1e-6, 1e-5)

# The paper's ImageNet-1K checkpoints, mit_b0.pth to mit_b5.pth.
OFFICIAL_IMAGENET = KeyFormat(
    "official ImageNet-1K", _table(*_OFFICIAL_ENCODER, "head head linear"), eps=_OFFICIAL_EPS
)

# The paper's segmentation checkpoints, segformer.b0.512x512.ade.160k.pth and so on. `conv_seg` is
# a layer of the head's base class that its network never calls.
OFFICIAL_SEGMENTATION = KeyFormat(
    "official segmentation",
    _table(
        *(row.replace(" ", " backbone.", 1) for row in _OFFICIAL_ENCODER),
        "head.linear_c.{i}.proj decode_head.linear_c{I}.proj linear",
        "head.linear_fuse decode_head.linear_fuse.conv",
        "head.batch_norm decode_head.linear_fuse.bn",
        "head.linear_pred decode_head.linear_pred",
        "head.conv_seg decode_head.conv_seg",
    ),
    eps=_OFFICIAL_EPS,
)

# Segformer of segmentation_models.pytorch with an encoder mit_bX: the paper's encoder, and the
# projections of the head by the order in which their maps are joined, coarsest first.
SMP = KeyFormat(
    "segmentation_models.pytorch",
    _table(
        *(row.replace(" ", " encoder.", 1) for row in _OFFICIAL_ENCODER),
        *(f"head.linear_c.{i}.proj decoder.mlp_stage.{3 - i}.linear linear" for i in range(4)),
        "head.linear_fuse decoder.fuse_stage.0",
        "head.batch_norm decoder.fuse_stage.1",
        "head.linear_pred segmentation_head.0",
    ),
    eps=_OFFICIAL_EPS,
)

# mmsegmentation's ImageNet-1K checkpoints of MiT, mit_b0_*.pth, and the backbone of its
# segmentation checkpoints. Its decode head, with a batch norm after every projection, is another
# network.
MMSEGMENTATION = KeyFormat(
    "mmsegmentation",
    _table(
        "segformer.patch_embeds.{i}.proj layers.{i}.0.projection",
        "segformer.patch_embeds.{i}.norm layers.{i}.0.norm",
        "segformer.blocks.{i}.{j}.norm1 layers.{i}.1.{j}.norm1",
        "segformer.blocks.{i}.{j}.attn.q|segformer.blocks.{i}.{j}.attn.kv*2 "
        "layers.{i}.1.{j}.attn.attn.in_proj_*3 linear",
        "segformer.blocks.{i}.{j}.attn.proj layers.{i}.1.{j}.attn.attn.out_proj linear",
        "segformer.blocks.{i}.{j}.attn.sr layers.{i}.1.{j}.attn.sr",
        "segformer.blocks.{i}.{j}.attn.norm layers.{i}.1.{j}.attn.norm",
        "segformer.blocks.{i}.{j}.norm2 layers.{i}.1.{j}.norm2",
        "segformer.blocks.{i}.{j}.mlp.dense_h_to_4h layers.{i}.1.{j}.ffn.layers.0 pointwise",
        "segformer.blocks.{i}.{j}.mlp.dwconv.dwconv layers.{i}.1.{j}.ffn.layers.1",
        "segformer.blocks.{i}.{j}.mlp.dense_4h_to_h layers.{i}.1.{j}.ffn.layers.4 pointwise",
        "segformer.layer_norms.{i} layers.{i}.2",
    ),
    respelled=(("layers.", "backbone.layers."),),
    eps=(1e-6, 1e-6),
)

KEY_FORMATS = (
    LIBAI,
    HUGGINGFACE,
    HUGGINGFACE_STAGES,
    OFFICIAL_IMAGENET,
    OFFICIAL_SEGMENTATION,
    SMP,
    MMSEGMENTATION,
)

# What wraps a module, or the whole model: PyTorch's DataParallel, torch.compile, FSDP.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def to_here(state: dict[str, np.ndarray], key_format: KeyFormat) -> dict[str, np.ndarray]:
    """Rename and lay out a checkpoint of `key_format` as this project's state.

    Keys that no rule knows keep their name, and so do parts of a tensor that is not whole, for the
    caller to report. Raises InputError when two keys are names of the same tensor.
    """
    return dict(lazily_here(LazyState.of(state), key_format).read())


def lazily_here(state: LazyState, key_format: KeyFormat, prefix: str = "") -> LazyState:
    """The same for a state that is read one tensor at a time, and whose keys have a prefix."""

    def convert(tensors):
        spelled = ((_respell(key, key_format, prefix), value) for key, value in tensors)
        return _convert(spelled, key_format, "there", "here")

    # Zeros that take no memory have the same shapes.
    hollow = {key: np.broadcast_to(np.float32(0), shape) for key, shape in state.shapes.items()}
    shapes = {}
    for key, value in convert(hollow.items()):
        if key in shapes:
            raise InputError(f"the weights hold {key} twice, under two names")
        shapes[key] = value.shape
    return LazyState(shapes, lambda: convert(state.read()))


def from_here(state: dict[str, np.ndarray], key_format: KeyFormat) -> dict[str, np.ndarray]:
    """The reverse of `to_here`, bit for bit.

    Raises InputError for keys that the format has no name for.
    """
    for key in state:
        if _find(key, key_format.rules, "here") is None:
            raise InputError(f"{key_format.name} weights have no name for {key}")
    return dict(_convert(state.items(), key_format, "here", "there"))


def plain(key: str) -> str:
    """A key without the names of wrappers, wherever they stand in it."""
    return _WRAPPERS.sub("", key)


def _respell(key: str, key_format: KeyFormat, prefix: str) -> str:
    key = plain(key).removeprefix(prefix)
    for begin, other in key_format.respelled:
        if key.startswith(other):
            return begin + key.removeprefix(other)
    return key


def _convert(tensors: Iterable, key_format: KeyFormat, source: str, target: str) -> Iterator:
    """Pairs (key, tensor) from one side to the other, "here" and "there" or the reverse."""
    incomplete = {}  # {(rule, numbers, leaf): {name on the source side: (key, value)}}
    for key, value in tensors:
        found = _find(key, key_format.rules, source)
        if found is None:
            yield key, value
            continue
        rule, name, numbers, leaf = found
        parts = incomplete.setdefault((rule, tuple(numbers.items()), leaf), {})
        parts[name] = key, value
        if len(parts) == len(names_of(getattr(rule, source))):
            try:
                shares = list(_distribute(parts, rule, source, target))
            except ValueError:
                continue  # their shapes do not go together
            del incomplete[rule, tuple(numbers.items()), leaf]
            for name, share in shares:
                yield _key(name, numbers, leaf), share
    for parts in incomplete.values():
        yield from parts.values()


def _distribute(parts: dict, rule: Rule, source: str, target: str) -> Iterable:
    """Pairs (name, tensor) of the target side, from the parts of the source side."""
    ordered = [parts[name][1] for name in names_of(getattr(rule, source))]
    if source == "there":
        ordered = [_from_there(value, rule.layout) for value in ordered]
    whole = ordered[0] if len(ordered) == 1 else np.concatenate(ordered, axis=-1)
    names = names_of(getattr(rule, target))
    shares = [whole]
    if len(names) > 1:
        if whole.ndim == 0 or whole.shape[-1] % sum(names.values()):
            raise ValueError(f"{whole.shape} cannot be divided")
        ends = np.cumsum(list(names.values())) * whole.shape[-1] // sum(names.values())
        shares = np.split(whole, ends[:-1], axis=-1)
    if target == "there":
        shares = [_to_there(share, rule.layout) for share in shares]
    return zip(names, shares)


def _from_there(value: np.ndarray, layout: str) -> np.ndarray:
    """A tensor of another number of axes stays, for the caller to report its shape."""
    if layout == "pointwise" and value.shape[2:] == (1, 1):
        value = value[:, :, 0, 0]
    return value.T if layout != "same" and value.ndim == 2 else value


def _to_there(value: np.ndarray, layout: str) -> np.ndarray:
    if layout != "same" and value.ndim == 2:
        value = value.T
        if layout == "pointwise":
            value = value[:, :, None, None]
    return np.ascontiguousarray(value).reshape(value.shape)


def _find(key: str, rules: tuple[Rule, ...], side: str):
    """(rule, name on that side, numbers in it, leaf) for a key, or None."""
    for rule in rules:
        for name in names_of(getattr(rule, side)):
            match = _pattern(name).fullmatch(key)
            if match is not None:
                numbers = match.groupdict()
                leaf = numbers.pop("leaf")
                return rule, name, _stage_from_0(numbers), leaf
    return None


@cache
def names_of(side: str) -> dict[str, int]:
    """The names on one side of a rule, each with how many equal parts it holds."""
    split = [name.partition("*") for name in side.split("|")]
    return {name: int(count or 1) for name, _, count in split}


@cache
def _pattern(name: str) -> re.Pattern:
    return re.compile(with_numbers(name) + re.escape(separator(name)) + r"(?P<leaf>\w+)")


def with_numbers(name: str, group: str = "(?P<{}>{})") -> str:
    """A pattern for a name of the tables, with a group for each placeholder."""
    pattern = re.escape(name)
    for placeholder in "iIj":
        number = group.format(placeholder, r"\d+")
        pattern = pattern.replace(rf"\{{{placeholder}\}}", number)
    return pattern


def separator(name: str) -> str:
    return "" if name.endswith("_") else "."


def _stage_from_0(numbers: dict[str, str]) -> dict[str, int]:
    counted = {name: int(number) for name, number in numbers.items()}
    if "I" in counted:
        counted["i"] = counted.pop("I") - 1
    return dict(sorted(counted.items()))


def _key(name: str, numbers: dict[str, int], leaf: str) -> str:
    return name.format(**numbers, I=numbers.get("i", 0) + 1) + separator(name) + leaf
