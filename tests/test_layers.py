"""Every layer against PyTorch in float64: results, gradients and state.

In three runs: eager on arrays, as on any CPU; eager with OneFlow's operators; in a static graph.
"""

import numpy as np
import oneflow as flow
import pytest
import torch
import torch.nn.functional as F
from libai.utils import distributed as dist

from conftest import delayed
from projects.SegFormer.modeling import arrays
from projects.SegFormer.modeling.arrays import Array, broadcast_sbp, on_cpu
from projects.SegFormer.modeling.layers import (
    BatchNorm,
    ChannelDropout,
    Conv2d,
    DepthwiseConv2d,
    DropPath,
    KeyValueLinear,
    LayerNorm,
    Linear,
    attend,
    gelu,
    linear,
    plus,
    relu,
    upsample_bilinear,
    upsampled_sum,
)
from projects.SegFormer.modeling.segformer_model import assign

ROUNDING = 2.0**-24  # the largest relative error of one float32 operation


def put(values) -> flow.Tensor:
    tensor = flow.tensor(np.asarray(values, np.float32))
    return tensor.to_global(placement=dist.get_layer_placement(0), sbp=broadcast_sbp())


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(actual, expected, tolerance=3e-6):
    """Equal to `tolerance` of the largest expected value, that is to float32's rounding of sums."""
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# ---- Results and gradients of a layer, three ways -------------------------------------------


class Called(flow.nn.Module):
    """A function of the layers, called as the model calls it: with arrays where it can be.

    Args:
        shapes: of its parameters by name, which the function takes after x.
    """

    def __init__(self, function, **shapes):
        super().__init__()
        self.function, self.names = function, list(shapes)
        for name, shape in shapes.items():
            self.register_parameter(name, flow.nn.Parameter(put(np.zeros(shape))))

    @on_cpu
    def forward(self, x):
        return self.function(x, *(getattr(self, name) for name in self.names))


def with_operators(patch) -> None:
    """Eager mode calls OneFlow's operators from now on."""
    patch.setattr(arrays, "_computes_here", lambda tensors: False)


class Probe(flow.nn.Module):
    """A layer with its input as one more parameter: everything has a gradient, in a graph too."""

    def __init__(self, layer, x):
        super().__init__()
        self.layer = layer
        self.x = flow.nn.Parameter(put(x))

    def forward(self, upstream):
        out = self.layer(self.x)
        return out, (out * upstream).sum()


class TrainingGraph(flow.nn.Graph):
    """A step of an optimizer; the module returns its result and its loss."""

    def __init__(self, module, optimizer):
        super().__init__()
        self.module = module
        self.add_optimizer(optimizer)

    def build(self, *inputs):
        out, loss = self.module(*inputs)
        loss.backward()
        return delayed(out)


def values(probe) -> dict[str, np.ndarray]:
    return {name.split(".")[-1]: p.numpy().copy() for name, p in probe.named_parameters()}


def eager_results(layer, x, upstream) -> dict[str, np.ndarray]:
    probe = Probe(layer, x)
    out, loss = probe(put(upstream))
    loss.backward()
    gradients = {name.split(".")[-1]: p.grad.numpy() for name, p in probe.named_parameters()}
    return {"out": out.numpy(), **gradients}


