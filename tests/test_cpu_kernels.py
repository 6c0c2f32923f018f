"""The CPU kernels against PyTorch and NumPy in float64: results and every gradient."""

import math
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from projects.SegFormer.modeling import cpu_kernels as kernels
from projects.SegFormer.modeling.cpu_kernels import activations, compiled, products, threads
from projects.SegFormer.modeling.cpu_kernels.interpolation import axis

ROUNDING = 2.0**-24  # the largest relative error of one float32 operation


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def with_threads(monkeypatch):
    """Compute with so many threads from now on."""

    def use(count: int) -> None:
        for module in (threads, products):
            monkeypatch.setattr(module, "thread_count", lambda: count)
        threads._pool.cache_clear()

    yield use
    threads._pool.cache_clear()


# ---- All kernels --------------------------------------------------------------------------------


def conv2d(x, weight, bias, **options):
    """PyTorch's, with the channels last."""
    return F.conv2d(x.movedim(-1, 1), weight, bias, **options).movedim(1, -1)


def upsampled(x, size):
    x = F.interpolate(x.movedim(-1, 1), tuple(size), mode="bilinear", align_corners=False)
    return x.movedim(1, -1)


def attention(query, key, value, *, heads, scale):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return ((q @ k.transpose(-1, -2) * scale).softmax(-1) @ v).transpose(1, 2).flatten(-2)


def batch_norm(x, weight, bias, *, eps, **_):
    rows = F.batch_norm(x.flatten(0, -2), None, None, weight, bias, training=True, eps=eps)
    return rows.reshape(x.shape)


def pointwise(x, weight, *, channels_first=False):
    result = x @ weight.flatten(1).T
    return result.movedim(-1, 1) if channels_first else result


def scaled(x, *, factors):
    factors = torch.tensor(factors)
    return x * factors.reshape(len(x), *[1] * (x.ndim - 2), -1)


REFERENCES = {
    "gelu": F.gelu,
    "relu": F.relu,
    "scaled": scaled,
    "attend": attention,
    "conv2d": conv2d,
    "depthwise_conv2d": lambda x, weight, bias: conv2d(
        x, weight, bias, padding=1, groups=len(weight)
    ),
    "upsample": lambda x, *, size: upsampled(x, size),
    "upsampled_sum": lambda x, *maps: sum((upsampled(m, x.shape[1:3]) for m in maps), x),
    "batch_norm": batch_norm,
    "layer_norm": lambda x, weight, bias, eps: F.layer_norm(x, weight.shape, weight, bias, eps),
    "linear": lambda x, weight, bias: x @ weight + bias,
    "pointwise_conv2d": pointwise,
}
BATCH_NORM = dict(eps=0.5, sum_over_batch=lambda sums: sums, keep=lambda *statistics: None)


def _scaled(*shape, columns):
    return "scaled", [shape], dict(factors=normal(shape[0], columns, seed=9))


def _conv(shape, outputs, kernel, stride, padding):
    shapes = [shape, (outputs, shape[-1], kernel, kernel), (outputs,)]
    return "conv2d", shapes, dict(stride=stride, padding=padding)


def _depthwise(*shape):
    return "depthwise_conv2d", [shape, (shape[-1], 1, 3, 3), shape[-1:]], {}


def _attend(n, length, other, channels, heads):
    shapes = [(n, length, channels), (n, other, channels), (n, other, channels)]
    return "attend", shapes, dict(heads=heads, scale=0.6)


def _norm(kind, *shape):
    options = BATCH_NORM if kind == "batch_norm" else dict(eps=1e-3)
    return kind, [shape, shape[-1:], shape[-1:]], options


def _linear(*shape, outputs):
    return "linear", [shape, (shape[-1], outputs), (outputs,)], {}


def _pointwise(*shape, outputs, channels_first):
    shapes = [shape, (outputs, shape[-1], 1, 1)]
    return "pointwise_conv2d", shapes, dict(channels_first=channels_first)


