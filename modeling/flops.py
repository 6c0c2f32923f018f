"""Multiply-adds of SegFormer by its parts, for one image.

As the layers compute them: matrix products and convolutions; norms, activations and interpolation
are left out. The decode head's are those of modeling/head.py, far below the paper's form.
"""


def block_flops(
    height: int,
    width: int,
    *,
    depths,
    hidden_sizes,
    sr_ratios,
    mlp_ratios,
    patch_sizes,
    strides,
    num_channels: int = 3,
    **_others,
) -> list[int]:
    """Multiply-adds of each block of the encoder, in order, for an image of `height` x `width`.

    A stage's patch embedding counts with its first block. The arguments are those of
    SegformerPreTrainModel; others of a model's config are ignored.
    """
    flops = []
    in_channels = num_channels
    for depth, channels, sr_ratio, mlp_ratio, patch_size, stride in zip(
        depths, hidden_sizes, sr_ratios, mlp_ratios, patch_sizes, strides
    ):
        height, width = -(-height // stride), -(-width // stride)
        tokens, reduced = height * width, (height // sr_ratio) * (width // sr_ratio)
        hidden = int(channels * mlp_ratio)
        attention = (
            2 * tokens * channels**2  # q, proj
            + 2 * reduced * channels**2  # kv
            + 2 * tokens * reduced * channels  # scores, and their product with the values
        )
        if sr_ratio > 1:
            attention += reduced * (sr_ratio * channels) ** 2
        mlp = 2 * tokens * channels * hidden + 9 * tokens * hidden
        first = len(flops)
        flops += [attention + mlp] * depth
        flops[first] += tokens * patch_size**2 * in_channels * channels
        in_channels = channels
    return flops


def decode_head_flops(
    height: int,
    width: int,
    *,
    hidden_sizes,
    strides,
    decoder_hidden_size: int,
    num_classes: int,
    **_others,
) -> int:
    """Multiply-adds of the decode head for an image of `height` x `width`."""
    pixels = []  # of each scale, finest first
    for stride in strides:
        height, width = -(-height // stride), -(-width // stride)
        pixels.append(height * width)
    products = sum(count * channels for count, channels in zip(pixels, hidden_sizes))
    return (products + pixels[0] * num_classes) * decoder_hidden_size
