"""Layers of SegFormer, fitted to OneFlow 0.9.

Activations are channels-last everywhere: tokens (N, L, C) or maps (N, H, W, C). On a GPU the layers
call OneFlow's own kernels. On a CPU some of those are missing or slow, and a second form with the
same parameters and the same result is used, chosen by the device of the input:

- LayerNorm: there is no kernel, and nn.LayerNorm's composed form spends ten times as long in
  broadcasts along an axis of size 1. Instead: means by matrix products.
- DepthwiseConv2d: a grouped convolution takes seven times as long. Instead: nine shifted products.
- gelu: its gradient takes three times as long. Instead: the forward pass's result and a softmax.
- Conv2d: the kernel copies overlapping patches and wants channels first. Instead: one product over
  blocks of pixels.
- upsample_bilinear: channels first only. Instead: products with interpolation matrices.
- in_strips: results that do not fit the caches take up to half as long again. Instead: some rows at
  a time.

Each can go when the kernel it replaces is there and as fast.
"""

import math
from functools import cache, lru_cache

import numpy as np
import oneflow as flow
import oneflow.nn.functional as F
from libai.layers import Linear as ParallelLinear
from libai.utils import distributed as dist
from oneflow import nn
from oneflow.framework import graph_build_util


def broadcast_sbp() -> list:
    """The sbp of a tensor that every rank holds whole."""
    return dist.get_nd_sbp([flow.sbp.broadcast, flow.sbp.broadcast])


def batch_sbp() -> list:
    """The sbp of a tensor split over the data-parallel ranks along its first axis."""
    return dist.get_nd_sbp([flow.sbp.split(0), flow.sbp.broadcast])


def sharded_sbp(axis: int, parallel: str) -> list:
    """The sbp of a parameter: with "data" whole, else split over the tensor-parallel ranks."""
    split = flow.sbp.broadcast if parallel == "data" else flow.sbp.split(axis)
    return dist.get_nd_sbp([flow.sbp.broadcast, split])


def add_up(x):
    """A sum of which the tensor-parallel ranks hold parts, whole on each (Megatron's g)."""
    if dist.get_tensor_parallel_size() == 1:
        return x
    return x.to_global(sbp=_whole_sbp(x))


def gather(x):
    """The last axis, of which the tensor-parallel ranks hold parts, whole on each."""
    if dist.get_tensor_parallel_size() == 1:
        return x
    return x.to_global(sbp=_whole_sbp(x), grad_sbp=x.sbp)


def _whole_sbp(x) -> tuple:
    return (*x.sbp[:-1], flow.sbp.broadcast)


def sum_gradients(x):
    """`x`, whose gradient becomes the sum of what the ranks find of it (Megatron's f).

    It belongs before layers that are split over the tensor-parallel ranks, once for all that have
    the same input. Behind a weight that is rearranged before its use it keeps OneFlow 0.9's graphs
    from summing only after the rearrangement, with a split that their slicing gets wrong.
    """
    return x if dist.get_world_size() == 1 else x.to_global(grad_sbp=x.sbp)


def tensor_parallel(count: int, parallel: str = "col") -> str:
    """`parallel` when the tensor-parallel ranks can share `count` things equally, else "data"."""
    return "data" if count % dist.get_tensor_parallel_size() else parallel


def is_on_cpu(x: flow.Tensor) -> bool:
    return x.placement.type == "cpu"


STRIP_VALUES = 2**20  # what an intermediate result of a strip has: 4 MB