# One pixel, one channel, one row, odd sizes, and more than one piece for each thread.
CASES = [
    *(("gelu", [shape], {}) for shape in [(1,), (3, 7, 5), (3, 111, 333)]),
    *(("relu", [shape], {}) for shape in [(1, 1), (3, 7, 5), (3, 111, 1001)]),
    _scaled(1, 1, columns=1),
    _scaled(3, 5, 7, columns=1),
    _scaled(2, 5, 3, 7, columns=7),
    _scaled(2, 251, 333, columns=333),
    _attend(1, 1, 1, 1, 1),
    _attend(2, 7, 5, 12, 3),
    _attend(1, 3, 1, 2, 2),
    _attend(1, 700, 401, 6, 2),
    _conv((1, 1, 1, 1), 1, 1, 1, 0),
    _conv((1, 1, 1, 1), 2, 3, 2, 1),
    _conv((2, 13, 9, 3), 5, 7, 4, 3),
    _conv((2, 13, 9, 3), 5, 2, 3, 0),
    _conv((1, 130, 131, 3), 8, 7, 4, 3),
    _depthwise(1, 1, 1, 1),
    _depthwise(2, 1, 7, 3),
    _depthwise(2, 6, 1, 3),
    _depthwise(3, 5, 2, 1),
    _depthwise(2, 67, 61, 33),
    ("upsample", [(1, 1, 1, 1)], dict(size=(3, 5))),
    ("upsample", [(2, 1, 4, 3)], dict(size=(7, 3))),
    ("upsample", [(2, 5, 7, 3)], dict(size=(3, 4))),
    ("upsample", [(2, 9, 11, 17)], dict(size=(67, 71))),
    ("upsampled_sum", [(1, 1, 1, 1), (1, 2, 3, 1)], {}),
    ("upsampled_sum", [(2, 7, 9, 3)], {}),
    ("upsampled_sum", [(2, 66, 71, 17), (2, 33, 35, 17), (2, 1, 2, 17)], {}),
    _norm("layer_norm", 1, 1),
    _norm("layer_norm", 2, 3, 7),
    _norm("layer_norm", 999, 257),
    _norm("batch_norm", 2, 1),
    _norm("batch_norm", 2, 3, 1, 7),
    _norm("batch_norm", 2, 67, 61, 33),
    _linear(1, 1, outputs=1),
    _linear(2, 3, 7, outputs=5),
    _linear(9001, 7, outputs=33),
    _linear(3000, 32, outputs=40),
    *(
        _pointwise(*shape, outputs=outputs, channels_first=first)
        for first in (False, True)
        for shape, outputs in [((1, 1, 1, 1), 1), ((2, 3, 5, 7), 4), ((2, 67, 71, 5), 33)]
    ),
]
IDS = [f"{name}-{'x'.join(map(str, shapes[0]))}-{i}" for i, (name, shapes, _) in enumerate(CASES)]
cases = pytest.mark.parametrize("name, shapes, options", CASES, ids=IDS)
FIRST = {case[0]: case for case in reversed(CASES) if math.prod(case[1][0]) > 20}
one_of_each = pytest.mark.parametrize("name, shapes, options", FIRST.values(), ids=FIRST)


def inputs_of(shapes) -> list[np.ndarray]:
    return [normal(*shape, seed=i) for i, shape in enumerate(shapes)]


def computed(name, inputs, options, upstream=None) -> list[np.ndarray]:
    """The result and the gradients of all inputs."""
    result, backward = getattr(kernels, name).__wrapped__(*inputs, **options)
    found = backward(normal(*result.shape, seed=50) if upstream is None else upstream)
    found = found if isinstance(found, tuple) else (found,)
    return [result, *(gradient() if callable(gradient) else gradient for gradient in found)]


def expected(name, inputs, options, upstream=None) -> list[np.ndarray]:
    leaves = [torch.tensor(x).double().requires_grad_() for x in inputs]
    result = REFERENCES[name](*leaves, **options)
    upstream = normal(*result.shape, seed=50) if upstream is None else upstream
    result.backward(torch.tensor(upstream).double())
    return [result.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]


def assert_all_close(actual, wanted, tolerance=3e-6, least=0.0):
    """Within `tolerance` of the largest value, or of `least`: 50 roundings, where sums add up some.

    Rounding errors of a sum of n values of either sign grow with the root of n, as the sum does.
    With `least` what cancels out may be as far from 0 as a difference of such numbers is.
    """
    assert len(actual) == len(wanted)
    for a, b in zip(actual, wanted):
        assert a.dtype == np.float32 and a.shape == b.shape
        largest = max(np.abs(b).max(), least)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest)


