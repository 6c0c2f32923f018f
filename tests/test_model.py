"""The network against transformers' SegFormer in float64: structure, logits, features, gradients."""

import copy

import numpy as np
import oneflow as flow
import pytest
import torch
import transformers
from libai.config import LazyConfig, instantiate

from conftest import ROOT
from projects.SegFormer.engine.graph import SegformerGraph
from projects.SegFormer.model_utils.key_rules import HUGGINGFACE, from_here, to_here
from projects.SegFormer.model_utils.weight_files import load_state, state_of
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.layers import DepthwiseConv2d
from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)
from projects.SegFormer.modeling.segformer_model import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)

# The paper's table 6: depths, channels, channels of the head, and millions of parameters of encoder
# and head (table 1).
PAPER = {
    "b0": ([2, 2, 2, 2], [32, 64, 160, 256], 256, 3.4, 0.4),
    "b1": ([2, 2, 2, 2], [64, 128, 320, 512], 256, 13.1, 0.6),
    "b2": ([3, 4, 6, 3], [64, 128, 320, 512], 768, 24.2, 3.3),
    "b3": ([3, 4, 18, 3], [64, 128, 320, 512], 768, 44.0, 3.3),
    "b4": ([3, 8, 27, 3], [64, 128, 320, 512], 768, 60.8, 3.3),
    "b5": ([3, 6, 40, 3], [64, 128, 320, 512], 768, 81.4, 3.3),
}
B0 = dict(depths=[2, 2, 2, 2], hidden_sizes=[32, 64, 160, 256])
# Nothing here follows from anything else, and the two eps are large enough to show.
IRREGULAR = dict(
    num_channels=4,
    depths=[1, 2, 1, 2],
    hidden_sizes=[12, 20, 24, 40],
    num_attention_heads=[1, 2, 3, 5],
    sr_ratios=[4, 3, 2, 1],
    mlp_ratios=[2, 4, 3, 1],
    patch_sizes=[7, 3, 5, 3],
    strides=[4, 2, 2, 2],
    layer_norm_eps=0.1,
    embed_norm_eps=0.3,
)
TINY = dict(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 2, 2, 4])
TINY_SEGMENTATION = dict(TINY, decoder_hidden_size=12, num_classes=5)
SIZES = [(64, 64), (70, 101), (33, 47), (32, 160)]
SEGMENTATION = (SegformerForSemanticSegmentation, transformers.SegformerForSemanticSegmentation)
CLASSIFICATION = (SegformerForImageClassification, transformers.SegformerForImageClassification)


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- Structure ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
@pytest.mark.parametrize(
    "size", [pytest.param(s, marks=[pytest.mark.slow] if s > "b2" else []) for s in PAPER]
)
def test_structure_and_parameter_counts(size, kind):
    """Every tensor of every config is one of transformers', of the same shape, and none is missing."""
    depths, hidden_sizes, head_size, encoder_millions, head_millions = PAPER[size]
    if kind == "segmentation":
        reference_class, num_classes = SEGMENTATION[1], 150
        file = ROOT / "configs/models" / f"mit_{size}.py"
    else:
        reference_class, num_classes = CLASSIFICATION[1], 1000
        file = ROOT / "configs/models/classification" / f"mit_cls_{size}.py"
    config = transformers.SegformerConfig(
        depths=depths,
        hidden_sizes=hidden_sizes,
        decoder_hidden_size=head_size,
        num_labels=num_classes,
    )
    with transformers.modeling_utils.no_init_weights():
        expected = {
            name: tuple(tensor.shape)
            for name, tensor in reference_class(config).state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
    model = instantiate(LazyConfig.load(str(file)).model)
    state = state_of(model)
    assert {name: value.shape for name, value in from_here(state, HUGGINGFACE).items()} == expected

    assert [len(blocks) for blocks in model.segformer.blocks] == depths
    if kind == "segmentation":
        counts = {"segformer": 0, "head": 0}
        for name, parameter in model.named_parameters():
            counts[name.split(".")[0]] += parameter.numel()
        assert counts["segformer"] / 1e6 == pytest.approx(encoder_millions, abs=0.1)
        assert counts["head"] / 1e6 == pytest.approx(head_millions, abs=0.15)


# ---- The same numbers as transformers ------------------------------------------------------


def random_pair(classes, settings):
    """A model and transformers' in float64, with the same random weights, none as at the beginning."""
    ours_class, reference_class = classes
    rates = {"layer_norm_eps": 1e-6, "embed_norm_eps": 1e-5, **settings}
    layer_norm_eps, embed_norm_eps = rates.pop("layer_norm_eps"), rates.pop("embed_norm_eps")
    reference = reference_class(
        transformers.SegformerConfig(
            **rates, num_labels=7, drop_path_rate=0.0, classifier_dropout_prob=0.0
        )
    )
    torch.manual_seed(0)
    for name, module in reference.named_modules():
        for parameter in module.parameters(recurse=False):
            is_norm_weight = parameter.ndim == 1 and parameter is module.weight
            fan_in = parameter[0].numel()
            parameter.data = torch.randn_like(parameter) * (1.5 / fan_in**0.5 if parameter.ndim > 1 else 0.3)
            parameter.data += is_norm_weight
        if isinstance(module, torch.nn.LayerNorm):
            # After a patch embedding or a spatial reduction, or else in a block or after a stage.
            is_embed_norm = ".patch_embeddings." in name or ".self." in name
            module.eps = embed_norm_eps if is_embed_norm else layer_norm_eps
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    state = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    extra = {"decoder_dropout": 0.0} if classes is SEGMENTATION else {}
    model = ours_class(**settings, **extra, num_classes=7, drop_path_rate=0.0)
    load_state(model, to_here(state, HUGGINGFACE), "transformers")
    return model, reference.double()


@pytest.fixture(scope="module", params=["B0", "irregular"])
def settings(request):
    return B0 if request.param == "B0" else IRREGULAR


@pytest.fixture(scope="module")
def segmentation(settings):
    return random_pair(SEGMENTATION, settings)


@pytest.fixture(scope="module")
def classification(settings):
    return random_pair(CLASSIFICATION, settings)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_tt(segmentation, classification, settings, size, batch):
    images = normal(batch, settings.get("num_channels", 3), *size)
    x=torch.tensor(images).double()
    for model, ref in segmentation, classification:
        model.eval(), ref.eval()
        with torch.no_grad(): e=ref(x, output_hidden_states=True)
        a=model(flow.tensor(images))["prediction_scores"].numpy()
        print(abs(a-e.logits.numpy()).max(), abs(e.logits.numpy()).max())
        if a.ndim==4:
            f=model.segformer(flow.tensor(images))
            for u,v in zip(f,e.hidden_states): print(abs(u.numpy().transpose(0,3,1,2)-v.numpy()).max(), abs(v.numpy()).max())

def test_gg(segmentation, classification, settings):
    images = normal(2, settings.get("num_channels", 3), 70,101)
    x=torch.tensor(images).double()
    labels = np.random.default_rng(0).integers(0,7,(2,70,101)); labels[0,:20]=255
    y=torch.tensor(labels)
    m,r=segmentation
    m.train();r.train()
    lo=torch.nn.functional.interpolate(r(x).logits,size=(70,101),mode="bilinear")
    l=torch.nn.functional.cross_entropy(lo,y,ignore_index=255); l.backward()
    l2=m(flow.tensor(images),flow.tensor(labels))["losses"]; l2.backward()
    print(l.item(), l2.numpy())
    g=from_here({k:p.grad.numpy() for k,p in m.named_parameters()},HUGGINGFACE)
    rr=[]
    for k,p in r.named_parameters():
        rr.append((abs(g[k]-p.grad.numpy()).max()/abs(p.grad.numpy()).max(), abs(g[k]-p.grad.numpy()).max(), abs(p.grad.numpy()).max(),k))
    for z in sorted(rr): print(z)
