"""Layers of SegFormer, fitted to OneFlow 0.9.

Activations are channels-last everywhere: tokens (N, L, C) or maps (N, H, W, C). Each layer has two
forms with the same parameters and the same result. In graphs and on GPUs it calls OneFlow's
operators. In eager mode on a CPU, where these are slow, it is called with `Array`s (see `on_cpu`)
and calls `cpu_kernels`.
"""

import numpy as np
import oneflow as flow
import oneflow.nn.functional as F
from libai.utils import distributed as dist
from oneflow import nn
from oneflow.framework import graph_build_util
from oneflow.nn.modules.normalization import layer_norm

from projects.SegFormer.modeling import cpu_kernels as kernels
from projects.SegFormer.modeling.arrays import (
    Array,
    batch_sbp,
    broadcast_sbp,
    join_shares,
    local_values,
    on_cpu,
    operator,
    share_of,
    sum_over_batch,
    sum_over_shares,
)


def sharded_sbp(axis: int, parallel: str) -> list:
    """The sbp of a parameter: with "data" whole, else split over the tensor-parallel ranks."""
    split = flow.sbp.broadcast if parallel == "data" else flow.sbp.split(axis)
    return dist.get_nd_sbp([flow.sbp.broadcast, split])


def add_up(x):
    """A sum of which the tensor-parallel ranks hold parts, whole on each (Megatron's g)."""
    if dist.get_tensor_parallel_size() == 1:
        return x
    if isinstance(x, Array):
        return _add_up(x)
    return x.to_global(sbp=_whole_sbp(x))


def gather(x):
    """The last axis, of which the tensor-parallel ranks hold parts, whole on each."""
    if dist.get_tensor_parallel_size() == 1:
        return x
    if isinstance(x, Array):
        return _gather(x)
    return x.to_global(sbp=_whole_sbp(x), grad_sbp=x.sbp)


def _whole_sbp(x) -> tuple:
    return (*x.sbp[:-1], flow.sbp.broadcast)


def sum_gradients(x, parallel: str = "col"):
    """`x`, whose gradient becomes the sum of what the ranks find of it (Megatron's f).

    It belongs before layers that are split over the tensor-parallel ranks by column, once for all
    that have the same input; with another `parallel` it is `x`. Behind a weight that is rearranged
    before its use it keeps OneFlow 0.9's graphs from summing only after the rearrangement, with a
    split that their slicing gets wrong.
    """
    if parallel != "col" or dist.get_world_size() == 1:
        return x
    if isinstance(x, Array):
        return x if dist.get_tensor_parallel_size() == 1 else _sum_gradients(x)
    return x.to_global(grad_sbp=x.sbp)


@operator
def _add_up(x):
    return sum_over_shares(x), lambda gradient: gradient


@operator
def _gather(x):
    return join_shares(x), share_of


@operator
def _sum_gradients(x):
    return x, sum_over_shares


def taking(x):
    """What makes of a parameter what `x` is: an array of its run, or the parameter itself."""
    return x.run.take if isinstance(x, Array) else lambda parameter: parameter


def placed(x, placement: flow.placement):
    """`x` on the ranks of a pipeline's stage."""
    return x if isinstance(x, Array) else x.to_global(placement=placement)


def plus(x, bias, axis: int = -1):
    """x + bias, which has one value for each index of the axis; None adds nothing."""
    if bias is None:
        return x
    if isinstance(x, Array):
        return _plus(x, bias, axis=axis)
    return x + (bias if axis == -1 else bias.reshape(-1, *[1] * (x.ndim - axis - 1)))


@operator
def _plus(x, bias, *, axis):
    others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    aligned = np.expand_dims(bias, others)
    return x + aligned, lambda gradient: (gradient, lambda: gradient.sum(others))


def channels_last(x):
    """(N, C, H, W) -> (N, H, W, C)."""
    return _channels_last(x) if isinstance(x, Array) else x.permute(0, 2, 3, 1)


@operator
def _channels_last(x):
    return (
        np.ascontiguousarray(x.transpose(0, 2, 3, 1)),
        lambda gradient: np.ascontiguousarray(gradient.transpose(0, 3, 1, 2)),
    )


def tensor_parallel(count: int, parallel: str = "col") -> str:
    """`parallel` when the tensor-parallel ranks can share `count` things equally, else "data"."""
    return "data" if count % dist.get_tensor_parallel_size() else parallel


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


