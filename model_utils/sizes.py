"""How weights are recognised as one of the paper's sizes."""

from collections.abc import Mapping

from projects.SegFormer.modeling.sizes import SIZES

# Of the first two stages of PVTv2, whose names and sizes are the same otherwise; here it is 4.
_PVT_RATIO = 8


def name_of_size(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What the weights of an encoder are, from their shapes, named as in this project.

    "B2", "PVTv2-B2", "an encoder of 8, 16 channels and 1, 1 blocks"; None where that does not show.
    """
    channels, blocks = [], []
    while (shape := shapes.get(f"segformer.layer_norms.{len(channels)}.weight")) is not None:
        prefix = f"segformer.blocks.{len(channels)}."
        blocks.append(sum(k.startswith(prefix) and k.endswith(".norm1.weight") for k in shapes))
        channels.append(shape[0] if shape else 0)
    if not channels:
        return None
    hidden = shapes.get("segformer.blocks.0.0.mlp.dense_h_to_4h.bias")
    is_pvt = hidden == (_PVT_RATIO * channels[0],)
    for name, size in SIZES.items():
        if (size["hidden_sizes"], size["depths"]) == (tuple(channels), tuple(blocks)):
            return f"PVTv2-{name.upper()}" if is_pvt else name.upper()
    listed = (", ".join(map(str, numbers)) for numbers in (channels, blocks))
    return "an encoder of {} channels and {} blocks".format(*listed)
