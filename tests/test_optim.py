"""Parameter groups and the learning rate, as the optimizer sees it and as a graph applies it."""

import math
import re
from types import SimpleNamespace

import numpy as np
import oneflow as flow
import pytest
from libai.config import instantiate
from libai.engine.default import DefaultTrainer

from conftest import ROOT, delayed
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.graph import SegformerGraph
from projects.SegFormer.engine.optim import (
    classification_param_groups,
    param_groups,
    warmup_cosine,
    warmup_poly,
)
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.layers import parameter
from projects.SegFormer.modeling.segformer_model import (
    SegformerForImageClassification,
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


def rates_by_name(model, **settings):
    """Rate of every parameter, by its name, and the weight decay."""
    groups = param_groups(model, lr=1e-4, weight_decay=0.05, **settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found)) == len(names)
    return dict(found)


def test_rates_by_layer(model):
    multipliers = {
        "segformer.patch_embeds": 0.1,
        "segformer.blocks": 0.5,
        "segformer.blocks.1": 0.25,
        "segformer.blocks.1.0.attn.q.bias": 2.0,
        "head.linear_pred": 3.0,
    }
    plain = rates_by_name(model, head_lr_multiplier=7.0)
    found = rates_by_name(model, head_lr_multiplier=7.0, lr_multipliers=multipliers)
    expected = {
        r"segformer\.patch_embeds\..*": 0.1,
        r"segformer\.blocks\.[023]\..*": 0.5,
        r"segformer\.blocks\.1\.(?!0\.attn\.q\.bias).*": 0.25,
        r"segformer\.blocks\.1\.0\.attn\.q\.bias": 2.0,
        r"segformer\.layer_norms\..*": 1.0,
        r"head\.linear_pred\..*": 3.0,
        r"head\.(?!linear_pred).*": 1.0,
    }
    for name, (rate, decay) in found.items():
        (multiplier,) = {value for key, value in expected.items() if re.fullmatch(key, name)}
        assert rate == pytest.approx(plain[name][0] * multiplier), name
        assert decay == plain[name][1], name


def test_a_name_ends_at_a_dot(model):
    """Of B0 there are no blocks 10 to 19; the head's linear_c has 4 parts."""
    plain = rates_by_name(model, head_lr_multiplier=1.0)
    found = rates_by_name(model, head_lr_multiplier=1.0, lr_multipliers={"head.linear_c.1": 0.5})
    changed = {name for name in found if found[name] != plain[name]}
    assert changed == {"head.linear_c.1.proj.weight", "head.linear_c.1.proj.bias"}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("segformer.block.0", "segformer.blocks.0"),
        ("segformer.blocks.0.", "segformer.blocks.0"),
        ("segformer.patch_embed", "segformer.patch_embeds"),
        ("backbone", "head"),
        ("", "head"),
    ],
)
def test_a_multiplier_of_nothing(model, name, near):
    message = rf"lr_multipliers: the model has no parameters in '{name}'; .*{re.escape(near)}"
    with pytest.raises(InputError, match=message) as caught:
        param_groups(model, 1e-4, 0.05, 1.0, lr_multipliers={name: 0.5})
    assert "\n" not in str(caught.value)


def test_multipliers_from_the_command_line(model):
    override = "optim.params.lr_multipliers={segformer.patch_embeds:0.1,head.linear_pred:2}"
    config = load_config(str(ROOT / "configs/segformer_city.py"), [override]).optim
    config.params.model = model
    rates = {group["lr"] for group in instantiate(config).param_groups}
    assert sorted(rates) == pytest.approx([6e-6, 6e-5, 6e-4, 1.2e-3])