class Linear(nn.Module):
    """x @ weight + bias with weight (in, out), and tensor parallel by column or by row.

    "col" gives each tensor-parallel rank a part of the outputs, "row" takes such parts for inputs
    and gives the whole sum; "data" is whole on each. Before "col" belongs `sum_gradients`, which
    LiBai's Linear calls for each layer by itself. LiBai's own lays the weight out as (in, out) up
    to 0.1 and as (out, in) since, and its "data" splits the batch over the tensor-parallel ranks as
    well, which fails for a batch smaller than their number.
    """

    def __init__(
        self, in_features: int, out_features: int, *, layer_idx: int, parallel: str = "data"
    ):
        super().__init__()
        self.in_features, self.parallel = in_features, parallel
        weight_axis = 1 if parallel == "col" else 0
        weight_sbp = sharded_sbp(weight_axis, parallel)
        bias_sbp = sharded_sbp(0, parallel if parallel == "col" else "data")
        self.weight = parameter((in_features, out_features), layer_idx, weight_sbp)
        self.bias = parameter((out_features,), layer_idx, bias_sbp)

    @on_cpu
    def forward(self, x):
        if self.parallel == "row":
            return plus(add_up(linear(x, self.weight)), self.bias)
        return linear(x, self.weight, self.bias)


def linear(x, weight, bias=None):
    """x @ weight + bias. Shape: (..., in), (in, out), (out,) -> (..., out)."""
    if isinstance(x, Array):
        return kernels.linear(x, weight, bias)
    x = flow.matmul(x, weight)
    return x if bias is None else x + bias


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

    @on_cpu
    def forward(self, x):
        if self.parallel == "data" or dist.get_tensor_parallel_size() == 1:
            return halves(linear(x, self.weight, self.bias))
        if isinstance(x, Array):
            weight, bias = (_dealt(x.run.take(p)) for p in (self.weight, self.bias))
            return halves(linear(x, weight, bias))
        weights, biases = _dealt_halves(self.weight), _dealt_halves(self.bias)
        return [flow.matmul(x, weight) + bias for weight, bias in zip(weights, biases)]


def halves(x) -> list:
    """The first and the second half of the last axis."""
    return list(_halves(x)) if isinstance(x, Array) else flow.chunk(x, 2, dim=-1)


@operator
def _halves(x):
    return tuple(np.split(x, 2, -1)), lambda *gradients: np.concatenate(gradients, -1)


def _dealt_halves(tensor):
    """The halves of the last axis, each split over the tensor-parallel ranks along that axis."""
    whole_halves = flow.chunk(gather(tensor), 2, dim=-1)
    return [half.to_global(sbp=tensor.sbp, grad_sbp=half.sbp) for half in whole_halves]


@operator
def _dealt(x):
    """The same side by side: from a run of neighbouring columns to this rank's of both halves."""
    own = np.split(np.arange(x.shape[-1] * dist.get_tensor_parallel_size()), 2)
    own = np.concatenate([share_of(columns) for columns in own])

    def backward(gradient):
        whole = np.zeros((*x.shape[:-1], x.shape[-1] * dist.get_tensor_parallel_size()), np.float32)
        whole[..., own] = gradient
        return share_of(sum_over_shares(whole))

    return join_shares(x)[..., own], backward


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

    @on_cpu
    def forward(self, x):
        if isinstance(x, Array):
            return kernels.layer_norm(x, self.weight, self.bias, eps=self.eps)
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


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

    @on_cpu
    def forward(self, x):
        if isinstance(x, Array):
            return kernels.depthwise_conv2d(x, self.weight, self.bias)
        channels = x.shape[-1]
        x = F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, padding=1, groups=channels)
        return x.permute(0, 2, 3, 1)


def gelu(x):
    """GELU (Hendrycks and Gimpel 2016), the exact one with the error function."""
    return kernels.gelu(x) if isinstance(x, Array) else F.gelu(x)


def relu(x):
    return kernels.relu(x) if isinstance(x, Array) else F.relu(x)


def attend(query, key, value, heads: int, scale: float):
    """softmax(query key^T * scale) value, each head for itself (Vaswani et al. 2017).

    Shape: (N, L, C), (N, M, C), (N, M, C) -> (N, L, C).
    """
    if isinstance(query, Array):
        return kernels.attend(query, key, value, heads=heads, scale=scale)
    n, length, dim = query.shape

    def split_heads(x):
        return x.reshape(n, x.shape[1], heads, dim // heads).permute(0, 2, 1, 3)

    query, key, value = map(split_heads, (query, key, value))
    scores = flow._C.matmul(query, key, False, True, scale)  # (N, heads, L, M)
    context = flow.matmul(flow.softmax(scores, dim=-1), value)
    return context.permute(0, 2, 1, 3).reshape(n, length, dim)


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

    @on_cpu
    def forward(self, x):
        options = dict(stride=self.stride, padding=self.padding)
        if isinstance(x, Array):
            x = kernels.conv2d(x, self.weight, self.bias, **options)
        else:
            x = F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, **options)
            x = x.permute(0, 2, 3, 1)
        return gather(x) if self.parallel == "col" else x


