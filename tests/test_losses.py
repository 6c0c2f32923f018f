"""The losses of segmentation against plain NumPy and PyTorch, in float64: values and gradients."""

import json
from itertools import product

import numpy as np
import oneflow as flow
import pytest
import torch
import torch.nn.functional as F
from libai.utils import distributed as dist
from omegaconf import OmegaConf

from conftest import delayed
from projects.SegFormer.engine.graph import SegformerGraph
from projects.SegFormer.model_utils.model_weights import whole
from projects.SegFormer.modeling import arrays
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.layers import batch_sbp, broadcast_sbp
from projects.SegFormer.modeling.losses import SegmentationLoss
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation

CLASSES, IGNORED = 6, 255
SIZE = (13, 17)  # of the labels; the logits have half of it
# Of logits and labels: rows in any number, and by a whole factor, for which there is a shorter way.
SIZES = {"any size": ((7, 9), SIZE), "strips": ((8, 5), (32, 17))}
WEIGHTS = [0.5, 2.0, 0.0, 1.25, 3.0, 0.1]
CASES = {
    "default": {},
    "weights": dict(class_weights=WEIGHTS),
    "smoothing": dict(label_smoothing=0.2),
    "weights and smoothing": dict(class_weights=WEIGHTS, label_smoothing=0.1),
    "ohem, its threshold": dict(ohem_threshold=0.4, ohem_min_kept=10),
    "ohem, its least number": dict(ohem_threshold=0.01, ohem_min_kept=80),
    "ohem, all that are valid": dict(ohem_threshold=0.01, ohem_min_kept=190),
    "ohem, fewer pixels than that": dict(ohem_threshold=0.01),
    "ohem and weights": dict(ohem_threshold=0.3, ohem_min_kept=9, class_weights=WEIGHTS),
    "dice": dict(dice_weight=0.5),
    "everything": dict(
        class_weights=WEIGHTS,
        label_smoothing=0.1,
        ohem_threshold=0.2,
        ohem_min_kept=100,
        dice_weight=3.0,
    ),
}
EVERYWHERE = dict(placement=flow.placement("cpu", ranks=[0]), sbp=flow.sbp.broadcast)
cases = pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
sizes = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
modes = pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])


def batch(size=(7, 9), label_size=SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Logits (2, h, w, C) and labels (2, H, W). Classes 1 and 5 do not occur.

    Most of the second image is ignored, and the first is easier: ranks that have one of them each
    find different numbers, thresholds and classes.
    """
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 2, 3, 4], (2, *label_size), p=[0.4, 0.3, 0.2, 0.1])
    labels[0][labels[0] == 4] = 3
    logits = rng.normal(0, 2, (2, *size, CLASSES)).astype(np.float32)
    logits[0, ..., 0] += 1.5
    labels[:, 0] = IGNORED
    labels[1, 5:] = IGNORED
    return logits, labels


# ---- The losses, written out ------------------------------------------------------------------


def in_numpy(
    logits,
    labels,
    class_weights=None,
    label_smoothing=0.0,
    ohem_threshold=None,
    ohem_min_kept=100_000,
    dice_weight=0.0,
) -> dict[str, float]:
    """Pixel by pixel, of logits that have the size of the labels."""
    weights = np.ones(CLASSES) if class_weights is None else np.array(class_weights)
    pixels = [
        (label, np.exp(scores) / np.exp(scores).sum())
        for label, scores in zip(labels.ravel(), logits.astype(np.float64).reshape(-1, CLASSES))
        if label != IGNORED
    ]
    hard = pixels
    if ohem_threshold is not None:
        least = ohem_min_kept * len(labels)
        easiest_first = sorted(pixels, key=lambda pixel: -pixel[1][pixel[0]])
        hard = easiest_first[max(0, len(pixels) - least) :]
        hard += [p for p in easiest_first[: -len(hard)] if p[1][p[0]] < ohem_threshold]
    total = 0.0
    for label, probabilities in hard:
        target = (np.arange(CLASSES) == label) * (1 - label_smoothing)
        own = -(target * np.log(probabilities)).sum() * weights[label]
        spread = -(weights * np.log(probabilities)).mean() * label_smoothing
        total += own + spread
    losses = {"losses": total / sum(weights[label] for label, _ in hard)}
    if dice_weight:
        coefficients = []
        for c in {label for label, _ in pixels}:
            overlap = sum(p[c] for label, p in pixels if label == c)
            both = sum(p[c] for _, p in pixels) + sum(label == c for label, _ in pixels)
            coefficients.append((2 * overlap + 1) / (both + 1))
        losses["dice_loss"] = dice_weight * (1 - np.mean(coefficients))
    return losses


def in_torch(
    logits,
    labels,
    class_weights=None,
    label_smoothing=0.0,
    ohem_threshold=None,
    ohem_min_kept=100_000,
    dice_weight=0.0,
) -> tuple[dict[str, float], np.ndarray]:
    """With PyTorch's own interpolation, cross entropy and gradient."""
    coarse = torch.tensor(logits).double().requires_grad_()
    scores = F.interpolate(coarse.permute(0, 3, 1, 2), labels.shape[1:], mode="bilinear")
    labels = torch.tensor(labels)
    valid = labels != IGNORED
    probabilities = scores.softmax(1)
    counted = labels
    if ohem_threshold is not None:
        own = probabilities.gather(1, (labels * valid).unsqueeze(1)).squeeze(1)
        hardest = own[valid].sort().values[: ohem_min_kept * len(labels)]
        is_hard = (own < ohem_threshold) | (own <= hardest[-1])
        counted = torch.where(is_hard, labels, IGNORED)
    losses = {
        "losses": F.cross_entropy(
            scores,
            counted,
            None if class_weights is None else torch.tensor(class_weights).double(),
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
        )
    }
    if dice_weight:
        predicted = probabilities.permute(0, 2, 3, 1)[valid]
        targets = F.one_hot(labels[valid], CLASSES)
        both = predicted.sum(0) + targets.sum(0)
        coefficients = (2 * (predicted * targets).sum(0) + 1) / (both + 1)
        losses["dice_loss"] = dice_weight * (1 - coefficients[targets.sum(0) > 0].mean())
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}, coarse.grad.numpy()