def operator_results(layer, x, upstream) -> dict[str, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        with_operators(patch)
        return eager_results(layer, x, upstream)


def graph_results(layer, x, upstream) -> dict[str, np.ndarray]:
    """The gradients are read off a step of gradient descent with rate 1."""
    probe = Probe(layer, x)
    before = values(probe)
    out = TrainingGraph(probe, flow.optim.SGD(probe.parameters(), lr=1.0))(put(upstream)).numpy()
    after = values(probe)
    return {"out": out, **{name: before[name] - after[name] for name in before}}


def check(layer, function, x, run=eager_results, tolerance=3e-6):
    """`layer` with random parameters is `function(x, weight, bias)`, and so are all gradients."""
    for seed, parameter in enumerate(layer.parameters()):
        assign(parameter, 1 + 0.5 * normal(*parameter.shape, seed=100 + seed))
    leaves = {"x": x, **values(layer)}
    leaves = {name: torch.tensor(leaf).double().requires_grad_() for name, leaf in leaves.items()}
    out = function(**leaves)
    upstream = normal(*out.shape, seed=1)
    (out * torch.tensor(upstream)).sum().backward()
    expected = {"out": out.detach().numpy(), **{name: p.grad.numpy() for name, p in leaves.items()}}

    actual = run(layer, x, upstream)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(actual[name], expected[name], tolerance)


def channels_last(function):
    """A PyTorch function of a map, with the channels last."""

    def wrapped(x, *parameters, **options):
        return function(x.permute(0, 3, 1, 2), *parameters, **options).permute(0, 2, 3, 1)

    return wrapped


conv2d = channels_last(F.conv2d)
interpolate = channels_last(F.interpolate)

RUNS = {"arrays": eager_results, "operators": operator_results, "graph": graph_results}
runs = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
# For tables of many shapes: a graph takes most of a second.
eager_runs = pytest.mark.parametrize("run", list(RUNS.values())[:2], ids=list(RUNS)[:2])


@pytest.fixture(params=["arrays", "operators"])
def eagerly(request, monkeypatch):
    """Both forms of eager mode, for tests that call layers themselves."""
    if request.param == "operators":
        with_operators(monkeypatch)


@pytest.mark.parametrize(
    "run, kind", list(zip(RUNS.values(), (Array, flow.Tensor, flow.Tensor))), ids=RUNS
)
def test_what_the_runs_compute_with(run, kind):
    kinds = []

    def watched(x):
        kinds.append(isinstance(x, kind))
        return relu(x)

    run(Called(watched), normal(2, 3), normal(2, 3))
    assert kinds == [True]


# ---- Linear layers --------------------------------------------------------------------------


@runs
@pytest.mark.parametrize("shape, outputs", [((3, 7, 5), 4), ((1, 1, 1), 1), ((2, 3, 5, 4), 6)])
def test_linear(shape, outputs, run):
    layer = Linear(shape[-1], outputs, layer_idx=0)
    check(layer, lambda x, weight, bias: x @ weight + bias, normal(*shape), run)


@runs
def test_linear_without_a_bias(run):
    check(Called(linear, weight=(5, 3)), lambda x, weight: x @ weight, normal(2, 7, 5), run)


class Joined(flow.nn.Module):
    """The results of a layer that gives two of them, side by side, the second negative."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        first, second = self.layer(x)
        return flow.cat([first, -second], -1)


@runs
def test_key_value_linear(run):
    def expected(x, weight, bias):
        first, second = (x @ weight + bias).chunk(2, -1)
        return torch.cat([first, -second], -1)

    check(Joined(KeyValueLinear(5, 3, layer_idx=0)), expected, normal(2, 7, 5), run)


@runs
@pytest.mark.parametrize("axis, length", [(-1, 4), (1, 3)])
def test_plus(axis, length, run):
    def expected(x, bias):
        return x + bias.reshape([length if i == axis % 4 else 1 for i in range(4)])

    layer = Called(lambda x, bias: plus(x, bias, axis), bias=(length,))
    check(layer, expected, normal(2, 3, 5, 4), run)


# ---- Attention ------------------------------------------------------------------------------


@runs
@pytest.mark.parametrize(
    "lengths, heads, channels", [((7, 5), 3, 12), ((1, 1), 1, 1), ((9, 1), 2, 4), ((1, 11), 5, 5)]
)
def test_attend(lengths, heads, channels, run):
    """Queries, keys and values lie in one tensor, one behind the other."""
    length, other = lengths
    parts = [(0, length), (length, other), (length + other, other)]

    def expected(x):
        q, k, v = (x.narrow(1, *part).unflatten(-1, (heads, -1)) for part in parts)
        weights = torch.einsum("nlhc,nmhc->nhlm", q, k).mul(0.7).softmax(-1)
        return torch.einsum("nhlm,nmhc->nlhc", weights, v).flatten(-2)

    layer = Called(lambda x: attend(*(x.narrow(1, *part) for part in parts), heads, 0.7))
    check(layer, expected, normal(2, length + 2 * other, channels), run)


# ---- LayerNorm ------------------------------------------------------------------------------


def layer_norm(eps):
    return lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, eps)


@pytest.mark.parametrize("channels", [5, 32, 160, 256])
@pytest.mark.parametrize("eps", [1e-6, 1e-1])
@runs
def test_layer_norm(channels, eps, run):
    x = normal(2, 5, 3, channels) * 3 + np.float32(0.5)
    check(LayerNorm(channels, eps, layer_idx=0), layer_norm(eps), x, run)


@pytest.mark.parametrize("channels", [8, 32, 160, 256])
@pytest.mark.parametrize("mean", [1e1, 1e3, 1e4])
def test_layer_norm_does_not_cancel(channels, mean, eagerly):
    """Rows of mean m and deviation 1: the error is that of a sum of C numbers of size m.

    The mean of the squares less the square of the mean would be off by m times as much.
    """
    x = normal(2, 50, channels) + np.float32(mean)
    expected = F.layer_norm(torch.tensor(x).double(), (channels,), eps=1e-6).numpy()
    layer = LayerNorm(channels, 1e-6, layer_idx=0)
    assign(layer.weight, np.ones(channels))
    error = np.abs(layer(put(x)).numpy() - expected).max()
    assert error < 2 * np.sqrt(channels) * mean * ROUNDING


def test_layer_norm_of_equal_values_is_the_bias(eagerly):
    layer = LayerNorm(16, 1e-6, layer_idx=0)
    assign(layer.weight, normal(16))
    assign(layer.bias, normal(16, seed=1))
    x = put(np.repeat([[0.0], [1.0], [-64.0]], 16, axis=1)).requires_grad_()
    out = layer(x)
    np.testing.assert_array_equal(out.numpy(), np.tile(layer.bias.numpy(), (3, 1)))
    out.sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


# ---- Convolutions ---------------------------------------------------------------------------


def depthwise(x, weight, bias):
    return conv2d(x, weight, bias, padding=1, groups=len(weight))


@runs
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 4), (2, 1, 7, 3), (2, 6, 1, 3), (3, 5, 9, 12), (1, 2, 2, 1)]
)
def test_depthwise_conv(shape, run):
    check(DepthwiseConv2d(shape[-1], layer_idx=0), depthwise, normal(*shape), run)


# (kernel, stride, padding) of all patch embeddings and spatial reductions, and some others.
CONVOLUTIONS = [(7, 4, 3), (3, 2, 1), (8, 8, 0), (4, 4, 0), (2, 2, 0)]
OTHER_CONVOLUTIONS = [(5, 3, 1), (3, 1, 1), (1, 1, 0), (4, 2, 3), (2, 5, 0), (5, 4, 2), (1, 2, 3)]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (8, 30), (9, 8)])
@pytest.mark.parametrize("kernel, stride, padding", CONVOLUTIONS + OTHER_CONVOLUTIONS)
@eager_runs
def test_conv(kernel, stride, padding, size, run):
    layer = Conv2d(3, 5, kernel, stride, padding, layer_idx=0)
    check(
        layer,
        lambda x, weight, bias: conv2d(x, weight, bias, stride=stride, padding=padding),
        normal(2, *size, 3),
        run,
    )


@eager_runs
@pytest.mark.parametrize("size", [(1, 1), (1, 13), (13, 1)])
def test_conv_of_a_thin_map(size, run):
    check(
        Conv2d(2, 3, 3, 2, 1, layer_idx=0),
        lambda x, weight, bias: conv2d(x, weight, bias, stride=2, padding=1),
        normal(3, *size, 2),
        run,
    )


@pytest.mark.parametrize("kernel, stride, padding", [(7, 4, 3), (4, 4, 0)])
def test_conv_in_a_graph(kernel, stride, padding):
    check(
        Conv2d(3, 5, kernel, stride, padding, layer_idx=0),
        lambda x, weight, bias: conv2d(x, weight, bias, stride=stride, padding=padding),
        normal(2, 14, 21, 3),
        graph_results,
    )


# ---- GELU and ReLU ------------------------------------------------------------------------------


@runs
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_gelu(scale, run):
    check(Called(gelu), F.gelu, normal(2, 3, 5, 2048) * scale, run)


@eager_runs
def test_gelu_of_extreme_values(run):
    """0 / 0, what is too small to square, and what is too large; the first of a row and others."""
    x = normal(1, 1, 8, 2048) * 1e-3
    extremes = [0.0, -0.0, 1e-30, -1e-25, 30.0, -30.0, 1e19, -1e19]
    x[0, 0, :, 0] = extremes
    x[0, 0, 3, 5:13] = extremes
    check(Called(gelu), F.gelu, x, run, tolerance=1e-6)


@runs
def test_relu(run):
    x = normal(2, 3, 5)
    x[0, 0, :2] = 0, -0.0
    check(Called(relu), lambda x: F.relu(x), x, run)


# ---- Interpolation --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, new_size",
    [
        ((5, 7), (5, 7)),
        ((4, 6), (16, 24)),
        ((5, 7), (16, 33)),
        ((9, 12), (70, 101)),
        ((17, 23), (5, 9)),
        ((8, 8), (4, 2)),
        ((6, 20), (13, 7)),
        ((1, 1), (4, 6)),
        ((1, 9), (8, 4)),
        ((8, 12), (16, 48)),
        ((5, 12), (20, 24)),
    ],
)
@runs
def test_upsample(size, new_size, run):
    check(
        Called(lambda x: upsample_bilinear(x, new_size)),
        lambda x: interpolate(x, size=new_size, mode="bilinear", align_corners=False),
        normal(2, *size, 3),
        run,
    )


def maps_of(x, sizes) -> list:
    """The maps of `sizes`, which lie one behind the other in (N, values, C)."""
    lengths = [height * width for height, width in sizes]
    starts = np.cumsum([0, *lengths]).tolist()
    return [
        x.narrow(1, start, length).reshape(x.shape[0], *size, x.shape[2])
        for start, length, size in zip(starts, lengths, sizes)
    ]


SUMS = {
    "halves": [(32, 24), (16, 12), (8, 6)],
    "small": [(16, 8), (8, 4), (4, 2)],
    "no whole factors": [(31, 23), (17, 12), (8, 5), (1, 1)],
    "different factors": [(48, 24), (16, 12), (12, 6)],
}


@runs
@pytest.mark.parametrize("sizes", SUMS.values(), ids=SUMS)
def test_upsampled_sum(sizes, run):
    def expected(x):
        first, *others = (m.permute(0, 3, 1, 2) for m in maps_of(x, sizes))
        for other in others:
            first = first + F.interpolate(other, size=sizes[0], mode="bilinear")
        return first.permute(0, 2, 3, 1)

    values = sum(height * width for height, width in sizes)
    layer = Called(lambda x: upsampled_sum(maps_of(x, sizes)))
    check(layer, expected, normal(2, values, 3), run)


# ---- BatchNorm ------------------------------------------------------------------------------


def batch_norm(x, weight, bias):
    rows = F.batch_norm(x.flatten(0, -2), None, None, weight, bias, training=True, eps=0.5)
    return rows.reshape(x.shape)


@runs
@pytest.mark.parametrize("shape", [(2, 1, 1, 6), (2, 5, 3, 6), (1, 30, 20, 6)])
def test_batch_norm_gradients(shape, run):
    check(BatchNorm(6, layer_idx=0, eps=0.5), batch_norm, normal(*shape) * 3 + 2, run)


class Calling(flow.nn.Module):
    """A layer, called as the model calls it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    @on_cpu
    def forward(self, *inputs):
        return self.layer(*inputs)


@runs
def test_batch_norm_gradients_in_evaluation(run):
    layer = Calling(BatchNorm(4, layer_idx=0, eps=0.5).eval())
    check(layer, lambda x, weight, bias: x / 1.5**0.5 * weight + bias, normal(2, 5, 3, 4), run)


class Scaled(flow.nn.Module):
    """A layer, its input times 1: a parameter that even a layer without one can train."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.scale = flow.nn.Parameter(put(np.ones(1)))

    def forward(self, x):
        out = self.layer(x * self.scale)
        return out, out.sum()


def idle_graph(layer):
    """The layer in a training graph that leaves all parameters as they are."""
    module = Scaled(layer)
    return TrainingGraph(module, flow.optim.SGD(module.parameters(), lr=0.0))


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("momentum, size", [(0.1, (2, 4, 3)), (0.7, (2, 1, 1))])
def test_batch_norm_statistics(in_graph, momentum, size, eagerly):
    """Three steps of training, then evaluation: as nn.BatchNorm2d, its running state included.

    With two rows the unbiased variance is twice the biased one.
    """
    reference = torch.nn.BatchNorm2d(5, eps=1e-3, momentum=momentum).double()
    layer = BatchNorm(5, layer_idx=0, eps=1e-3, momentum=momentum)
    for name in ("weight", "bias"):
        value = 1 + normal(5, seed=len(name))
        getattr(reference, name).data = torch.tensor(value).double()
        assign(getattr(layer, name), value)
    step = idle_graph(layer) if in_graph else layer

    def check_step(step, seed):
        x = normal(*size, 5, seed=seed) * [1, 2, 3, 0.5, 1] + [0, 5, -3, 1, 10]
        x = x.astype(np.float32)
        expected = reference(torch.tensor(x).double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert_close(step(put(x)).numpy(), expected.detach().numpy(), 1e-5)
        for name in ("running_mean", "running_var"):
            expected = getattr(reference, name).numpy()
            np.testing.assert_allclose(getattr(layer, name).numpy(), expected, rtol=1e-5, atol=1e-6)

    for seed in range(3):
        check_step(step, seed)
    layer.eval(), reference.eval()
    check_step(layer, 3)


def test_batch_norm_of_a_single_row(eagerly):
    layer = BatchNorm(3, layer_idx=0, momentum=0.1)
    assign(layer.weight, np.ones(3))
    assign(layer.bias, np.arange(1, 4))
    out = layer(put([[[[4.0, 5.0, -6.0]]]]))
    np.testing.assert_array_equal(out.numpy(), [[[[1, 2, 3]]]])
    np.testing.assert_allclose(layer.running_mean.numpy(), [0.4, 0.5, -0.6], rtol=1e-6)
    np.testing.assert_allclose(layer.running_var.numpy(), [0.9] * 3, rtol=1e-6)


# ---- Dropping paths and channels ------------------------------------------------------------

# A layer, the shape of its input, and the axes along which its mask has a value of its own.
DROPS = [(DropPath, (4, 6, 5), (0,)), (ChannelDropout, (4, 3, 2, 5), (0, 3))]
drops = pytest.mark.parametrize("cls, shape, own_axes", DROPS)


def noise_shape(shape, own_axes):
    return [shape[0], shape[-1] if len(own_axes) > 1 else 1]


def mask_shape(shape, own_axes):
    return [size if axis in own_axes else 1 for axis, size in enumerate(shape)]


@drops
@pytest.mark.parametrize("drop_prob", [0.1, 0.5, 0.9])
def test_noise_decides_what_is_dropped(cls, shape, own_axes, drop_prob, eagerly):
    x = normal(*shape)
    noise = np.random.default_rng(3).random(noise_shape(shape, own_axes), np.float32)
    mask = (noise >= drop_prob).reshape(mask_shape(shape, own_axes)) / (1 - drop_prob)
    leaf = put(x).requires_grad_()
    out = Calling(cls(drop_prob))(leaf, put(noise))
    np.testing.assert_allclose(out.numpy(), x * mask, rtol=1e-6)
    out.sum().backward()
    np.testing.assert_allclose(leaf.grad.numpy(), np.broadcast_to(mask, shape), rtol=1e-6)


@drops
def test_smallest_and_largest_noise(cls, shape, own_axes, eagerly):
    """Noise 0 drops, and the largest float below 1 keeps, whatever the probability."""
    for drop_prob in (0.01, 0.99):
        for noise, kept in ((0.0, 0), (1 - 2.0**-24, 1)):
            out = Calling(cls(drop_prob))(
                put(np.ones(shape)), put(np.full(noise_shape(shape, own_axes), noise))
            ).numpy()
            np.testing.assert_allclose(out, kept / (1 - drop_prob), rtol=1e-5)


@drops
def test_own_noise_drops_whole_pieces_at_the_given_rate(cls, shape, own_axes, eagerly):
    drop_prob, count = 0.2, 20_000
    flow.manual_seed(0)
    out = Calling(cls(drop_prob))(put(np.ones((count, *shape[1:])))).numpy()
    pieces = np.moveaxis(out, own_axes, range(len(own_axes)))
    pieces = pieces.reshape(int(np.prod(pieces.shape[: len(own_axes)])), -1)
    assert (pieces == pieces[:, :1]).all()
    np.testing.assert_allclose(np.unique(pieces), [0, 1 / (1 - drop_prob)], rtol=1e-6)
    deviation = np.sqrt(drop_prob / (1 - drop_prob) / len(pieces))  # of the mean of the masks
    assert abs(pieces[:, 0].mean() - 1) < 4 * deviation


@drops
def test_own_noise_is_new_in_every_step_of_a_graph(cls, shape, own_axes):
    graph = idle_graph(cls(0.5))
    x = put(np.ones((200, *shape[1:])))
    assert (graph(x).numpy() != graph(x).numpy()).any()


@drops
def test_nothing_is_dropped_in_evaluation_or_at_rate_0(cls, shape, own_axes, eagerly):
    x = normal(*shape)
    noise = put(np.zeros(noise_shape(shape, own_axes)))
    np.testing.assert_array_equal(Calling(cls(0.9)).eval()(put(x), noise).numpy(), x)
    np.testing.assert_array_equal(Calling(cls(0.0))(put(x), noise).numpy(), x)
