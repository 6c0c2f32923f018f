"""The all-MLP decode head."""

import oneflow as flow
from oneflow import nn

from projects.SegFormer.modeling import cpu_kernels as kernels
from projects.SegFormer.modeling.arrays import Array, on_cpu
from projects.SegFormer.modeling.layers import (
    BatchNorm,
    ChannelDropout,
    Linear,
    add_up,
    linear,
    own_channels,
    parameter,
    plus,
    relu,
    sharded_sbp,
    sum_gradients,
    taking,
    tensor_parallel,
    upsampled_sum,
)


class DecodeHead(nn.Module):
    """Fuses the four feature maps of the encoder into logits (paper section 3.2).

    Each map is projected to `embed_dim` channels, upsampled to the first map's size and fused by a
    1x1 convolution over their concatenation; batch norm, ReLU, channel dropout and a classifier
    follow. All up to the batch norm is linear, and interpolation commutes with 1x1 convolution. So
    the weight of each projection is multiplied with its slice of the fuse weight, each map with
    that product at its own size, and the results are upsampled and added: the same sums, without
    the concatenation and with less than a tenth of the products.

    The tensor-parallel ranks share the channels from the fusion to the classifier, which adds up.

    Args:
        in_channels: channels of the maps, finest first.
        embed_dim: channels of the head.
        num_classes: channels of the result.
        dropout: probability of dropping a channel before the classifier.
    Shape: [(N, H_i, W_i, C_i)] -> (N, H_0, W_0, num_classes), channels first if that is asked for.
    """

    def __init__(
        self,
        in_channels: list[int],
        embed_dim: int,
        num_classes: int,
        dropout: float = 0.1,
        *,
        layer_idx: int = -1,
    ):
        super().__init__()
        self.linear_c = nn.ModuleList(
            [_Projection(channels, embed_dim, layer_idx) for channels in in_channels]
        )
        split, join = (tensor_parallel(embed_dim, parallel) for parallel in ("col", "row"))
        self.linear_fuse = _PointwiseConv(
            embed_dim * len(in_channels), embed_dim, layer_idx, split, bias=False
        )
        self.batch_norm = BatchNorm(embed_dim, layer_idx=layer_idx)
        self.dropout = ChannelDropout(dropout)
        self.linear_pred = _PointwiseConv(embed_dim, num_classes, layer_idx, join)

    @on_cpu
    def forward(self, features, noise=None, channels_first: bool = False):
        take = taking(features[0])
        matrices, bias = self._fusion(take) if self.training else self.folded(take)
        biases = [bias, *[None] * (len(matrices) - 1)]  # added once, it is in the whole sum
        features = [sum_gradients(x, self.linear_fuse.parallel) for x in features]
        x = upsampled_sum([linear(*each) for each in zip(features, matrices, biases)])
        if self.training:
            x = self.batch_norm(x)
        x = self.dropout(relu(x), noise)
        return self.linear_pred.channels_first(x) if channels_first else self.linear_pred(x)

    def folded(self, take=lambda parameter: parameter):
        """All that comes before the ReLU in evaluation, as one linear layer over the four maps.

        The projections, the fuse layer and batch norm with its running statistics: the maps times
        their matrices, upsampled and added, and the bias. Parameters stay as they are.

        Args:
            take: what is computed with in the place of a parameter.
        Shape: () -> [(C_i, embed_dim)] finest first, (embed_dim,).
        """
        matrices, bias = self._fusion(take)
        channels = matrices[0].shape[-1]
        scale, shift = (own_channels(x, channels) for x in self.batch_norm.affine(take))
        return [matrix * scale for matrix in matrices], bias * scale + shift

    def _fusion(self, take):
        """The projections and the fuse layer: [(C_i, embed_dim)] finest first, (embed_dim,)."""
        fuse = self.linear_fuse.matrix(take)
        size = fuse.shape[0] // len(self.linear_c)
        # The fuse weight is laid out for the coarsest map first, as in the paper's code.
        slices = [fuse.narrow(0, start, size) for start in range(0, fuse.shape[0], size)][::-1]
        projections = [projection.proj for projection in self.linear_c]
        weights, biases = (
            [sum_gradients(take(parameter), self.linear_fuse.parallel) for parameter in parameters]
            for parameters in zip(*((p.weight, p.bias) for p in projections))
        )
        matrices = [linear(weight, part) for weight, part in zip(weights, slices)]
        bias, *others = [linear(b.reshape(1, -1), part) for b, part in zip(biases, slices)]
        return matrices, sum(others, bias).reshape(-1)


class _Projection(nn.Module):
    """The MLP of one scale: a linear layer, named `proj` as in the paper's code."""

    def __init__(self, in_channels: int, embed_dim: int, layer_idx: int):
        super().__init__()
        self.proj = Linear(in_channels, embed_dim, layer_idx=layer_idx)


class _PointwiseConv(nn.Module):
    """A 1x1 convolution on channels-last maps. Weight (out, in, 1, 1), as in nn.Conv2d."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layer_idx: int,
        parallel: str,
        bias: bool = True,
    ):
        super().__init__()
        self.in_features, self.parallel = in_channels, parallel
        sbp = sharded_sbp(1 if parallel == "row" else 0, parallel)
        self.weight = parameter((out_channels, in_channels, 1, 1), layer_idx, sbp)
        self.bias = parameter((out_channels,), layer_idx) if bias else None

    def matrix(self, take=lambda parameter: parameter):
        """The weight as an (in, out) matrix."""
        return take(self.weight).reshape(-1, self.in_features).transpose(0, 1)

    def forward(self, x):
        if isinstance(x, Array):
            x = add_up(kernels.pointwise_conv2d(x, self.weight))
        else:
            x = add_up(flow.matmul(x, self.matrix()))
        return plus(x, self.bias)

    def channels_first(self, x):
        """The result as (N, out, H, W), by a product in that order: no transposition after it."""
        if isinstance(x, Array):
            x = add_up(kernels.pointwise_conv2d(x, self.weight, channels_first=True))
            return plus(x, self.bias, axis=1)
        n, height, width, channels = x.shape
        tokens = x.reshape(n, height * width, channels)
        weight = self.weight.reshape(self.weight.shape[0], channels)
        x = add_up(flow._C.matmul(weight, tokens, False, True)).reshape(n, -1, height, width)
        return plus(x, self.bias, axis=1)