# ---- Ours -------------------------------------------------------------------------------------


class Probe(flow.nn.Module):
    """Logits as a parameter, so that they have a gradient in a graph too."""

    def __init__(self, settings, logits: flow.Tensor):
        super().__init__()
        self.loss = SegmentationLoss.from_config(settings, CLASSES, IGNORED)
        self.logits = flow.nn.Parameter(logits)

    def forward(self, labels):
        losses = self.loss(self.logits, labels)
        return {name: delayed(loss) for name, loss in losses.items()}


def ours(settings, logits, labels, in_graph=False) -> tuple[dict[str, float], np.ndarray]:
    """Losses and gradient; each data-parallel rank has its share of the batch."""

    def put(values):
        values = flow.tensor(values).to_global(dist.get_layer_placement(0), broadcast_sbp())
        return values.to_global(sbp=batch_sbp())

    probe, labels = Probe(settings, put(logits)), put(labels)
    if in_graph:  # the gradient is read off a step of gradient descent with rate 1
        graph = SegformerGraph(probe, flow.optim.SGD(probe.parameters(), lr=1.0))
        losses = graph(labels=labels)
        gradient = logits - whole(probe.logits).numpy()
    else:
        losses = probe(labels)
        sum(losses.values()).backward()
        gradient = whole(probe.logits.grad).numpy()
    return {name: float(whole(loss).numpy()) for name, loss in losses.items()}, gradient


def check(actual, expected, tolerance=3e-6) -> None:
    """Both are losses and gradient, or losses alone."""
    assert actual[0] == pytest.approx(expected[0], rel=tolerance)
    for a, b in zip(actual[1:], expected[1:]):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@cases
def test_values(settings):
    logits, labels = batch(SIZE)
    losses, _ = ours(settings, logits, labels)
    check([losses], [in_numpy(logits, labels, **settings)])


@sizes
@pytest.mark.parametrize("name", ["default", "weights and smoothing", "everything"])
def test_values_without_gradients(sizes, name):
    """As a validation loss: under no_grad, from logits that want a gradient and that do not."""
    logits, labels = batch(*sizes)
    probe = Probe(CASES[name], flow.tensor(logits, **EVERYWHERE))
    labels_tensor = flow.tensor(labels, **EVERYWHERE)
    expected = in_torch(logits, labels, **CASES[name])[0]
    with flow.no_grad():
        found = probe(labels_tensor)
        frozen = probe.loss(probe.logits.detach(), labels_tensor)
    for losses in (found, frozen):
        assert not any(loss.requires_grad for loss in losses.values())
        check([{key: float(loss.numpy()) for key, loss in losses.items()}], [expected])


@modes
@sizes
@cases
def test_gradients(settings, sizes, in_graph):
    logits, labels = batch(*sizes)
    # A gradient of 1e-3 is the difference of logits of 1, which are rounded to 1e-7.
    tolerance = 1e-4 if in_graph else 3e-6
    check(ours(settings, logits, labels, in_graph), in_torch(logits, labels, **settings), tolerance)


@modes
@sizes
@cases
def test_no_valid_pixel(settings, sizes, in_graph):
    logits, labels = batch(*sizes)
    losses, gradient = ours(settings, logits, np.full_like(labels, IGNORED), in_graph)
    assert set(losses) == ({"losses", "dice_loss"} if "dice_weight" in settings else {"losses"})
    assert set(losses.values()) == {0.0}
    assert not gradient.any()


@sizes
@cases
def test_operators_of_oneflow(settings, sizes, monkeypatch):
    """In eager mode on a CPU, which has kernels without being told otherwise."""
    monkeypatch.setattr(arrays, "_computes_here", lambda tensors: False)
    logits, labels = batch(*sizes)
    check(ours(settings, logits, labels), in_torch(logits, labels, **settings))