def test_every_kernel_is_here():
    operators = {name for names in kernels._PLACES.values() for name in names}
    assert set(REFERENCES) == set(FIRST)
    others = {"arg_max", "cross_entropy", "dice_loss", "over_pixels", "in_parallel"}
    assert set(REFERENCES) | others == operators


@cases
def test_results_and_gradients(name, shapes, options):
    inputs = inputs_of(shapes)
    assert_all_close(computed(name, inputs, options), expected(name, inputs, options), least=0.1)


@cases
def test_any_number_of_threads(name, shapes, options, with_threads):
    """Parts of sums differ with it, and so does their rounding; nothing else does."""
    found = []
    for count in (1, 2, 5):
        with_threads(count)
        found.append(computed(name, inputs_of(shapes), options))
    for other in found[1:]:
        assert_all_close(other, found[0], least=0.1)


@one_of_each
def test_inputs_stay_as_they_are(name, shapes, options):
    inputs = inputs_of(shapes)
    result, _ = getattr(kernels, name).__wrapped__(*inputs, **options)
    upstream = normal(*result.shape, seed=50)
    computed(name, inputs, options, upstream)
    for before, after in zip(
        [*inputs_of(shapes), normal(*result.shape, seed=50)], [*inputs, upstream]
    ):
        np.testing.assert_array_equal(before, after)


def view(x: np.ndarray) -> np.ndarray:
    """The same values as part of the columns of a larger array."""
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1] + 1), np.nan, np.float32)
    wide[..., 1::2] = x
    return wide[..., 1::2]


@one_of_each
def test_views(name, shapes, options):
    inputs = inputs_of(shapes)
    copies = computed(name, inputs, options)
    upstream = view(normal(*copies[0].shape, seed=50))
    views = computed(name, [view(x) for x in inputs], options, upstream)
    assert_all_close(views, copies)


@one_of_each
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e4, 1e15])
def test_large_and_tiny_values(name, shapes, options, size):
    x, *others = inputs_of(shapes)
    if name == "upsampled_sum":
        others = [other * np.float32(size) for other in others]
    inputs = [x * np.float32(size), *others]
    # Attention to one key alone: its gradients are 0 beside values of about 1.
    least = float(name == "attend" and size > 1)
    assert_all_close(computed(name, inputs, options), expected(name, inputs, options), least=least)


@pytest.mark.parametrize("size", [10, 100])
def test_attention_to_few_keys(size):
    """Scores of `size` round by so many roundings, and so do the probabilities."""
    _, shapes, options = _attend(2, 7, 5, 12, 3)
    query, key, value = inputs_of(shapes)
    inputs = query * np.float32(size), key, value
    result, of_query, of_key, of_value = computed("attend", inputs, options)
    true = expected("attend", inputs, options)
    found = [result, of_query, of_key / size, of_value]
    true[2] = true[2] / size
    assert_all_close(found, true, tolerance=5 * ROUNDING * size, least=1.0)


@one_of_each
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_seen(name, shapes, options, value):
    if value == -np.inf and name == "relu":
        pytest.skip("it makes a 0 of it")
    inputs = inputs_of(shapes)
    for position in (0, -1):
        x = inputs[0].copy()
        x.reshape(-1)[position] = value
        assert not np.isfinite(computed(name, [x, *inputs[1:]], options)[0]).all()


# ---- exp, the normal distribution and the largest value -----------------------------------------


@compiled.kernel
def _exps(x, result):
    for i in range(len(x)):
        result[i] = activations.exp(x[i])


@compiled.kernel
def _normals(x, density, distribution):
    for i in range(len(x)):
        density[i], distribution[i] = activations.normal(x[i])


def float32s(limit: float) -> np.ndarray:
    """Of all sizes and both signs, up to `limit`."""
    sizes = np.concatenate(
        [np.geomspace(1e-45, limit, 100_003), np.linspace(0, min(limit, 90), 10**6)]
    )
    return np.concatenate([sizes, -sizes]).astype(np.float32)


def test_exp():
    x = float32s(3e38)
    x = np.append(x[x <= 88], np.float32([0, -0.0, 88, -np.inf]))
    found = np.empty_like(x)
    _exps(x, found)
    true = np.exp(np.maximum(x, -87).astype(np.float64))
    assert np.abs(found / true - 1).max() < 1.2e-7 + 2 * ROUNDING
    assert found[x == 0].tolist() == [1.0] * (x == 0).sum()