def test_groups_of_classification():
    model = SegformerForImageClassification()
    groups = classification_param_groups(model, lr=1e-3, weight_decay=0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    members = [[names[id(parameter)] for parameter in group.pop("params")] for group in groups]
    assert groups == [dict(lr=1e-3, weight_decay=0.05), dict(lr=1e-3, weight_decay=0.0)]
    assert sorted(members[0] + members[1]) == sorted(names.values())
    vectors = re.compile(r".*(\.bias|norm[12]?\.weight|layer_norms\.\d\.weight)")
    assert all(vectors.fullmatch(name) for name in members[1])
    assert not any(vectors.fullmatch(name) for name in members[0])


# ---- The schedule ---------------------------------------------------------------------------

MAX_ITER = 24
RATES = (1.0, 0.25, 10.0)
SCHEDULES = [
    dict(warmup_iter=6, warmup_factor=1e-6, power=1.0),
    dict(warmup_iter=6, warmup_factor=0.1, power=0.9),
    dict(warmup_iter=1, warmup_factor=1e-6, power=1.0),
    dict(warmup_iter=0, power=1.0),
    dict(warmup_iter=0, power=2.0),
    dict(warmup_iter=6, warmup_factor=1e-3, min_factor=0.01),
    dict(warmup_iter=1, warmup_factor=0.5, min_factor=0.0),
    dict(warmup_iter=0, min_factor=0.2),
]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


def factor(step, warmup_iter, warmup_factor=1e-6, max_iter=MAX_ITER, **decay):
    """The rate at `step` over its base: poly with `power`, cosine with `min_factor`."""
    if step < warmup_iter:
        reached = factor(warmup_iter, 0, max_iter=max_iter, **decay)
        return warmup_factor + (reached - warmup_factor) * step / warmup_iter
    if "power" in decay:
        return (1 - step / max_iter) ** decay["power"]
    lowest = decay["min_factor"]
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * step / max_iter)) / 2


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
    warmup = warmup_poly if "power" in schedule else warmup_cosine
    return module, optimizer, warmup(optimizer, max_iter=MAX_ITER, **schedule)


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


# ---- The recipes' schedules, every iteration --------------------------------------------------

# Base rates of encoder, norms and head or of matrices and vectors; iterations, those of the
# warm-up; lowest and warm-up rate over the base, the decay.
RECIPES = {
    "segformer_city": ([6e-5, 6e-5, 6e-4], 160_000, 1_500, dict(power=1.0)),
    "segformer_coco_stuff": ([6e-5, 6e-5, 6e-4], 80_000, 1_500, dict(power=1.0)),
    "segformer_imgnet1k_pretrain": (
        [1e-3, 1e-3],
        375_342,
        6_256,
        dict(warmup_factor=1e-3, min_factor=1e-2),
    ),
}


def make_recipe(name, model):
    """Optimizer and scheduler of a config; its parameter groups have one number each."""
    config = load_config(str(ROOT / f"configs/{name}.py"))
    config.train.num_accumulation_steps = 1
    DefaultTrainer.auto_scale_hyperparams(config, SimpleNamespace(dataset=[]))
    config.optim.params.model = model
    groups = [dict(group, params=[flow.zeros(1)]) for group in instantiate(config.optim.params)]
    optimizer = flow.optim.AdamW(groups)
    config.train.scheduler.optimizer = optimizer
    return optimizer, instantiate(config.train.scheduler)


@pytest.mark.parametrize("resumed", [False, True], ids=["at once", "resumed"])
@pytest.mark.parametrize("name", RECIPES)
def test_rate_of_every_iteration(model, name, resumed):
    bases, max_iter, warmup_iter, settings = RECIPES[name]
    if name == "segformer_imgnet1k_pretrain":
        model = SegformerForImageClassification()
    # In the warm-up, at its end and right after it, in the middle, before the last step.
    stops = (700, warmup_iter, warmup_iter + 1, max_iter // 2, max_iter - 1) if resumed else ()
    optimizer, scheduler = make_recipe(name, model)
    found = np.empty((max_iter, len(bases)))
    for step in range(max_iter):
        if step in stops:
            saved = optimizer.state_dict(), scheduler.state_dict()
            optimizer, scheduler = make_recipe(name, model)
            optimizer.load_state_dict(saved[0])
            scheduler.load_state_dict(saved[1])
        found[step] = rates(optimizer)
        scheduler.step()
    factors = [factor(t, warmup_iter, max_iter=max_iter, **settings) for t in range(max_iter)]
    np.testing.assert_allclose(found, np.outer(factors, bases), rtol=1e-9)
