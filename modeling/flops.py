"""Parameters and multiply-adds of SegFormer by its parts, for one image.

A multiply-add counts as one, as in the paper's tables. Counted are matrix products, those of
attention among them, and convolutions. Biases, norms, activations, softmax and interpolation are
left out.

The paper's figures were taken with mmcv's get_model_complexity_info, which counts in hooks of
modules and so sees no product inside attention; the authors' script (tools/get_flops.py of
NVlabs/SegFormer) adds those by formula. That is what is counted here, but for biases of
convolutions, batch norm and ReLU, which mmcv counts too: the paper's form is up to 0.2% below the
paper's table. Its figures for Cityscapes are those of 150 classes.

The decode head has two forms. The paper's takes four maps to E channels each, concatenates them at
the finest map's size and fuses 4E to E channels there, at every pixel. Here (modeling/head.py) the
fuse weight is multiplied into the weights before it, once a batch, and never with a pixel.
"""

from typing import NamedTuple


class Count(NamedTuple):
    parameters: int
    flops: int


class Stage(NamedTuple):
    """One stage of the encoder."""

    depth: int
    patch_embedding: Count
    attention: Count  # of one block
    mix_ffn: Count  # of one block
    norms: Count  # of the whole stage


class Part(NamedTuple):
    """A line of the table: multiply-adds as computed here, and in the paper's form."""

    name: str
    parameters: int
    flops: int
    paper_flops: int


def encoder_stages(
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
) -> list[Stage]:
    """The stages for an image of `height` x `width`.

    The arguments are those of SegformerPreTrainModel; others of a model's config are ignored.
    """
    stages = []
    in_channels = num_channels
    for depth, channels, sr_ratio, mlp_ratio, patch_size, pixels in zip(
        depths, hidden_sizes, sr_ratios, mlp_ratios, patch_sizes, _map_sizes(height, width, strides)
    ):
        tokens, reduced = pixels[0] * pixels[1], (pixels[0] // sr_ratio) * (pixels[1] // sr_ratio)
        kernel = patch_size**2 * in_channels * channels
        patch_embedding = Count(kernel + channels, tokens * kernel)
        attention = Count(
            4 * (channels**2 + channels),
            2 * tokens * channels**2  # q, proj
            + 2 * reduced * channels**2  # kv
            + 2 * tokens * reduced * channels,  # scores, and their product with the values
        )
        norms = 2 + 2 * depth  # after the patch embedding and the stage, two a block
        if sr_ratio > 1:
            kernel = (sr_ratio * channels) ** 2
            attention = Count(
                attention.parameters + kernel + channels, attention.flops + reduced * kernel
            )
            norms += depth
        hidden = int(channels * mlp_ratio)
        weights = 2 * channels * hidden + 9 * hidden
        mix_ffn = Count(weights + hidden + hidden + channels, tokens * weights)
        norm = Count(norms * 2 * channels, 0)
        stages.append(Stage(depth, patch_embedding, attention, mix_ffn, norm))
        in_channels = channels
    return stages


def block_flops(height: int, width: int, **settings) -> list[int]:
    """Multiply-adds of each block of the encoder, in order, for an image of `height` x `width`.

    A stage's patch embedding counts with its first block. Settings as in `encoder_stages`.
    """
    flops = []
    for stage in encoder_stages(height, width, **settings):
        first = len(flops)
        flops += [stage.attention.flops + stage.mix_ffn.flops] * stage.depth
        flops[first] += stage.patch_embedding.flops
    return flops


def decode_head_parts(
    height: int,
    width: int,
    *,
    hidden_sizes,
    strides,
    decoder_hidden_size: int,
    num_classes: int,
    **_others,
) -> list[Part]:
    """The parts of the decode head for an image of `height` x `width`."""
    pixels = [rows * columns for rows, columns in _map_sizes(height, width, strides)]
    size, scales = decoder_hidden_size, len(pixels)
    channels = sum(hidden_sizes)
    linear = sum(count * channels for count, channels in zip(pixels, hidden_sizes)) * size
    classifier = pixels[0] * size * num_classes
    return [
        Part("head, linear layers", (channels + scales) * size, linear, linear),
        Part(
            "head, fusion",
            scales * size**2,
            channels * size**2,  # of weights, once a batch
            pixels[0] * scales * size**2,
        ),
        Part("head, batch norm", 2 * size, 0, 0),
        Part("head, classifier", (size + 1) * num_classes, classifier, classifier),
    ]


def decode_head_flops(height: int, width: int, **settings) -> int:
    """Multiply-adds with pixels in the decode head; settings as in `decode_head_parts`."""
    linear, _, _, classifier = decode_head_parts(height, width, **settings)
    return linear.flops + classifier.flops


def model_parts(height: int, width: int, **settings) -> list[Part]:
    """All parts of the model whose config is `settings`, of segmentation or of classification."""
    parts = []
    for number, stage in enumerate(encoder_stages(height, width, **settings), start=1):
        for name, count, times in (
            ("patch embedding", stage.patch_embedding, 1),
            ("attention", stage.attention, stage.depth),
            ("Mix-FFN", stage.mix_ffn, stage.depth),
            ("norms", stage.norms, 1),
        ):
            flops = times * count.flops
            parts.append(Part(f"stage {number}, {name}", times * count.parameters, flops, flops))
    if "decoder_hidden_size" in settings:
        return parts + decode_head_parts(height, width, **settings)
    channels, classes = settings["hidden_sizes"][-1], settings["num_classes"]
    flops = channels * classes
    return [*parts, Part("classifier", flops + classes, flops, flops)]


def _map_sizes(height: int, width: int, strides) -> list[tuple[int, int]]:
    """(height, width) of each stage's map."""
    sizes = []
    for stride in strides:
        height, width = -(-height // stride), -(-width // stride)
        sizes.append((height, width))
    return sizes