def test_normal_distribution():
    x = float32s(3e38)
    density, distribution = np.empty_like(x), np.empty_like(x)
    _normals(x, density, distribution)
    wide = torch.tensor(x).double()
    true_density = (-0.5 * wide**2).exp().numpy() / math.sqrt(2 * math.pi)
    true_distribution = 0.5 * torch.erfc(-wide / math.sqrt(2)).numpy()
    assert np.abs(density - true_density).max() < 5 * ROUNDING
    assert np.abs(distribution - true_distribution).max() < 5 * ROUNDING
    # Relatively too, as x^2 / 2 rounds by up to 43 * 2^-23 where the density is e^-43.
    near, below = np.abs(x) < 9, (x > -9) & (x < 0)
    assert np.abs(density[near] / true_density[near] - 1).max() < 1e-5
    assert np.abs(distribution[below] / true_distribution[below] - 1).max() < 1e-5


@pytest.mark.parametrize("function", [_exps, lambda x, y: _normals(x, y, np.empty_like(y))])
def test_exp_and_normal_of_nan(function):
    x = np.full(9, np.nan, np.float32)
    found = np.zeros_like(x)
    function(x, found)
    assert np.isnan(found).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (2, 1), (1, 1000)])
def test_arg_max(shape):
    x = normal(*shape).round()  # many are the same: the first is it
    np.testing.assert_array_equal(kernels.arg_max(x), x.argmax(-1))
    for value in (np.nan, np.inf, -np.inf):
        x[np.random.default_rng(1).random(shape) < 0.3] = value
        np.testing.assert_array_equal(kernels.arg_max(x), x.argmax(-1))


# ---- Interpolation ------------------------------------------------------------------------------


@pytest.mark.parametrize("length, new_length", [(1, 1), (1, 9), (5, 1), (4, 16), (7, 33), (16, 5)])
def test_axis_has_half_pixel_centres(length, new_length):
    """Of a line with slope 1 the result is the centre of each new pixel, kept within the line."""
    found = axis(length, new_length)
    values = np.arange(length + 1.0)
    line = (1 - found.weight) * values[found.first] + found.weight * values[found.first + 1]
    centres = [(i + 0.5) * length / new_length - 0.5 for i in range(new_length)]
    np.testing.assert_allclose(line, np.clip(centres, 0, length - 1), atol=length * ROUNDING * 2)
    assert ((found.first >= 0) & (found.first <= max(length - 2, 0))).all()
    assert ((found.weight >= 0) & (found.weight <= 1)).all()


# ---- Losses -------------------------------------------------------------------------------------

IGNORED = 255
ALONE = dict(sum_over_batch=lambda sums: sums)


def labels_of(shape, classes, ignored=0.3) -> np.ndarray:
    rng = np.random.default_rng(7)
    labels = rng.integers(0, classes, shape)
    labels[rng.random(shape) < ignored] = IGNORED
    return labels


def cross_entropy_of(logits, labels, weights=None, smoothing=0.0, learns=True, total=7.0):
    weights = np.ones(logits.shape[-1], np.float32) if weights is None else weights
    loss, backward = kernels.cross_entropy.__wrapped__(
        logits,
        labels=labels,
        counted=labels != IGNORED,
        ignore_index=IGNORED,
        weights=weights,
        smoothing=smoothing,
        total=total,
        learns=learns,
        **ALONE,
    )
    return loss, backward(np.float32(3)) if learns else None


def dice_loss_of(logits, labels):
    loss, backward = kernels.dice_loss.__wrapped__(
        logits, labels=labels, ignore_index=IGNORED, factor=0.5, **ALONE
    )
    return loss, backward(np.float32(3))