def in_strips(function, x, values: int, halo: int = 0):
    """function(x), on a CPU some rows at a time: what it computes in between stays in its caches.

    Args:
        function: maps (N, rows, W, C) to (N, rows, W, C'), of which a row depends on its own row
            and on `halo` rows on both sides.
        x: (N, H, W, C).
        values: of its largest intermediate result.
    Shape: (N, H, W, C').
    """
    height = x.shape[1]
    strips = min(-(-values // STRIP_VALUES), height)
    if strips < 2 or not is_on_cpu(x) or x.is_lazy:
        return function(x)
    bounds = [height * strip // strips for strip in range(strips + 1)]
    results = []
    for start, end in zip(bounds, bounds[1:]):
        first, last = max(start - halo, 0), min(end + halo, height)
        result = function(x.narrow(1, first, last - first))
        results.append(result.narrow(1, start - first, end - start) if halo else result)
    return flow.cat(results, dim=1)


def parameter(shape: tuple, layer_idx: int, sbp: list | None = None) -> nn.Parameter:
    """A parameter of zeros on the ranks of layer `layer_idx`; `init_weights` fills it."""
    return nn.Parameter(
        flow.zeros(
            shape,
            dtype=flow.float32,
            placement=dist.get_layer_placement(layer_idx),
            sbp=sbp or broadcast_sbp(),
        )
    )


def constant(values: np.ndarray, placement: flow.placement) -> flow.Tensor:
    """A constant on every rank of `placement`, made eagerly even while a graph is being traced."""
    with graph_build_util.lazy_mode.guard(False):
        return flow.tensor(
            values, placement=placement, sbp=[flow.sbp.broadcast] * placement.ranks.ndim
        )


class Linear(ParallelLinear):
    """LiBai's Linear: weight (in, out), and tensor parallel by column or by row.

    "col" gives each tensor-parallel rank a part of the outputs, "row" takes such parts for inputs
    and gives the whole sum. Before "col" belongs `sum_gradients`, which LiBai's Linear calls for
    each layer by itself. LiBai's "data" mode splits the batch over the tensor-parallel ranks as
    well, which fails for a batch smaller than their number; here all compute the same.
    """

    def __init__(
        self, in_features: int, out_features: int, *, layer_idx: int, parallel: str = "data"
    ):
        super().__init__(
            in_features,
            out_features,
            parallel=parallel,
            init_method=lambda weight: None,  # `init_weights` fills it
            layer_idx=layer_idx,
        )

    def forward(self, x):
        x = flow.matmul(x, self.weight)
        if self.parallel == "row":
            x = add_up(x)
        return x + self.bias


class KeyValueLinear(Linear):
    """Keys and values from the same tokens: weight (in, 2 * out), keys first.

    With "col" each tensor-parallel rank computes both of its own heads. What it holds, though, is a
    run of neighbouring columns: of two ranks one holds all keys, one all values. So the weight,
    which is smaller than what is computed with it, is gathered and dealt out again in every step.

    Shape: (..., in) -> two of (..., out).
    """

    def __init__(
        self, in_features: int, out_features: int, *, layer_idx: int, parallel: str = "data"
    ):
        super().__init__(in_features, 2 * out_features, layer_idx=layer_idx, parallel=parallel)

    def forward(self, x):
        if self.parallel == "data":
            return flow.chunk(flow.matmul(x, self.weight) + self.bias, 2, dim=-1)
        weights, biases = _dealt_halves(self.weight), _dealt_halves(self.bias)
        return [flow.matmul(x, weight) + bias for weight, bias in zip(weights, biases)]


def _dealt_halves(tensor):
    """The halves of the last axis, each split over the tensor-parallel ranks along that axis."""
    halves = flow.chunk(gather(tensor), 2, dim=-1)
    return [half.to_global(sbp=tensor.sbp, grad_sbp=half.sbp) for half in halves]


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis.

    Args:
        channels: size C of the last axis.
        eps: added to the variance.
    Shape: (..., C) -> (..., C).
    """

    def __init__(self, channels: int, eps: float, *, layer_idx: int):
        super().__init__()
        self.eps = eps
        self.weight = parameter((channels,), layer_idx)
        self.bias = parameter((channels,), layer_idx)

    def forward(self, x):
        if not is_on_cpu(x):
            return flow._C.layer_norm_affine(
                x,
                self.weight,
                self.bias,
                begin_norm_axis=x.ndim - 1,
                begin_params_axis=x.ndim - 1,
                epsilon=self.eps,
            )
        with flow.no_grad():
            centred = x.detach() - row_mean(x.detach())
            inverse_std = flow.rsqrt(_mean_column(centred * centred) + self.eps)  # (..., 1)
            normalised = centred * spread(inverse_std, x.shape[-1])
        return _LayerNormOnCpu.apply(x, normalised, inverse_std, self.weight, self.bias)


def _filled_column(channels: int, value: float, like):
    """(channels, 1), a global or a local tensor as `like` is."""
    if like.is_local:
        return flow.full((channels, 1), value, dtype=flow.float32)
    return _global_column(channels, value, like.placement)


@lru_cache(maxsize=64)  # of maps of many sizes not all
def _global_column(channels: int, value: float, placement: flow.placement) -> flow.Tensor:
    return constant(np.full((channels, 1), value, np.float32), placement)


def _mean_column(x):
    """(..., C) -> (..., 1)."""
    channels = x.shape[-1]
    return flow.matmul(x, _filled_column(channels, 1.0 / channels, x))


def spread(column, channels: int):
    """(..., 1) -> (..., C), by an outer product: OneFlow's CPU broadcast takes 40 times as long."""
    ones = _filled_column(channels, 1.0, column)
    return flow._C.matmul(column, ones, False, True)


def row_mean(x):
    """The mean over the last axis, repeated along it: (..., C) -> (..., C)."""
    return spread(_mean_column(x), x.shape[-1])


class _LayerNormOnCpu(flow.autograd.Function):
    """normalised * weight + bias, with the gradient of layer normalisation (Ba et al. 2016)."""

    @staticmethod
    def forward(ctx, x, normalised, inverse_std, weight, bias):
        ctx.save_for_backward(normalised, inverse_std, weight)
        return normalised * weight + bias

    @staticmethod
    def backward(ctx, grad):
        normalised, inverse_std, weight = ctx.saved_tensors
        batch_axes = list(range(grad.ndim - 1))
        grad_weight = (grad * normalised).sum(batch_axes)
        grad_bias = grad.sum(batch_axes)
        grad = grad * weight
        grad_x = grad - row_mean(grad) - normalised * row_mean(grad * normalised)
        return grad_x * spread(inverse_std, grad.shape[-1]), None, None, grad_weight, grad_bias


class DepthwiseConv2d(nn.Module):
    """3x3 convolution of each channel with its own kernel, padding 1, with bias.

    With `parallel="col"` the channels, and with them weight and bias, are split over the
    tensor-parallel ranks; no communication is needed.

    Shape: (N, H, W, C) -> (N, H, W, C). Weight (C, 1, 3, 3), as in nn.Conv2d.
    """

    def __init__(self, channels: int, *, layer_idx: int, parallel: str = "data"):
        super().__init__()
        sbp = sharded_sbp(0, parallel)
        self.weight = parameter((channels, 1, 3, 3), layer_idx, sbp)
        self.bias = parameter((channels,), layer_idx, sbp)

    def forward(self, x):
        channels = x.shape[-1]
        if not is_on_cpu(x):
            x = x.permute(0, 3, 1, 2)
            x = F.conv2d(x, self.weight, self.bias, padding=1, groups=channels)
            return x.permute(0, 2, 3, 1)
        taps = self.weight.reshape(channels, 9).transpose(0, 1).contiguous()  # (9, C)
        return _DepthwiseOnCpu.apply(x, taps) + self.bias


class _DepthwiseOnCpu(flow.autograd.Function):
    """Depthwise 3x3 convolution as nine shifted products.

    The map is padded by one and laid out as one row of tokens, so that every shift is a contiguous
    range of it: token t of the result is the sum over taps k of taps[k] * token t + offset(k).
    """

    @staticmethod
    def forward(ctx, x, taps):
        ctx.save_for_backward(x, taps)
        padded = _padded_tokens(_with_views(x))
        result = _correlate(padded, _with_views(taps), x.shape[1:3])
        return _without_views(result, x)

    @staticmethod
    def backward(ctx, grad):
        x, taps = ctx.saved_tensors
        padded, grad = _padded_tokens(_with_views(x)), _with_views(grad)
        n, height, width, channels = grad.shape
        grad_x = _correlate(
            _padded_tokens(grad), flow.flip(_with_views(taps), [0]), (height, width)
        )
        # The result's tokens, with two zeros in the place of those that _correlate cuts off.
        rows = F.pad(grad, (0, 0, 0, 2)).reshape(n, height * (width + 2), channels)
        rows = rows.narrow(1, 0, height * (width + 2) - 2)
        grad_taps = flow.stack(
            [_sum_of_rows(padded.narrow(1, t, rows.shape[1]) * rows) for t in _starts(width)], 0
        )
        return _without_views(grad_x, x), _without_views(grad_taps, taps)


def _padded_tokens(x):
    """(N, H, W, C) -> (N, (H+2)*(W+2), C), a border of zeros around the map."""
    n, height, width, channels = x.shape
    return F.pad(x, (0, 0, 1, 1, 1, 1)).reshape(n, (height + 2) * (width + 2), channels)


def _starts(width: int) -> list[int]:
    """Where the tokens of each of the nine taps begin in the padded row."""
    return [row * (width + 2) + column for row in range(3) for column in range(3)]


def _correlate(padded, taps, size: tuple[int, int]):
    """Sum of the nine shifted products: (N, (H+2)*(W+2), C), (9, C) -> (N, H, W, C)."""
    height, width = size
    n, _, channels = padded.shape
    length = height * (width + 2) - 2
    total = None
    for tap, start in enumerate(_starts(width)):
        product = padded.narrow(1, start, length) * taps[tap]
        total = product if total is None else total + product
    rows = F.pad(total, (0, 0, 0, 2)).reshape(n, height, width + 2, channels)
    return rows.narrow(2, 0, width).contiguous()


def _sum_of_rows(x):
    """(N, L, C) -> (C,): a product with ones, which takes less time than a sum of local tensors."""
    if x.is_global:
        return x.sum((0, 1))
    ones = flow.ones_like(x.narrow(2, 0, 1)).reshape(x.shape[0], 1, x.shape[1])
    return flow.matmul(ones, x).sum((0, 1))


def _with_views(x):
    """A global tensor's only part: there narrow and reshape copy nothing.

    Of several ranks some may have no part, in a graph no tensor has: there it stays global, and
    what is done with it has to be right for both.
    """
    return x if x.is_lazy or dist.get_world_size() > 1 else x.to_local()


def _without_views(x, like):
    """What `_with_views` began, as a global tensor that is placed and split as `like` is."""
    return x if x.is_global else x.to_global(placement=like.placement, sbp=like.sbp)


def gelu(x):
    """GELU (Hendrycks and Gimpel 2016), the exact one with the error function."""
    if not is_on_cpu(x) or x.is_lazy or dist.get_world_size() > 1:
        return F.gelu(x)
    return _GeluOnCpu.apply(x)


class _GeluOnCpu(flow.autograd.Function):
    """OneFlow's GELU with a gradient that takes a third of its time.

    The gradient is F(x) + x * f(x), with the normal distribution F and its density f. F is what the
    forward pass has: gelu(x) / x.
    """

    @staticmethod
    def forward(ctx, x):
        y = F.gelu(x)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        whole = ctx.saved_tensors[0]
        x, y, grad = map(_with_views, (*ctx.saved_tensors, grad))
        tiny = 1e-20  # makes 1 / 2 of 0 / 0
        distribution = (y + tiny / 2) / (x + tiny)
        density = _exp_of_negatives(x * x * -0.5) * (2 * math.pi) ** -0.5
        return _without_views(grad * (distribution + x * density), whole)


def _exp_of_negatives(x):
    """exp(x) of values that are 0 or less, those below -60 taken for it: (..., C) -> (..., C).

    OneFlow's exp computes one value after the other, its softmax many at once. A row's softmax is
    its exp times one factor, which its first value tells.
    """
    x = flow.clamp(x, min=-60.0)
    softmax = flow.softmax(x, dim=-1)
    first, first_softmax = (values.narrow(-1, 0, 1).contiguous() for values in (x, softmax))
    return softmax * spread(flow.exp(first) / first_softmax, x.shape[-1])


class Conv2d(nn.Module):
    """Convolution with a stride: patch embedding and spatial reduction.

    With `parallel="col"` the tensor-parallel ranks share the output channels and then gather them.

    Shape: (N, H, W, C_in) -> (N, H', W', C_out), H' = (H + 2 * padding - kernel_size) // stride +
        1.
    Weight (C_out, C_in, k, k), as in nn.Conv2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int = 0,
        *,
        layer_idx: int,
        parallel: str = "data",
    ):
        super().__init__()
        self.stride, self.padding, self.parallel = stride, padding, parallel
        sbp = sharded_sbp(0, parallel)
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = parameter(shape, layer_idx, sbp)
        self.bias = parameter((out_channels,), layer_idx, sbp)

    def forward(self, x):
        if is_on_cpu(x):
            x = block_conv2d(x, self.weight, self.stride, self.padding) + self.bias
        else:
            x = x.permute(0, 3, 1, 2)
            x = F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)
            x = x.permute(0, 2, 3, 1)
        return gather(x) if self.parallel == "col" else x


def block_conv2d(x, weight, stride: int, padding: int):
    """A strided convolution as one matrix product over blocks of stride x stride pixels.

    The kernel is widened with zeros until it covers whole blocks: b x b of them. Then each output
    pixel is a product of b * b neighbouring blocks, all pixels of a block side by side, with the
    widened kernel.

    Shape: (N, H, W, C), (O, C, k, k) -> (N, H', W', O).
    """
    n, height, width, channels = x.shape
    out_channels, _, kernel_size, _ = weight.shape
    lead = -padding % stride  # zeros before the kernel, so that it begins at a block's edge
    blocks = -(-(kernel_size + lead) // stride)
    trail = blocks * stride - kernel_size - lead
    out_height = (height + 2 * padding - kernel_size) // stride + 1
    out_width = (width + 2 * padding - kernel_size) // stride + 1

    before = padding + lead
    block_rows, block_columns = out_height + blocks - 1, out_width + blocks - 1
    below = block_rows * stride - before - height
    right = block_columns * stride - before - width
    if (before, below, right) != (0, 0, 0):  # a negative pad crops what no output pixel sees
        x = F.pad(x, (0, 0, before, right, before, below))
    x = x.reshape(n, block_rows, stride, block_columns, stride, channels)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(n, block_rows, block_columns, stride**2 * channels)
    if blocks > 1:
        x = flow.cat(
            [
                x.narrow(1, row, out_height).narrow(2, column, out_width)
                for row in range(blocks)
                for column in range(blocks)
            ],
            dim=-1,
        )
    if lead or trail:
        weight = F.pad(weight, (lead, trail, lead, trail))
    weight = weight.reshape(out_channels, channels, blocks, stride, blocks, stride)
    weight = weight.permute(2, 4, 3, 5, 1, 0).reshape(-1, out_channels)  # (b*b * s*s * C, O)
    return flow.matmul(x, sum_gradients(weight))


def upsample_bilinear(x, size: tuple[int, int]):
    """Bilinear interpolation with half-pixel centres (align_corners False).

    Shape: (N, H, W, C) -> (N, *size, C).
    """
    n, height, width, channels = x.shape
    if (height, width) == tuple(size):
        return x
    if not is_on_cpu(x):
        x = x.permute(0, 3, 1, 2)
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return x.permute(0, 2, 3, 1)
    x = upsample_columns(x, size[1])
    x = _upsample_rows(x.reshape(n, height, size[1] * channels), size[0])
    return x.reshape(n, *size, channels)


def upsample_columns(x, new_width: int):
    """Linear interpolation along the width: (N, H, W, C) -> (N, H, new_width, C)."""
    n, height, width, channels = x.shape
    x = _upsample_rows(x.reshape(n * height, width, channels), new_width)
    return x.reshape(n, height, new_width, channels)


def _upsample_rows(x, new_length: int):
    """Linear interpolation along an axis, by products with interpolation matrices.

    Shape: (N, L, K) -> (N, new_length, K).
    """
    n, length, size = x.shape
    if new_length == length:
        return x
    if not has_windows(length, new_length):
        return flow.matmul(_interpolation_matrix(length, new_length, x.placement), x)
    matrix = window_matrix(((WINDOW, new_length // length),), x.placement)
    return flow.matmul(matrix, row_windows(x, WINDOW)).reshape(n, new_length, size)


WINDOW = 4  # rows that are upsampled by one product


def has_windows(length: int, new_length: int) -> bool:
    """Whether an axis can be upsampled window by window: by a whole factor, in whole windows."""
    return new_length % length == 0 and length % WINDOW == 0 and length > WINDOW


def row_windows(x, rows: int):
    """`rows` rows and the row before and after: (N, L, K) -> (N, L / rows, rows + 2, K).

    At the ends the first and the last row are repeated. Of such a window `window_matrix` makes all
    rows that lie within, which of the whole axis would be a product with zeros for the most part.
    """
    n, length, size = x.shape
    x = x.reshape(n, length // rows, rows, size)
    firsts, lasts = x.narrow(2, 0, 1), x.narrow(2, rows - 1, 1)
    others = length // rows - 1
    before = flow.cat([firsts.narrow(1, 0, 1), lasts.narrow(1, 0, others)], dim=1)
    after = flow.cat([firsts.narrow(1, 1, others), lasts.narrow(1, others, 1)], dim=1)
    return flow.cat([before, x, after], dim=2)


@cache
def window_matrix(windows: tuple[tuple[int, int], ...], placement: flow.placement) -> flow.Tensor:
    """Interpolation within windows, and the sum of several.

    Args:
        windows: (rows, factor) of each; rows * factor is the same for all.
    Shape: (rows * factor, sum of rows + 2).
    """
    weights = [
        interpolation_weights(rows + 2, (rows + 2) * factor)[factor:-factor]
        for rows, factor in windows
    ]
    return constant(np.concatenate(weights, axis=1).astype(np.float32), placement)


def upsampled_sum(maps: list):
    """All maps at the size of the first, and added: [(N, H_i, W_i, C)] -> (N, H_0, W_0, C)."""
    first, *others = maps
    n, height, width, channels = first.shape
    coarsest = others[-1].shape[1]
    whole = all(height % m.shape[1] == 0 == m.shape[1] % coarsest for m in others)
    if not (is_on_cpu(first) and whole and has_windows(coarsest, height)):
        return sum((upsample_bilinear(m, (height, width)) for m in others), first)
    # The rows of all maps that make the same rows of the sum, side by side: one product adds them.
    windows = [(WINDOW * m.shape[1] // coarsest, height // m.shape[1]) for m in others]
    columns = [upsample_columns(m, width).reshape(n, -1, width * channels) for m in others]
    rows = [row_windows(x, count) for x, (count, _) in zip(columns, windows)]
    x = flow.matmul(window_matrix(tuple(windows), first.placement), flow.cat(rows, dim=2))
    return first + x.reshape(n, height, width, channels)


@lru_cache(maxsize=64)
def _interpolation_matrix(length: int, new_length: int, placement: flow.placement) -> flow.Tensor:
    return constant(interpolation_weights(length, new_length).astype(np.float32), placement)


def interpolation_weights(length: int, new_length: int) -> np.ndarray:
    """(new_length, length): row i holds the weights of the inputs for output i."""
    centres = (np.arange(new_length) + 0.5) * length / new_length - 0.5
    centres = centres.clip(0, length - 1)[:, None]
    return np.maximum(0, 1 - np.abs(centres - np.arange(length)))


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with the statistics of the global batch.

    LiBai's wheel has no BatchNorm2d, and OneFlow's kernel takes the statistics of each rank alone.
    Here the means are global reductions: any split of the ranks gives the same numbers.

    Shape: (..., C) -> (..., C). Same state as nn.BatchNorm2d.
    """

    def __init__(self, channels: int, *, layer_idx: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = parameter((channels,), layer_idx)
        self.bias = parameter((channels,), layer_idx)
        self.register_buffer("running_mean", parameter((channels,), layer_idx).data)
        self.register_buffer("running_var", parameter((channels,), layer_idx).data + 1)

    def forward(self, x):
        if not self.training:
            scale, shift = self.affine()
            return x * scale + shift
        rows = x.reshape(-1, x.shape[-1])
        mean = rows.mean(0).to_global(sbp=broadcast_sbp())
        centred = rows - mean
        variance = (centred * centred).mean(0).to_global(sbp=broadcast_sbp())
        self._update_running(mean.detach(), variance.detach(), rows.shape[0])
        scale = self.weight * flow.rsqrt(variance + self.eps)
        return (centred * scale + self.bias).reshape(x.shape)

    def affine(self):
        """What it does in evaluation, as a factor and a summand of each channel: (C,), (C,)."""
        scale = self.weight * flow.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def _update_running(self, mean, variance, count: int):
        """Move the running statistics towards those of this batch, variance unbiased.

        A graph drops writes to a buffer, except for those of OneFlow's own normalisation kernel. So
        that kernel does it, on a batch of two rows that has this mean and this unbiased variance.
        """
        deviation = flow.sqrt(variance * (count / max(count - 1, 1) / 2))
        flow._C.normalization(
            flow.stack([mean - deviation, mean + deviation], 0),
            self.running_mean,
            self.running_var,
            self.weight.detach(),
            self.bias.detach(),
            axis=1,
            epsilon=self.eps,
            momentum=self.momentum,
            is_training=True,
        )


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops the residual branch of a whole sample.

    Args:
        drop_prob: the probability of dropping, in [0, 1).
    Shape: x (N, L, C), noise (N,) uniform in [0, 1) or None for noise of its own -> (N, L, C).
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x, noise=None):
        if not self.training or self.drop_prob == 0:
            return x
        return x * _keep_mask(x, (x.shape[0], 1, 1), self.drop_prob, noise)


class ChannelDropout(nn.Module):
    """Drops whole channels of a map (Tompson et al. 2015), as nn.Dropout2d does channels-first.

    Shape: x (N, H, W, C), noise (N, C) uniform in [0, 1) or None for noise of its own.
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x, noise=None):
        if not self.training or self.drop_prob == 0:
            return x
        n, height, width, channels = x.shape
        mask = _keep_mask(x, (n, 1, channels), self.drop_prob, noise)
        if is_on_cpu(x):  # broadcasting a middle axis takes 100 times as long there as a product
            ones = _filled_column(height * width, 1.0, x)
            mask = flow.matmul(ones, mask)
            return x * mask.reshape(x.shape)
        return x * mask.unsqueeze(1)


def _keep_mask(x, shape: tuple, drop_prob: float, noise):
    """1 / keep where the noise says keep, else 0; the expected value is 1."""
    keep_prob = 1.0 - drop_prob
    if noise is None:
        noise = flow.rand(*shape, placement=x.placement, sbp=batch_sbp())
    return flow.floor(noise.reshape(*shape).to(x.dtype) + keep_prob) / keep_prob