def upsample_bilinear(x, size: tuple[int, int]):
    """Bilinear interpolation with half-pixel centres (align_corners False).

    Shape: (N, H, W, C) -> (N, *size, C).
    """
    if x.shape[1:3] == tuple(size):
        return x
    if isinstance(x, Array):
        return kernels.upsample(x, size=tuple(size))
    x = F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


def upsampled_sum(maps: list):
    """All maps at the size of the first, and added: [(N, H_i, W_i, C)] -> (N, H_0, W_0, C)."""
    if isinstance(maps[0], Array):
        return kernels.upsampled_sum(*maps)
    first, *others = maps
    return sum((upsample_bilinear(x, first.shape[1:3]) for x in others), first)


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

    @on_cpu
    def forward(self, x):
        if not self.training:
            scale, shift = self.affine(taking(x))
            return plus(x * scale, shift)
        if isinstance(x, Array):
            return self._on_arrays(x)
        rows = x.reshape(-1, x.shape[-1])
        mean = rows.mean(0).to_global(sbp=broadcast_sbp())
        centred = rows - mean
        variance = (centred * centred).mean(0).to_global(sbp=broadcast_sbp())
        self._update_running(mean.detach(), variance.detach(), rows.shape[0])
        scale = self.weight * flow.rsqrt(variance + self.eps)
        return (centred * scale + self.bias).reshape(x.shape)

    def _on_arrays(self, x: Array) -> Array:
        parameters = map(x.run.take, (self.weight, self.bias))
        weight, bias = (own_channels(parameter, x.shape[-1]) for parameter in parameters)

        def keep(mean, variance, count):
            if len(mean) != self.weight.shape[0]:
                mean, variance = join_shares(mean), join_shares(variance)
            variance = variance * (count / max(count - 1, 1))
            for buffer, new in ((self.running_mean, mean), (self.running_var, variance)):
                values = local_values(buffer)
                values += self.momentum * (new - values)

        return kernels.batch_norm(
            x, weight, bias, eps=self.eps, sum_over_batch=sum_over_batch, keep=keep
        )

    def affine(self, take=lambda parameter: parameter):
        """What it does in evaluation, as a factor and a summand of each channel: (C,), (C,)."""
        state = map(take, (self.weight, self.bias, self.running_mean, self.running_var))
        weight, bias, mean, variance = state
        if isinstance(weight, Array):
            return _affine(weight, bias, mean, variance, eps=self.eps)
        scale = weight * flow.rsqrt(variance + self.eps)
        return scale, bias - mean * scale

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


@operator
def _affine(weight, bias, mean, variance, *, eps):
    inverse = 1 / np.sqrt(variance + np.float32(eps))

    def backward(of_scale, of_shift):
        of_shift = np.zeros_like(bias) if of_shift is None else of_shift
        return (of_scale - of_shift * mean) * inverse, of_shift, None, None

    return (weight * inverse, bias - mean * weight * inverse), backward


def own_channels(x, count: int):
    """Of values of all channels those of this rank's `count`, where the ranks share the channels.

    Tensors know by their sbp who has what: they are as they are.
    """
    return _own_share(x) if isinstance(x, Array) and x.shape[-1] != count else x


@operator
def _own_share(x):
    return share_of(x), join_shares


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops the residual branch of a whole sample.

    Args:
        drop_prob: the probability of dropping, in [0, 1).
    Shape: x (N, L, C), noise (N, 1) uniform in [0, 1) or None for noise of its own -> (N, L, C).
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x, noise=None):
        if not self.training or self.drop_prob == 0:
            return x
        return _dropped(x, noise, 1, self.drop_prob)


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
        return _dropped(x, noise, x.shape[-1], self.drop_prob)


def _dropped(x, noise, columns: int, drop_prob: float):
    """x times 1 / keep where the noise says keep, else 0; the expected value is 1.

    Shape: (N, ..., C), noise (N, columns) or None for noise of its own -> (N, ..., C).
    """
    keep_prob = 1.0 - drop_prob
    noise = _own_noise(x, columns) if noise is None else noise
    if isinstance(x, Array):
        noise = x.run.take(noise).values
        if noise.shape[1] != columns:  # the tensor-parallel ranks share the channels
            noise = share_of(noise)
        return kernels.scaled(x, factors=np.floor(noise + np.float32(keep_prob)) / keep_prob)
    factors = flow.floor(noise.to(x.dtype) + keep_prob) / keep_prob
    return x * factors.reshape(x.shape[0], *[1] * (x.ndim - 2), columns)


def _own_noise(x, columns: int) -> flow.Tensor:
    if isinstance(x, Array):
        images = x.shape[0] * dist.get_data_parallel_size()
        columns *= dist.get_tensor_parallel_size() if columns > 1 else 1
        placement = dist.get_layer_placement(0)
    else:
        images, placement = x.shape[0], x.placement
    return flow.rand(images, columns, placement=placement, sbp=batch_sbp())
