"""Settings of a model, checked before anything is built from them."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real

from projects.SegFormer.modeling.bounds import MODEL_PARAMETERS, MODEL_SETTINGS, MODEL_STAGES
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.flops import model_parts

STAGE_SETTINGS = (
    *("depths", "hidden_sizes", "num_attention_heads", "sr_ratios", "mlp_ratios", "patch_sizes"),
    "strides",
)
RATES = (
    *("mlp_ratios", "drop_path_rate", "decoder_dropout", "layer_norm_eps", "embed_norm_eps"),
    "label_smoothing",
)


def check_settings(settings: Mapping) -> None:
    """Raises InputError for a setting that is no number or outside of `bounds.MODEL_SETTINGS`, for
    stages of which one lacks a value, and for a model of more parameters than any machine holds.

    Settings that are not there, or not in that table, are not looked at.
    """
    for name, (lowest, highest) in MODEL_SETTINGS.items():
        if name not in settings:
            continue
        value = settings[name]
        if name in STAGE_SETTINGS:
            if not isinstance(value, Sequence) or not 1 <= len(value) <= MODEL_STAGES:
                raise InputError(f"{name} is {value!r}: expected a list with a value a stage")
            depths = settings.get("depths", value)
            if isinstance(depths, Sequence) and len(value) != len(depths):
                raise InputError(
                    f"{name} has {len(value)} values and depths {len(depths)}: both need one a "
                    "stage"
                )
        kind = Real if name in RATES else Integral
        for number in value if name in STAGE_SETTINGS else [value]:
            is_number = isinstance(number, kind) and not isinstance(number, bool)
            if not is_number or not lowest <= number <= highest:
                whole = "" if kind is Real else "whole "
                raise InputError(
                    f"{name} is {value!r}: expected {whole}numbers from {lowest} to {highest}"
                )
    if settings.keys() >= {*STAGE_SETTINGS}:
        count = count_parameters(settings)
        if count > MODEL_PARAMETERS:
            raise InputError(
                f"a model of these settings has {count:,} parameters, more than "
                f"{MODEL_PARAMETERS:,}: are hidden_sizes and depths right?"
            )


def count_parameters(settings: Mapping) -> int:
    """Of the encoder, and of the decode head or classifier whose size is given."""
    head = {"num_classes": 1, **settings}
    return sum(part.parameters for part in model_parts(32, 32, **head))
