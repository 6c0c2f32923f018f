"""What shows of a model in the shapes of its weights, named as in this project."""

from collections.abc import Mapping

from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.sizes import SIZES

Shapes = Mapping[str, tuple[int, ...]]

# Of the first two stages of PVTv2, whose names and sizes are the same otherwise; here it is 4.
_PVT_RATIO = 8


def sizes_of(shapes: Shapes) -> dict:
    """The settings of a model that show; its heads, strides and eps do not.

    Raises InputError when a layer is missing that they are read off, or is none of a SegFormer.
    """
    hidden_sizes, depths = _stages(shapes)
    stages = range(len(depths))
    try:
        patches = [shapes[f"segformer.patch_embeds.{i}.proj.weight"] for i in stages]
        inner = [shapes[f"segformer.blocks.{i}.0.mlp.dense_4h_to_h.weight"][0] for i in stages]
        ratios = [size / channels for size, channels in zip(inner, hidden_sizes)]
        reductions = [shapes.get(f"segformer.blocks.{i}.0.attn.sr.weight", (1,)) for i in stages]
        settings = dict(
            num_channels=patches[0][1],
            depths=depths,
            hidden_sizes=hidden_sizes,
            sr_ratios=[shape[-1] for shape in reductions],
            mlp_ratios=[int(ratio) if ratio.is_integer() else ratio for ratio in ratios],
            patch_sizes=[shape[-1] for shape in patches],
        )
        if "head.weight" in shapes:
            return settings | dict(num_classes=shapes["head.weight"][1])
        classes, decoder_hidden_size = shapes["head.linear_pred.weight"][:2]
    except KeyError as error:
        raise InputError(f"the weights are not whole: {error.args[0]} is missing") from error
    except (IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError("the shapes of its tensors are not a SegFormer's") from error
    return settings | dict(num_classes=classes, decoder_hidden_size=decoder_hidden_size)


def name_of_size(shapes: Shapes) -> str | None:
    """What the weights of an encoder are.

    "B2", "PVTv2-B2", "an encoder of 8, 16 channels and 1, 1 blocks"; None where that does not show.
    """
    channels, blocks = _stages(shapes)
    if not channels:
        return None
    hidden = shapes.get("segformer.blocks.0.0.mlp.dense_h_to_4h.bias")
    is_pvt = hidden == (_PVT_RATIO * channels[0],)
    for name, size in SIZES.items():
        if (size["hidden_sizes"], size["depths"]) == (tuple(channels), tuple(blocks)):
            return f"PVTv2-{name.upper()}" if is_pvt else name.upper()
    listed = (", ".join(map(str, numbers)) for numbers in (channels, blocks))
    return "an encoder of {} channels and {} blocks".format(*listed)


def _stages(shapes: Shapes) -> tuple[list[int], list[int]]:
    """Channels and number of blocks of each stage."""
    channels, blocks = [], []
    while (shape := shapes.get(f"segformer.layer_norms.{len(channels)}.weight")) is not None:
        prefix = f"segformer.blocks.{len(channels)}."
        blocks.append(sum(k.startswith(prefix) and k.endswith(".norm1.weight") for k in shapes))
        channels.append(shape[0] if shape else 0)
    return channels, blocks
