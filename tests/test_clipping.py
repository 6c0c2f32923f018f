"""Clipping by the norm of all gradients together, against PyTorch's."""

import itertools
import json
from pathlib import Path

import numpy as np
import oneflow as flow
import pytest
import torch
from libai.config import LazyCall
from omegaconf import OmegaConf

from conftest import delayed, run_here, training
from projects.SegFormer.engine.graph import SegformerGraph
from projects.SegFormer.engine.optim import (
    classification_param_groups,
    clip_gradients,
    param_groups,
    warmup_poly,
)
from projects.SegFormer.engine.trainer import SegformerTrainer
from projects.SegFormer.model_utils.weight_files import read_weights
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation

LIMIT = 0.5
RATES = (0.3, 0.1, 0.5)  # of a, b and c
OPTIMIZERS = {
    "SGD": dict(lr=1.0, momentum=0.9),
    "AdamW": dict(lr=1.0, weight_decay=0.01),
}
RNG = np.random.default_rng(0)
START = [RNG.normal(size=size).astype(np.float32) for size in ((4, 6), (6, 3), (3,))]
# Gradients of some steps are above the limit, of others below.
INPUTS = [(RNG.normal(size=(8, 4)) * size).astype(np.float32) for size in (3, 0.05, 2, 0.1, 1, 0.2)]

broadcast, split = flow.sbp.broadcast, flow.sbp.split
# Number of ranks, ranks and split of a, b and c, split of the batch.
SPLITS = {
    "one rank": (1, [([0], broadcast)] * 3, broadcast),
    "data": (2, [([0, 1], broadcast)] * 3, split(0)),
    "tensor": (2, [([0, 1], split(1)), ([0, 1], split(0)), ([0, 1], broadcast)], broadcast),
    "pipeline": (2, [([0], broadcast), ([1], broadcast), ([1], broadcast)], broadcast),
}


class Network(flow.nn.Module):
    """mean((tanh(x a) b + c)^2)"""

    def __init__(self, places):
        super().__init__()
        for name, values, (ranks, sbp) in zip("abc", START, places):
            tensor = to_global(values, ranks, sbp)
            setattr(self, name, flow.nn.Parameter(tensor))

    def forward(self, x):
        hidden = flow.tanh(flow.matmul(x, self.a)).to_global(placement=self.b.placement)
        result = flow.matmul(hidden, self.b) + self.c
        return {"losses": delayed((result * result).mean())}


def to_global(values, ranks, sbp):
    tensor = flow.tensor(values).to_global(flow.placement.all("cpu"), sbp=broadcast)
    return tensor.to_global(flow.placement("cpu", ranks), sbp=sbp)


def weights(module) -> list[np.ndarray]:
    everywhere = flow.placement.all("cpu")
    wholes = [p.to_global(everywhere, sbp=broadcast).to_local() for p in module.parameters()]
    return [whole.numpy().copy() for whole in wholes]


def train(name: str, in_graph: bool, micro_batches: int, where: str = "one rank") -> list:
    """Train with a limit; the weights after every step."""
    _, places, batch_sbp = SPLITS[where]
    module = Network(places)
    groups = [
        dict(params=[p], lr=lr, clip_grad_norm=LIMIT) for p, lr in zip(module.parameters(), RATES)
    ]
    optimizer = getattr(flow.optim, name)(groups, **OPTIMIZERS[name])
    if in_graph:
        scheduler = flow.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
        graph = SegformerGraph(module, optimizer, scheduler, grad_acc_steps=micro_batches)
    found = []
    for values in INPUTS:
        if in_graph:
            graph(x=to_global(values, places[0][0], batch_sbp))
        else:
            for part in np.split(values, micro_batches):
                loss = module(to_global(part, places[0][0], batch_sbp))["losses"]
                (loss / micro_batches).backward()
            clip_gradients(optimizer)
            optimizer.step()
            optimizer.zero_grad()
        found.append(weights(module))
    return found


@pytest.fixture(scope="module")
def expected() -> dict[str, list]:
    """The weights after every step by PyTorch."""
    return {name: train_in_pytorch(name) for name in OPTIMIZERS}


def train_in_pytorch(name: str) -> list:
    a, b, c = parameters = [torch.tensor(values, requires_grad=True) for values in START]
    groups = [dict(params=[p], lr=lr) for p, lr in zip(parameters, RATES)]
    optimizer = getattr(torch.optim, name)(groups, **OPTIMIZERS[name])
    found, norms = [], []
    for values in INPUTS:
        optimizer.zero_grad()
        (torch.tanh(torch.tensor(values) @ a) @ b + c).square().mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, LIMIT)))
        optimizer.step()
        found.append([p.detach().numpy().copy() for p in parameters])
    assert min(norms) < LIMIT < max(norms)
    return found


