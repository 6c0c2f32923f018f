"""Every layer against PyTorch in float64: results, gradients and state, eager and in a graph."""

import numpy as np
import oneflow as flow
import pytest
import torch
import torch.nn.functional as F
from libai.utils import distributed as dist

from projects.SegFormer.modeling.layers import (
    BatchNorm,
    ChannelDropout,
    Conv2d,
    DepthwiseConv2d,
    DropPath,
    LayerNorm,
    broadcast_sbp,
    upsample_bilinear,
)
from projects.SegFormer.modeling.segformer_model import assign

# Sums of some hundred products in float32, against float64.
CLOSE = dict(rtol=1e-5, atol=1e-5)
ULP = 2.0**-24  # of 1 in float32, halved: the largest relative rounding error


def put(values) -> flow.Tensor:
    tensor = flow.tensor(np.asarray(values, np.float32))
    return tensor.to_global(placement=dist.get_layer_placement(0), sbp=broadcast_sbp())


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def uniform(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def randomise(layer) -> None:
    """Other values than those that a norm begins with."""
    for seed, (name, parameter) in enumerate(layer.named_parameters()):
        assign(parameter, normal(*parameter.shape, seed=100 + seed) * 0.5 + (name == "weight"))


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
    """One step of plain gradient descent; returns the layer's result."""

    def __init__(self, module, optimizer):
        super().__init__()
        self.module = module
        self.add_optimizer(optimizer)

    def build(self, *inputs):
        out, loss = self.module(*inputs)
        loss.backward()
        return out


def eager_results(layer, x, upstream) -> dict[str, np.ndarray]:
    probe = Probe(layer, x)
    out, loss = probe(put(upstream))
    loss.backward()
    gradients = {name.split(".")[-1]: p.grad.numpy() for name, p in probe.named_parameters()}
    return {"out": out.numpy(), **gradients}


def graph_results(layer, x, upstream) -> dict[str, np.ndarray]:
    """The gradients are read off a step with rate 1."""
    probe = Probe(layer, x)
    before = {name: p.numpy() for name, p in probe.named_parameters()}
    out = TrainingGraph(probe, flow.optim.SGD(probe.parameters(), lr=1.0))(put(upstream))
    after = {name: p.numpy() for name, p in probe.named_parameters()}
    gradients = {name.split(".")[-1]: before[name] - after[name] for name in before}
    return {"out": out.numpy(), **gradients}


def torch_results(function, layer, x, upstream) -> dict[str, np.ndarray]:
    """The same of `function(x, weight, bias)`, on maps with the channels first, in float64."""
    channels_first = 0 if layer is None else x.ndim == 4
    leaves = {"x": torch.tensor(x).double()}
    if layer is not None:
        leaves |= {n: torch.tensor(p.numpy()).double() for n, p in layer.named_parameters()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    del channels_first
    out = function(**leaves)
    (out * torch.tensor(upstream).double()).sum().backward()
    gradients = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
    return {"out": out.detach().numpy(), **gradients}