def expected_cross_entropy(logits, labels, weights=None, smoothing=0.0):
    leaf = torch.tensor(logits).double().requires_grad_()
    loss = F.cross_entropy(
        upsampled(leaf, labels.shape[1:]).movedim(-1, 1),
        torch.tensor(labels),
        None if weights is None else torch.tensor(weights).double(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    )
    loss = loss.sum() / 7
    (3 * loss).backward()
    return loss.detach().numpy(), leaf.grad.numpy()


def expected_dice_loss(logits, labels):
    leaf = torch.tensor(logits).double().requires_grad_()
    p = upsampled(leaf, labels.shape[1:]).softmax(-1)[torch.tensor(labels != IGNORED)]
    targets = F.one_hot(torch.tensor(labels[labels != IGNORED]), logits.shape[-1]).double()
    overlap, size = (p * targets).sum(0), (p + targets).sum(0)
    dice = (2 * overlap + 1) / (size + 1)
    loss = 0.5 * (1 - dice[targets.sum(0) > 0].mean())
    (3 * loss).backward()
    return loss.detach().numpy(), leaf.grad.numpy()


# Logits and labels: a multiple, none, smaller, one row, one pixel, one class, several parts.
LOSS_SHAPES = [
    ((2, 4, 5, 6), (16, 20)),
    ((2, 7, 9, 6), (13, 17)),
    ((2, 9, 7, 5), (4, 3)),
    ((1, 1, 9, 3), (8, 4)),
    ((3, 1, 1, 2), (5, 3)),
    ((1, 5, 4, 1), (7, 7)),
    ((1, 6, 1, 4), (1, 1)),
    ((2, 33, 31, 19), (97, 101)),
    ((1, 300, 2, 150), (297, 3)),
]
LOSSES = {
    "cross entropy": (cross_entropy_of, expected_cross_entropy),
    "dice": (dice_loss_of, expected_dice_loss),
}
loss_shapes = pytest.mark.parametrize("shape, size", LOSS_SHAPES)
loss_kinds = pytest.mark.parametrize("kind", LOSSES)


@loss_kinds
@loss_shapes
def test_losses(kind, shape, size):
    compute, reference = LOSSES[kind]
    logits, labels = normal(*shape) * 2, labels_of((shape[0], *size), shape[-1], ignored=0.1)
    assert_losses(compute(logits, labels), reference(logits, labels))


def assert_losses(found, wanted):
    """Within 50 roundings of the loss, or of 1: a probability of 1 rounds, and its logarithm.

    With one class it is 1, and the gradient that of rounding.
    """
    (loss, gradient), (true_loss, true_gradient) = found, wanted
    np.testing.assert_allclose(loss, true_loss, rtol=3e-6, atol=3e-6)
    atol = 3e-6 * max(np.abs(true_gradient).max(), 0.1 * (gradient.shape[-1] == 1))
    np.testing.assert_allclose(gradient, true_gradient, rtol=0, atol=atol)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@loss_shapes
def test_cross_entropy_with_weights_and_smoothing(smoothing, shape, size):
    logits, labels = normal(*shape), labels_of((shape[0], *size), shape[-1])
    weights = np.abs(normal(shape[-1], seed=3))
    found = cross_entropy_of(logits, labels, weights, smoothing)
    assert_losses(found, expected_cross_entropy(logits, labels, weights, smoothing))
    loss, _ = cross_entropy_of(logits, labels, weights, smoothing, learns=False)
    np.testing.assert_allclose(loss, found[0], rtol=1e-6)


@loss_kinds
@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30])
def test_losses_of_large_and_tiny_logits(kind, size):
    """No more than the label's own logit counts, and that of the largest one."""
    compute, reference = LOSSES[kind]
    logits, labels = normal(2, 5, 6, 4) * np.float32(size), labels_of((2, 5, 6), 4)
    (loss, gradient), (true_loss, true_gradient) = (
        compute(logits, labels),
        reference(logits, labels),
    )
    np.testing.assert_allclose(loss, true_loss, rtol=3e-6)
    np.testing.assert_allclose(gradient, true_gradient, rtol=1e-5, atol=1e-6)


@loss_kinds
def test_losses_where_all_is_ignored(kind):
    loss, gradient = LOSSES[kind][0](normal(2, 5, 6, 4), np.full((2, 9, 11), IGNORED))
    assert loss == 0 and not gradient.any()


@loss_kinds
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("channel", [0, 3])
def test_losses_of_what_is_no_number(kind, value, channel):
    logits = normal(2, 5, 6, 4)
    logits[1, 2, 3, channel] = value
    loss, _ = LOSSES[kind][0](logits, labels_of((2, 9, 11), 4, ignored=0))
    assert not np.isfinite(loss)


@loss_kinds
@loss_shapes
def test_losses_with_any_number_of_threads(kind, shape, size, with_threads):
    logits, labels = normal(*shape), labels_of((shape[0], *size), shape[-1])
    found = []
    for count in (1, 2, 5):
        with_threads(count)
        found.append(LOSSES[kind][0](logits, labels))
    for other in found[1:]:
        assert_losses(other, found[0])