def assert_same(found: list, expected: list) -> None:
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for one, other in zip(ours, theirs, strict=True):
            # A step moves a weight by up to 0.5; OneFlow's eager AdamW rounds at 1e-5 of it.
            np.testing.assert_allclose(one, other, rtol=0, atol=5e-5, err_msg=f"step {step}")


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_pytorch(expected, name, in_graph, micro_batches):
    assert_same(train(name, in_graph, micro_batches), expected[name])


RANKS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import oneflow as flow
from test_clipping import train

_, _, where, runs, file = sys.argv
found = [[[v.tolist() for v in state] for state in train(*run, where)] for run in json.loads(runs)]
if flow.env.get_rank() == 0:
    with open(file, "w") as stream:
        json.dump(found, stream)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["data", "tensor", "pipeline"])
def test_ranks_clip_by_one_norm(expected, run_ranks, tmp_path, where):
    runs = list(itertools.product(OPTIMIZERS, [False, True], [1, 2]))
    file = tmp_path / "states.json"
    run_ranks(SPLITS[where][0], RANKS, Path(__file__).parent, where, json.dumps(runs), file)
    for (name, *_), states in zip(runs, json.loads(file.read_text()), strict=True):
        assert_same([[np.array(values) for values in state] for state in states], expected[name])


@pytest.fixture
def model():
    return SegformerForSemanticSegmentation(
        hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], depths=[1, 1, 1, 1]
    )


@pytest.mark.parametrize("function", [param_groups, classification_param_groups])
def test_limit_of_the_config(model, function):
    head = dict(head_lr_multiplier=10.0) if function is param_groups else {}
    params = LazyCall(function)(lr=1.0, weight_decay=0.01, clip_grad_norm=0.25, **head)
    cfg = OmegaConf.create({"optim": LazyCall(flow.optim.SGD)(params=params)})
    optimizer = SegformerTrainer.build_optimizer(cfg, model)
    before = {}
    for seed, (name, weight) in enumerate(model.named_parameters()):
        before[name] = np.random.default_rng(seed).normal(size=weight.shape).astype(np.float32)
        weight.grad = flow.tensor(before[name]).to_global(weight.placement, weight.sbp)
    clip_gradients(optimizer)
    norm = np.sqrt(sum((values.astype(np.float64) ** 2).sum() for values in before.values()))
    for name, weight in model.named_parameters():
        np.testing.assert_allclose(weight.grad.numpy(), before[name] * (0.25 / norm), rtol=1e-5)


def test_without_a_limit_gradients_stay(model):
    optimizer = flow.optim.SGD(param_groups(model, 1.0, 0.01, 10.0))
    for weight in model.parameters():
        weight.grad = 100 * flow.ones_like(weight)
    clip_gradients(optimizer)
    assert all((weight.grad.numpy() == 100).all() for weight in model.parameters())


@pytest.mark.parametrize("limit", [0, -1.0])
def test_a_limit_that_is_none(model, limit):
    with pytest.raises(InputError, match=r"optim\.params\.clip_grad_norm=.* above 0"):
        param_groups(model, 1.0, 0.01, 10.0, clip_grad_norm=limit)


def test_not_with_mixed_precision(model):
    optimizer = flow.optim.SGD(param_groups(model, 1.0, 0.01, 10.0, clip_grad_norm=1.0))
    with pytest.raises(InputError, match=r"clip_grad_norm does not go with train\.amp\.enabled"):
        SegformerGraph(model, optimizer, warmup_poly(optimizer, 10, 0), fp16=True)


@pytest.mark.slow
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
def test_a_training_is_clipped(folder_data, tmp_path, in_graph):
    """Gradients far below AdamW's eps of 1e-8 move no weight; the first would by the rate, 5e-3."""
    weights = []
    for name, limit, steps in (("short", "1e-15", 1), ("long", "1e-15", 8), ("free", "null", 8)):
        overrides = (
            # What does not move shows in either mode, and a graph takes longer to start.
            f"graph.enabled={in_graph and steps > 1}",
            f"optim.params.clip_grad_norm={limit}",
            "optim.params.weight_decay=0.0",
            f"train.train_iter={steps}",
            "train.evaluation.enabled=False",
        )
        process = run_here(
            "tools/train_net.py", *training(folder_data, tmp_path / name, *overrides)
        )
        assert process.returncode == 0, process.stderr
        weights.append(read_weights(str(tmp_path / name / "model_final")))
    short, long, free = weights
    moved = [key for key in short if not key.endswith(("running_mean", "running_var"))]
    for key in moved:
        assert np.abs(short[key] - long[key]).max() < 1e-6, key
        assert np.abs(short[key] - free[key]).max() > 1e-4, key