@pytest.mark.parametrize("label", [CLASSES, -1])
def test_labels_of_no_class_are_told(label):
    logits, labels = batch()
    labels[0, 5, 5] = label
    with pytest.raises(InputError, match=f"labels from .*{label}.* has {CLASSES} classes"):
        ours({}, logits, labels)


def test_pixels_of_no_weight():
    """PyTorch's mean is 0 / 0 there."""
    logits, labels = batch()
    losses, gradient = ours(dict(class_weights=WEIGHTS), logits, np.full_like(labels, 2))
    assert losses == {"losses": 0.0} and not gradient.any()


TWO_RANKS = """
import json, sys
import numpy as np
import oneflow as flow
from libai.utils import distributed as dist
from omegaconf import OmegaConf

sys.path.insert(0, "tests")
from test_losses import CASES, SIZES, batch, ours

dist.setup_dist_util(OmegaConf.create(dict(
    data_parallel_size=2, tensor_parallel_size=1, pipeline_parallel_size=1, pipeline_num_layers=1
)))
found = {}
for name, settings in CASES.items():
    for kind, sizes in SIZES.items():
        for in_graph in (False, True):
            losses, gradient = ours(settings, *batch(*sizes), in_graph)
            found[f"{name}, {kind}, {in_graph}"] = losses, gradient.tolist()
json.dump(found, open(f"{sys.argv[1]}/{flow.env.get_rank()}.json", "w"))
"""


@pytest.mark.slow
def test_two_ranks_have_the_losses_and_the_gradient_of_one(run_ranks, tmp_path):
    run_ranks(2, TWO_RANKS, tmp_path)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) == 4 * len(CASES)
        for (name, settings), (kind, sizes) in product(CASES.items(), SIZES.items()):
            expected = in_torch(*batch(*sizes), **settings)
            for in_graph, tolerance in ((False, 3e-6), (True, 1e-4)):
                losses, gradient = found[f"{name}, {kind}, {in_graph}"]
                check((losses, np.array(gradient)), expected, tolerance)


# ---- In the model -----------------------------------------------------------------------------

TINY = dict(
    depths=[1, 1, 1, 1],
    hidden_sizes=[8, 8, 16, 16],
    num_attention_heads=[1, 2, 2, 4],
    decoder_hidden_size=12,
    num_classes=CLASSES,
)


def test_model_takes_the_loss_of_its_config():
    """The values as nodes of OmegaConf, as in a config file or from the command line."""
    logits, labels = batch()
    settings = CASES["everything"]
    cfg = OmegaConf.create(dict(TINY, loss=dict(settings), ignore_index=IGNORED))
    model = SegformerForSemanticSegmentation(cfg=cfg)
    placement = dist.get_layer_placement(0)
    tensors = [flow.tensor(v).to_global(placement, broadcast_sbp()) for v in (logits, labels)]
    found = {name: float(loss.numpy()) for name, loss in model.loss(*tensors).items()}
    check([found], [in_torch(logits, labels, **settings)[0]])
    trained = model.train()(flow.zeros(1, 3, 32, 32), flow.zeros(1, 32, 32, dtype=flow.int64))
    assert set(trained) == {"losses", "dice_loss"}
    assert not any("loss" in name for name in model.state_dict())


@pytest.mark.parametrize(
    "loss, message",
    [
        (dict(class_weights=[1.0, 2.0]), "class_weights has 2 values and num_classes is 6"),
        (dict(class_weights=[1, 1, 1, 1, 1, -1]), "class_weights=.*-1.* 0 or more"),
        (dict(class_weights=[1, 1, 1, 1, 1, float("nan")]), "class_weights=.*nan.* 0 or more"),
        (dict(class_weights="median"), "class_weights='median': expected a list"),
        (dict(class_weights=3.0), "class_weights=3.0: expected a list"),
        (dict(label_smoothing=1.5), "label_smoothing=1.5: .*from 0 to 1"),
        (dict(ohem_threshold=0), r"ohem_threshold=0: .*\(0, 1\]"),
        (dict(ohem_threshold=1.01), r"ohem_threshold=1.01: .*\(0, 1\]"),
        (dict(ohem_min_kept=1e5), "ohem_min_kept=100000.0: expected a whole number"),
        (dict(ohem_min_kept=-1), "ohem_min_kept=-1"),
        (dict(dice_weight="much"), "dice_weight='much': expected a number"),
        (dict(dice_weight=-0.1), "dice_weight=-0.1"),
        (dict(dice=1.0), "no setting 'dice': it has class_weights, .*dice_weight"),
    ],
)
def test_settings_that_cannot_be(loss, message):
    with pytest.raises(InputError, match=rf"^loss[. ].*{message}"):
        SegformerForSemanticSegmentation(cfg=OmegaConf.create(dict(TINY, loss=loss)))