@loss_kinds
def test_losses_of_views(kind):
    logits, labels = normal(2, 5, 6, 4), labels_of((2, 9, 11), 4)
    wide = np.full((2, 9, 22), 99)
    wide[..., ::2] = labels
    found = LOSSES[kind][0](view(logits), wide[..., ::2])
    assert_losses(found, LOSSES[kind][0](logits, labels))
    np.testing.assert_array_equal(logits, normal(2, 5, 6, 4))
    np.testing.assert_array_equal(labels, labels_of((2, 9, 11), 4))


# ---- Threads and the compiler -------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_part_once(count, with_threads):
    with_threads(count)
    calls = []
    kernels.in_parallel(calls.append, range(100))
    assert sorted(calls) == list(range(100))
    kernels.in_parallel(calls.append, [])
    assert len(calls) == 100


@pytest.mark.parametrize("failing", [range(1), range(7, 8), range(100)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_exceptions_come_out(count, failing, with_threads):
    with_threads(count)

    def compute(part):
        if part in failing:
            raise ZeroDivisionError(part)

    with pytest.raises(ZeroDivisionError):
        kernels.in_parallel(compute, range(100))


def test_a_fork_has_threads_of_its_own(with_threads):
    """It would wait for ever for those of its parent."""
    with_threads(3)
    kernels.in_parallel(lambda part: None, range(10))
    child = os.fork()
    if not child:
        calls = []
        kernels.in_parallel(calls.append, range(10))
        os._exit(0 if sorted(calls) == list(range(10)) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "limits, count",
    [
        ({}, 8),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "3"}, 2),
        ({"OMP_NUM_THREADS": "99"}, 8),
        ({"OMP_NUM_THREADS": "0"}, 8),
        ({"OMP_NUM_THREADS": "many", "NUMBA_NUM_THREADS": ""}, 8),
    ],
)
def test_thread_count(limits, count, monkeypatch):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert threads.thread_count.__wrapped__() == count


def test_products_of_numpy_have_one_thread_each():
    """Also where NumPy was loaded first, with as many as there are cores."""
    code = """
import numpy, threadpoolctl

def counts():
    found = threadpoolctl.ThreadpoolController().select(internal_api="openblas").info()
    return [library["num_threads"] for library in found]

assert counts() == [2], counts()
import projects.SegFormer.modeling.cpu_kernels.threads
assert counts() == [1], counts()
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd="/")


def test_compiles_where_no_folder_can_be_written(monkeypatch):
    compile_it = numba.njit

    def njit(function, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_it(function, **options)

    monkeypatch.setattr(numba, "njit", njit)

    @compiled.kernel
    def add_one(x):
        x += 1

    x = np.arange(3.0)
    add_one(x)
    assert x.tolist() == [1, 2, 3]


KEEPS = """
import logging, sys
from pathlib import Path
import numpy as np
from numba.core import caching
from projects.SegFormer.modeling.cpu_kernels import compiled

if sys.argv[1] == "full":
    def full(self, *_):
        raise OSError(28, "No space left on device")
    caching.IndexDataCacheFile.save = full
compiled._sources = lambda: sys.argv[2]
exec(compile(Path(sys.argv[3]).read_text(), sys.argv[3], "exec"))
x = np.zeros(2)
add_one(x)
print(x[0], sum(add_one.stats.cache_hits.values()))
"""


def test_kept_kernels_are_of_these_sources(tmp_path):
    """With all of them: parts of other files are compiled into a kernel."""
    source = tmp_path / "kernels.py"
    source.write_text(
        "from projects.SegFormer.modeling.cpu_kernels.compiled import kernel\n\n\n"
        "@kernel\ndef add_one(x):\n    for i in range(len(x)):\n        x[i] += 1\n"
    )

    def hits(disk: str, sources: str) -> int:
        command = [sys.executable, "-c", KEEPS, disk, sources, str(source)]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
        found = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, cwd="/"
        )
        value, count = found.stdout.split()
        assert value == "1.0"
        return int(count)

    asked = [("full", "a"), ("room", "a"), ("room", "a"), ("room", "b")]
    assert [hits(*it) for it in asked] == [0, 0, 1, 0]
    for suffix in ("nbi", "nbc"):
        for file in (tmp_path / "kept").rglob(f"*.{suffix}"):
            file.write_bytes(b"")
        assert [hits("room", "b"), hits("room", "b")] == [0, 1]
