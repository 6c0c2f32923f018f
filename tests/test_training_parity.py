"""Twenty steps of training, as transformers' SegFormer in PyTorch takes them."""

import math
from functools import cache

import numpy as np
import oneflow as flow
import pytest
import torch
from libai.config import instantiate
from libai.models import build_graph
from libai.optim import build_optimizer
from libai.scheduler import build_lr_scheduler
from libai.utils import distributed as dist

from conftest import ROOT
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.model_utils.key_rules import HUGGINGFACE, from_here
from projects.SegFormer.modeling.layers import batch_sbp
from projects.SegFormer.tools.train_transformers import (
    adamw,
    rate,
    train_step,
    transformers_model,
)

torch.set_num_threads(1)  # several wait for each other where the cores are busy

STEPS = 20


def make_config(*overrides):
    """The config for Cityscapes, B0, without dropout; its schedule filled in as LiBai does."""
    config = load_config(
        str(ROOT / "configs/segformer_city.py"),
        [
            f"train.train_iter={STEPS}",
            "train.warmup_ratio=0.2",
            "cfg.drop_path_rate=0.0",
            "cfg.decoder_dropout=0.0",
            *overrides,
        ],
    )
    config.train.num_accumulation_steps = 1
    config.train.scheduler.max_iter = STEPS
    config.train.scheduler.warmup_iter = math.ceil(STEPS * config.train.warmup_ratio)
    return config


def make_batches():
    """Two images of 64x64 a step: squares, each class in its colour, and some that are ignored."""
    rng = np.random.default_rng(0)
    colours = rng.normal(0, 1.5, (19, 3))
    for _ in range(STEPS):
        labels = rng.integers(0, 19, (2, 4, 4)).repeat(16, axis=1).repeat(16, axis=2)
        images = colours[labels] + rng.normal(0, 0.3, (2, 64, 64, 3))
        labels[0, :9] = 255
        yield np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32), labels


def make_model(config):
    flow.manual_seed(0)
    return instantiate(config.model)


def eager_losses(config):
    model = make_model(config).train()
    optimizer = build_optimizer(config.optim, model)
    scheduler = build_lr_scheduler(config.train.scheduler, optimizer)
    for images, labels in make_batches():
        loss = model(flow.tensor(images), flow.tensor(labels))["losses"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        yield float(loss.numpy())


def graph_losses(config):
    model = make_model(config).train()
    optimizer = build_optimizer(config.optim, model)
    scheduler = build_lr_scheduler(config.train.scheduler, optimizer)
    graph = build_graph(config, model, optimizer, scheduler, is_train=True)
    placement = dist.get_layer_placement(0)
    for batch in make_batches():
        images, labels = (flow.tensor(a).to_global(placement, batch_sbp()) for a in batch)
        yield float(graph(images=images, labels=labels)["losses"].numpy())


@cache
def expected_losses(overrides):
    """Those of transformers' model, in float64: what is off is off here."""
    config = make_config(*overrides)
    reference = transformers_model(make_model(config), config.model.cfg).double()
    optimizer = adamw(reference, config.optim)
    losses = []
    for step, (images, labels) in enumerate(make_batches()):
        batch = torch.tensor(images).double(), torch.tensor(labels)
        losses.append(train_step(reference, optimizer, *batch, rate(config.train, step)))
    return losses


# The recipe, and rates at which the loss falls by a third. There the rounding of float32 now and
# then puts a pre-activation of the head on the other side of its ReLU, which moves a gradient in
# one step: in float64, noise of 1e-5 on the initial weights moves these losses by up to 9e-5.
RECIPE = pytest.param((), 0.05, 5e-5, id="recipe")
STRONG = pytest.param(
    ("optim.params.lr=3e-4", "optim.params.weight_decay=1"),
    0.3,
    3e-4,
    id="strong",
    marks=pytest.mark.slow,
)


@pytest.mark.slow
@pytest.mark.parametrize("losses", [eager_losses, graph_losses])
@pytest.mark.parametrize("overrides, learnt, tolerance", [RECIPE, STRONG])
def test_loss_of_every_step(losses, overrides, learnt, tolerance):
    losses, expected = list(losses(make_config(*overrides))), expected_losses(overrides)
    assert len(losses) == len(expected) == STEPS
    np.testing.assert_allclose(losses[:5], expected[:5], rtol=1e-5)
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    assert losses[-1] < (1 - learnt) * losses[0]  # or else there was nothing to compare


# ---- The reference itself -------------------------------------------------------------------


def test_reference_has_the_settings_of_the_model():
    config = make_config("cfg.layer_norm_eps=1e-3", "cfg.embed_norm_eps=1e-2")
    reference = transformers_model(make_model(config), config.model.cfg)
    encoder = reference.segformer.encoder
    embed_norms = {id(embedding.layer_norm) for embedding in encoder.patch_embeddings}
    for stage in encoder.block:
        for block in stage:
            if block.attention.self.sr_ratio > 1:
                embed_norms.add(id(block.attention.self.layer_norm))
    norms = [m for m in reference.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 30 and len(embed_norms) == 10
    for norm in norms:
        assert norm.eps == (1e-2 if id(norm) in embed_norms else 1e-3)
    for module in reference.modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0
        assert getattr(module, "drop_prob", 0) in (0, None)


def test_reference_drops_as_the_model_does():
    config = make_config("cfg.drop_path_rate=0.3", "cfg.decoder_dropout=0.2")
    model = make_model(config)
    reference = transformers_model(model, config.model.cfg)
    ours = [block.drop_path.drop_prob for stage in model.segformer.blocks for block in stage]
    theirs = [
        getattr(block.drop_path, "drop_prob", 0.0)  # nn.Identity at rate 0
        for stage in reference.segformer.encoder.block
        for block in stage
    ]
    np.testing.assert_allclose(ours, np.linspace(0, 0.3, 8), rtol=1e-6)
    np.testing.assert_allclose(theirs, ours, rtol=1e-6)
    assert reference.decode_head.dropout.p == model.head.dropout.drop_prob == 0.2


def test_reference_trains_with_the_same_groups_and_rates():
    config = make_config("optim.params.head_lr_multiplier=7", "optim.eps=1e-7")
    model = make_model(config)
    reference = transformers_model(model, config.model.cfg)
    theirs = adamw(reference, config.optim)
    ours = build_optimizer(config.optim, model)
    scheduler = build_lr_scheduler(config.train.scheduler, ours)

    def per_parameter(groups, network, option):
        """The option of every parameter, as a tensor of its shape, by name."""
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        return {
            names[id(parameter)]: np.full(tuple(parameter.shape), group[option])
            for group in groups
            for parameter in (group.parameters if network is model else group["params"])
        }

    for option in ("weight_decay", "eps", "initial_lr"):
        expected = from_here(per_parameter(ours.param_groups, model, option), HUGGINGFACE)
        actual = per_parameter(theirs.param_groups, reference, option)
        assert actual.keys() == expected.keys() == dict(reference.named_parameters()).keys()
        for name in expected:
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-12, err_msg=name)
    assert all(tuple(group["betas"]) == (0.9, 0.999) for group in theirs.param_groups)

    base = ours.param_groups[0]["initial_lr"]
    for step in range(STEPS):
        assert ours.param_groups[0]["lr"] == pytest.approx(
            base * rate(config.train, step), rel=1e-9
        )
        ours.step()
        scheduler.step()
