"""The sizes of the paper's models, by which weights are recognised."""

from collections.abc import Mapping

# By name: channels and blocks of the stages. mlp_ratios are 4 everywhere.
SIZES = {
    "B0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "B1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "B2": ((64, 128, 320, 512), (3, 4, 6, 3)),
    "B3": ((64, 128, 320, 512), (3, 4, 18, 3)),
    "B4": ((64, 128, 320, 512), (3, 8, 27, 3)),
    "B5": ((64, 128, 320, 512), (3, 6, 40, 3)),
}
_PVT_RATIO = 8  # of the first two stages of PVTv2, whose names and sizes are the same otherwise


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
        if size == (tuple(channels), tuple(blocks)):
            return f"PVTv2-{name}" if is_pvt else name
    listed = (", ".join(map(str, numbers)) for numbers in (channels, blocks))
    return "an encoder of {} channels and {} blocks".format(*listed)
