"""How each weight format names and lays out the parameters: one reversible table a format.

A rule pairs a module's name in this project with its name elsewhere. `{i}` stands for a stage
counted from 0, `{I}` for one counted from 1, `{j}` for a block. The layout says how the tensors
differ:

- "same": not at all;
- "linear": weights are (in, out) here, as in LiBai's Linear, and (out, in) there;
- "pair": "linear", and the one tensor here is two there (`|` between their names), joined along
  `out`.
"""

import re
from dataclasses import dataclass

import numpy as np

from projects.SegFormer.modeling.errors import InputError


@dataclass(frozen=True)
class Rule:
    here: str
    there: str
    layout: str = "same"


@dataclass(frozen=True)
class KeyFormat:
    """A weight format: its rules, and keys in its files that no model has a place for."""

    name: str
    rules: tuple[Rule, ...]
    ignored: str = r".*\.num_batches_tracked"


def _table(*rows: str) -> tuple[Rule, ...]:
    return tuple(Rule(*row.split()) for row in rows)


_LIBAI_ENCODER = (
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
)
_LIBAI_HEADS = (
    "head.linear_c.{i}.proj",
    "head.linear_fuse",
    "head.batch_norm",
    "head.linear_pred",
    "head",
)

LIBAI = KeyFormat("libai", tuple(Rule(name, name) for name in _LIBAI_ENCODER + _LIBAI_HEADS))

# transformers up to version 4; `head` is the classifier of SegformerForImageClassification.
HUGGINGFACE = KeyFormat(
    "huggingface",
    _table(
        "segformer.patch_embeds.{i}.proj segformer.encoder.patch_embeddings.{i}.proj",
        "segformer.patch_embeds.{i}.norm segformer.encoder.patch_embeddings.{i}.layer_norm",
        "segformer.blocks.{i}.{j}.norm1 segformer.encoder.block.{i}.{j}.layer_norm_1",
        "segformer.blocks.{i}.{j}.attn.q "
        "segformer.encoder.block.{i}.{j}.attention.self.query linear",
        "segformer.blocks.{i}.{j}.attn.kv "
        "segformer.encoder.block.{i}.{j}.attention.self.key|"
        "segformer.encoder.block.{i}.{j}.attention.self.value pair",
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

# The paper's ImageNet-1K checkpoints, mit_b0.pth to mit_b5.pth.
OFFICIAL_IMAGENET = KeyFormat(
    "official ImageNet-1K", _table(*_OFFICIAL_ENCODER, "head head linear")
)

KEY_FORMATS = {rules.name: rules for rules in (LIBAI, HUGGINGFACE, OFFICIAL_IMAGENET)}


def to_here(state: dict[str, np.ndarray], key_format: KeyFormat) -> dict[str, np.ndarray]:
    """Rename and lay out a checkpoint of `key_format` as this project's state.

    Keys that no rule knows keep their name, for the caller to report.
    Raises InputError when one half of a pair is missing.
    """
    converted = {}
    halves: dict[str, dict[int, np.ndarray]] = {}
    for key, value in state.items():
        if re.fullmatch(key_format.ignored, key):
            continue
        match = _find(key, key_format.rules)
        if match is None:
            converted[key] = value
            continue
        rule, half, name = match
        if rule.layout != "same":
            value = value.T
        if rule.layout == "pair":
            halves.setdefault(name, {})[half] = value
        else:
            converted[name] = value
    for name, parts in halves.items():
        if len(parts) != 2:
            raise InputError(f"{key_format.name} weights hold only one of the two parts of {name}")
        converted[name] = np.concatenate([parts[0], parts[1]], axis=-1)
    return converted


def from_here(state: dict[str, np.ndarray], key_format: KeyFormat) -> dict[str, np.ndarray]:
    """The reverse of `to_here`, bit for bit."""
    converted = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        for rule in key_format.rules:
            match = _pattern(rule.here).fullmatch(module)
            if match is None:
                continue
            names = [_fill(name, match.groupdict()) for name in rule.there.split("|")]
            parts = np.split(value, len(names), axis=-1)
            for name, part in zip(names, parts):
                laid_out = part if rule.layout == "same" else part.T
                converted[f"{name}.{leaf}"] = np.ascontiguousarray(laid_out)
            break
        else:
            raise InputError(f"{key_format.name} weights have no name for {key}")
    return converted


def _find(key: str, rules: tuple[Rule, ...]):
    """(rule, which of its names, the key in this project) for a key elsewhere, or None."""
    module, _, leaf = key.rpartition(".")
    for rule in rules:
        for half, there in enumerate(rule.there.split("|")):
            match = _pattern(there).fullmatch(module)
            if match is not None:
                return rule, half, f"{_fill(rule.here, match.groupdict())}.{leaf}"
    return None


def _pattern(name: str) -> re.Pattern:
    pattern = re.escape(name)
    for placeholder in "iIj":
        pattern = pattern.replace(rf"\{{{placeholder}\}}", rf"(?P<{placeholder}>\d+)")
    return re.compile(pattern)


def _fill(name: str, numbers: dict[str, str]) -> str:
    values = dict(numbers)
    if "I" in values:
        values.setdefault("i", str(int(values["I"]) - 1))
    if "i" in values:
        values.setdefault("I", str(int(values["i"]) + 1))
    return name.format(**values)
