"""Weights of transformers, of the paper's authors and of LiBai: every tensor where it belongs."""

import json
import os
import pickle

import numpy as np
import oneflow as flow
import pytest
import torch
import transformers

from projects.SegFormer.model_utils.key_rules import (
    HUGGINGFACE,
    LIBAI,
    OFFICIAL_IMAGENET,
    from_here,
    to_here,
)
from projects.SegFormer.model_utils.load_pretrained_imagenet1k import SegFLoaderImageNet1kPretrain
from projects.SegFormer.model_utils.segf_loader import (
    SegFLoaderHuggerFace,
    SegFLoaderLiBai,
    load_weights,
)
from projects.SegFormer.model_utils.weight_files import load_state, state_of
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)
from projects.SegFormer.modeling.segformer_model import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)

B0 = dict(depths=[2, 2, 2, 2], hidden_sizes=[32, 64, 160, 256])
ENCODER = dict(
    depths=[1, 2, 1, 1],
    hidden_sizes=[8, 12, 16, 16],
    num_attention_heads=[1, 2, 2, 4],
    sr_ratios=[4, 2, 2, 1],
    mlp_ratios=[2, 3, 4, 4],
)
SEGMENTATION = dict(ENCODER, decoder_hidden_size=12, num_classes=5)
CLASSIFICATION = dict(ENCODER, num_classes=6)


def reference(kind, settings):
    """transformers' model of these settings, no tensor like another, and none like itself mirrored."""
    settings = {**settings, "num_labels": settings.get("num_classes", 150)}
    settings.pop("num_classes", None)
    model = getattr(transformers, kind)(transformers.SegformerConfig(**settings))
    distinct({name: tensor for name, tensor in model.state_dict().items() if tensor.ndim})
    return model


def distinct(state):
    """Give every element of every tensor a value that no other has."""
    start = 1
    for tensor in state.values():
        tensor.copy_(torch.arange(start, start + tensor.numel()).reshape(tensor.shape) / 2**20)
        start += tensor.numel()
    return state


def arrays(state):
    return {
        name: tensor.numpy()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def official_state(depths, hidden_sizes, num_classes, sr_ratios=(8, 4, 2, 1), mlp_ratios=(4,) * 4, **_):
    """A state with the names and shapes of the paper's mit_bX.pth."""
    shapes = {}

    def norm(name, size):
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    def linear(name, size, out):
        shapes.update({f"{name}.weight": (out, size), f"{name}.bias": (out,)})

    def conv(name, size, out, kernel):
        shapes.update({f"{name}.weight": (out, size, kernel, kernel), f"{name}.bias": (out,)})

    channels = 3
    for stage, size in enumerate(hidden_sizes):
        conv(f"patch_embed{stage + 1}.proj", channels, size, 3 if stage else 7)
        norm(f"patch_embed{stage + 1}.norm", size)
        for index in range(depths[stage]):
            block = f"block{stage + 1}.{index}"
            hidden = size * mlp_ratios[stage]
            norm(f"{block}.norm1", size)
            linear(f"{block}.attn.q", size, size)
            linear(f"{block}.attn.kv", size, 2 * size)
            linear(f"{block}.attn.proj", size, size)
            if sr_ratios[stage] > 1:
                conv(f"{block}.attn.sr", size, size, sr_ratios[stage])
                norm(f"{block}.attn.norm", size)
            norm(f"{block}.norm2", size)
            linear(f"{block}.mlp.fc1", size, hidden)
            conv(f"{block}.mlp.dwconv.dwconv", 1, hidden, 3)
            linear(f"{block}.mlp.fc2", hidden, size)
        norm(f"norm{stage + 1}", size)
        channels = size
    linear("head", channels, num_classes)
    return distinct({name: torch.empty(shape) for name, shape in shapes.items()})


# Names here, of transformers, and of the paper. `i` and `j` stand for stage and block from 0, `I` for
# the stage from 1; a `T` before a name is for a transposed weight.
NAMES = """
segformer.patch_embeds.i.proj              segformer.encoder.patch_embeddings.i.proj              patch_embedI.proj
segformer.patch_embeds.i.norm              segformer.encoder.patch_embeddings.i.layer_norm        patch_embedI.norm
segformer.blocks.i.j.norm1                 segformer.encoder.block.i.j.layer_norm_1               blockI.j.norm1
Tsegformer.blocks.i.j.attn.q               segformer.encoder.block.i.j.attention.self.query       blockI.j.attn.q
"""
