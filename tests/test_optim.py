"""Parameter groups and the learning rate, as the optimizer sees it and as a graph applies it."""

import re

import numpy as np
import oneflow as flow
import pytest
from libai.config import instantiate

from conftest import ROOT, delayed
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.graph import SegformerGraph
from projects.SegFormer.engine.optim import param_groups, warmup_poly
from projects.SegFormer.modeling.layers import parameter
from projects.SegFormer.modeling.segformer_model import (
    SegformerForSemanticSegmentation,
    assign,
)

# ---- Parameter groups -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return SegformerForSemanticSegmentation()


def group_of(name: str) -> str:
    """By the name alone: the head; norm, norm1, norm2 and layer_norms.i; the rest."""
    if name.startswith("head."):
        return "head"
    is_norm = re.search(r"(\.norm[12]?|\.layer_norms\.\d)\.(weight|bias)$", name)
    return "norm" if is_norm else "encoder"


def test_every_parameter_is_in_its_group_once(model):
    expected = {
        "encoder": dict(lr=1e-4, weight_decay=0.05),
        "norm": dict(lr=1e-4, weight_decay=0.0),
        "head": dict(lr=7e-4, weight_decay=0.05),
    }
    groups = param_groups(model, lr=1e-4, weight_decay=0.05, head_lr_multiplier=7.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = []
    for group in groups:
        members = [names[id(parameter)] for parameter in group["params"]]
        kinds = {group_of(name) for name in members}
        assert len(kinds) == 1, kinds
        options = {key: value for key, value in group.items() if key != "params"}
        assert options == pytest.approx(expected[kinds.pop()])
        seen += members
    assert sorted(seen) == sorted(names.values())

    sizes = {"encoder": 0, "norm": 0, "head": 0}
    for name in seen:
        sizes[group_of(name)] += 1
    # Norms of B0: 4 of patch embeddings, 2 in each of 8 blocks, 6 of reductions, 4 of stages.
    assert sizes["norm"] == 2 * (4 + 2 * 8 + 6 + 4)
    assert sizes["head"] == 4 * 2 + 1 + 2 + 2


def test_optimizer_of_the_config(model):
    config = load_config(str(ROOT / "configs/segformer_city.py")).optim
    config.params.model = model
    optimizer = instantiate(config)
    assert type(optimizer) is flow.optim.AdamW
    options = {}
    for group in optimizer.param_groups:
        (kind,) = {
            group_of(name)
            for name, parameter in model.named_parameters()
            if any(parameter is member for member in group.parameters)
        }
        options[kind] = (group["lr"], group["weight_decay"], tuple(group["betas"]), group["eps"])
    assert options == {
        "encoder": (6e-5, 0.01, (0.9, 0.999), 1e-8),
        "norm": (6e-5, 0.0, (0.9, 0.999), 1e-8),
        "head": (pytest.approx(6e-4), 0.01, (0.9, 0.999), 1e-8),
    }


# ---- The schedule ---------------------------------------------------------------------------

MAX_ITER = 24
RATES = (1.0, 0.25, 10.0)
SCHEDULES = [
    dict(warmup_iter=6, warmup_factor=1e-6, power=1.0),
    dict(warmup_iter=6, warmup_factor=0.1, power=0.9),
    dict(warmup_iter=1, warmup_factor=1e-6, power=1.0),
    dict(warmup_iter=0, power=1.0),
    dict(warmup_iter=0, power=2.0),
]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


def factor(step, warmup_iter, power, warmup_factor=1e-6):
    """The rate at `step` over its base."""
    if step >= warmup_iter:
        return (1 - step / MAX_ITER) ** power
    reached = (1 - warmup_iter / MAX_ITER) ** power
    return warmup_factor + (reached - warmup_factor) * step / warmup_iter


class Slopes(flow.nn.Module):
    """A number for each group, all zero; every gradient is `slope`."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.slope = slope
        self.a, self.b, self.c = (parameter((1,), 0) for _ in RATES)

    def forward(self):
        return {"losses": delayed(self.slope * (self.a + self.b + self.c).sum())}

    def values(self):
        return np.array([number.numpy()[0] for number in self.parameters()], np.float64)


def make(schedule):
    module = Slopes()
    groups = [dict(params=[number], lr=rate) for number, rate in zip(module.parameters(), RATES)]
    optimizer = flow.optim.SGD(groups, lr=1.0)
    return module, optimizer, warmup_poly(optimizer, max_iter=MAX_ITER, **schedule)


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@schedules
def test_rate_of_every_step(schedule):
    _, optimizer, scheduler = make(schedule)
    for step in range(MAX_ITER + 1):
        expected = factor(step, **schedule) * np.array(RATES)
        np.testing.assert_allclose(rates(optimizer), expected, rtol=1e-9, atol=1e-12)
        optimizer.step()
        scheduler.step()


@schedules
@pytest.mark.parametrize("stop", [1, 5, 6, 7, 20])
def test_rate_after_a_resume(schedule, stop):
    _, optimizer, scheduler = make(schedule)
    for _ in range(stop):
        optimizer.step()
        scheduler.step()
    saved = optimizer.state_dict(), scheduler.state_dict()
    _, optimizer, scheduler = make(schedule)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    for step in range(stop, MAX_ITER + 1):
        expected = factor(step, **schedule) * np.array(RATES)
        np.testing.assert_allclose(rates(optimizer), expected, rtol=1e-9, atol=1e-12)
        optimizer.step()
        scheduler.step()


@schedules
def test_rate_that_a_graph_applies(schedule):
    """Read off how far each step moves a parameter whose gradient is 1."""
    module, optimizer, scheduler = make(schedule)
    graph = SegformerGraph(module, optimizer, scheduler)
    before = module.values()
    for step in range(MAX_ITER):
        graph()["losses"].numpy()
        after = module.values()
        # The numbers grow to a dozen times their rate: so much is lost in the difference of two.
        factors = (before - after) / RATES
        np.testing.assert_allclose(factors, factor(step, **schedule), rtol=0, atol=2e-6)
        before = after


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_decay_that_a_step_applies(in_graph):
    """Where the gradient is 0, AdamW takes rate times decay of each parameter, group by group."""
    decays = np.array([0.0, 0.2, 0.01])
    module = Slopes(slope=0.0)
    groups = []
    for number, rate, decay in zip(module.parameters(), RATES, decays):
        assign(number, np.ones(1))
        groups.append(dict(params=[number], lr=rate, weight_decay=decay))
    optimizer = flow.optim.AdamW(groups, lr=1.0)
    scheduler = warmup_poly(optimizer, max_iter=MAX_ITER, warmup_iter=6)
    graph = SegformerGraph(module, optimizer, scheduler) if in_graph else None
    expected = np.ones(3)
    for step in range(MAX_ITER):
        if in_graph:
            graph()["losses"].numpy()
        else:
            module()["losses"].backward()
            optimizer.step()
            scheduler.step()
        expected *= 1 - factor(step, warmup_iter=6, power=1.0) * np.array(RATES) * decays
        np.testing.assert_allclose(module.values(), expected, rtol=1e-5)
