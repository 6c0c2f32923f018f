"""Parameters and multiply-adds by parts: seen in transformers, in our model, in the paper."""

import importlib
import re
from collections import defaultdict

import pytest
import torch
import transformers
from omegaconf import OmegaConf

from conftest import ROOT
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.flops import model_parts
from projects.SegFormer.modeling.segformer_model import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)
from projects.SegFormer.tools.get_flops import main

IRREGULAR = dict(
    num_channels=4,
    depths=[1, 2, 1, 2],
    hidden_sizes=[12, 20, 24, 40],
    num_attention_heads=[1, 2, 3, 5],
    sr_ratios=[4, 3, 2, 1],
    mlp_ratios=[2, 4, 3, 1],
    patch_sizes=[7, 3, 5, 3],
    strides=[4, 2, 2, 2],
    decoder_hidden_size=36,
    num_classes=7,
)


def model_config(size: str) -> dict:
    return dict(importlib.import_module(f"projects.SegFormer.configs.models.mit_{size}").cfg)


def part_of(name: str, rules: dict[str, str]) -> str:
    """The part that a module or a parameter of this name belongs to; {} is the stage, from 0."""
    for pattern, part in rules.items():
        found = re.match(pattern, name)
        if found:
            return part.format(*(int(stage) + 1 for stage in found.groups()))
    raise AssertionError(f"no part for {name}")


# ---- Multiply-adds ------------------------------------------------------------------------------

TRANSFORMERS = {
    r"segformer\.encoder\.patch_embeddings\.(\d)\.proj": "stage {}, patch embedding",
    r"segformer\.encoder\.block\.(\d)\.\d+\.attention": "stage {}, attention",
    r"segformer\.encoder\.block\.(\d)\.\d+\.mlp": "stage {}, Mix-FFN",
    r"decode_head\.linear_c": "head, linear layers",
    r"decode_head\.linear_fuse": "head, fusion",
    r"decode_head\.classifier": "head, classifier",
}


def counted_in_transformers(cfg: dict, height: int, width: int, monkeypatch) -> dict[str, int]:
    """Multiply-adds of each part, seen in a forward pass of transformers' model."""
    names = ("num_channels", "depths", "hidden_sizes", "num_attention_heads", "sr_ratios")
    names += ("mlp_ratios", "patch_sizes", "strides", "decoder_hidden_size")
    settings = {name: cfg[name] for name in names}
    model = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(**settings, num_labels=cfg["num_classes"])
    ).eval()
    counts = defaultdict(int)
    entered = None

    def enter(module, _inputs):
        nonlocal entered
        entered = module.part

    def count(module, _inputs, output):
        counts[module.part] += output.numel() * module.weight[0].numel()

    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.part = part_of(name, TRANSFORMERS)
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(count)
    matmul = torch.matmul

    def counting_matmul(a, b):  # attention's products come after its linear layers
        counts[entered] += a.numel() * b.shape[-1]
        return matmul(a, b)

    monkeypatch.setattr(torch, "matmul", counting_matmul)
    with torch.no_grad():
        model(torch.zeros(1, cfg["num_channels"], height, width))
    return dict(counts)


@pytest.mark.parametrize(
    ("cfg", "size"),
    [(IRREGULAR, (75, 133)), (IRREGULAR, (64, 64)), (model_config("b0"), (96, 160))],
    ids=["irregular, sides not even", "irregular", "B0"],
)
def test_the_paper_s_form_is_seen_in_transformers(cfg, size, monkeypatch):
    found = {p.name: p.paper_flops for p in model_parts(*size, **cfg) if p.paper_flops}
    assert found == counted_in_transformers(cfg, *size, monkeypatch)


def test_head_here_differs_in_its_fusion():
    """A product of each of the linear layers' weights with a square of the fuse weight."""
    parts = model_parts(64, 64, **IRREGULAR)
    fusion = [part for part in parts if part.flops != part.paper_flops]
    assert [part.name for part in fusion] == ["head, fusion"]
    assert fusion[0].flops == sum(channels * 36 * 36 for channels in (12, 20, 24, 40))


# The paper's table 1: ADE20K at 512x512, B5 at 640x640, and Cityscapes at 1024x2048, in G.
PAPER = {
    "b0": (8.4, 125.5),
    "b1": (15.9, 243.7),
    "b2": (62.4, 717.1),
    "b3": (79.0, 962.9),
    "b4": (95.7, 1240.6),
    "b5": (183.3, 1460.4),
}


@pytest.mark.parametrize("size", PAPER)
def test_the_paper_s_table(size):
    """Biases of convolutions, batch norm and ReLU, up to 0.2%, are in the paper's figures alone."""
    side = 640 if size == "b5" else 512
    for shape, expected in zip([(side, side), (1024, 2048)], PAPER[size]):
        parts = model_parts(*shape, **model_config(size))
        found = sum(part.paper_flops for part in parts) / 1e9
        assert 0.998 * expected - 0.05 < found < expected + 0.05  # the table has one decimal


def test_the_paper_s_table_with_what_mmcv_counts_beside():
    """With those the figure of B0 is the paper's but for rounding, at both sizes."""
    for (height, width), expected in zip([(512, 512), (1024, 2048)], PAPER["b0"]):
        pixels = height * width
        beside = 0
        for stride, channels, sr_ratio in zip((4, 8, 16, 32), (32, 64, 160, 256), (8, 4, 2, 0)):
            tokens = pixels / stride**2
            beside += tokens * channels  # the bias of the patch embedding
            beside += 2 * tokens * 4 * channels  # of Mix-FFN's convolution, in two blocks
            if sr_ratio:
                beside += 2 * tokens / sr_ratio**2 * channels
        beside += pixels / 16 * (2 * 256 + 256 + 150)  # batch norm, ReLU, the classifier's bias
        parts = model_parts(height, width, **model_config("b0"))
        found = (sum(part.paper_flops for part in parts) + beside) / 1e9
        assert found == pytest.approx(expected, abs=0.05)


# ---- Parameters ---------------------------------------------------------------------------------

OURS = {
    r"segformer\.patch_embeds\.(\d)\.proj": "stage {}, patch embedding",
    r"segformer\.patch_embeds\.(\d)\.norm": "stage {}, norms",
    r"segformer\.layer_norms\.(\d)": "stage {}, norms",
    r"segformer\.blocks\.(\d)\.\d+\.(?:norm|attn\.norm)": "stage {}, norms",
    r"segformer\.blocks\.(\d)\.\d+\.attn": "stage {}, attention",
    r"segformer\.blocks\.(\d)\.\d+\.mlp": "stage {}, Mix-FFN",
    r"head\.linear_c\.": "head, linear layers",
    r"head\.linear_fuse": "head, fusion",
    r"head\.batch_norm": "head, batch norm",
    r"head\.linear_pred": "head, classifier",
    r"head\.(?:weight|bias)": "classifier",
}


@pytest.mark.parametrize("is_segmentation", [True, False], ids=["segmentation", "classification"])
def test_parameters_are_those_of_the_model(is_segmentation):
    settings = dict(IRREGULAR)
    if is_segmentation:
        model = SegformerForSemanticSegmentation(**settings)
    else:
        del settings["decoder_hidden_size"]
        model = SegformerForImageClassification(**settings)
    expected = defaultdict(int)
    for name, parameter in model.named_parameters():
        expected[part_of(name, OURS)] += parameter.numel()
    assert {part.name: part.parameters for part in model_parts(64, 64, **settings)} == expected


# ---- The tool -----------------------------------------------------------------------------------


def printed(capsys, *arguments: str) -> dict[str, list[str]]:
    main(list(arguments))
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    return {line[0]: line[1:] for line in lines if len(line) == 4}


def test_table_of_a_model(capsys):
    rows = printed(capsys, "--config", f"{ROOT}/configs/models/mit_b0.py")
    assert rows["part"] == ["parameters", "paper's form", "here"]
    assert len(rows) == 1 + 4 * 4 + 4 + 1
    assert rows["total"] == ["3,752,694", "8.388", "4.126"]
    assert rows["stage 1, norms"] == ["512", "-", "-"]
    assert rows["head, fusion"] == ["262,144", "4.295", "0.034"]


def test_config_to_run_size_and_overrides(capsys):
    city = printed(capsys, "--config", f"{ROOT}/configs/segformer_city.py", "--size", "64", "96")
    b0 = ("--config", f"{ROOT}/configs/models/mit_b0.py", "--size", "64", "96")
    assert printed(capsys, *b0, "cfg.num_classes=19") == city
    assert printed(capsys, *b0) != city
    other = printed(capsys, "--config", f"{ROOT}/configs/segformer_city.py", "cfg.depths=[3,2,2,2]")
    assert other["stage 1, attention"][0] == f"{139_584 * 3 // 2:,}"


def test_table_of_a_classifier(capsys):
    rows = printed(
        *(capsys, "--config", f"{ROOT}/configs/models/classification/mit_cls_b0.py"),
        *("--size", "224", "224"),
    )
    assert rows["classifier"][0] == "257,000" and "head, fusion" not in rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"{ROOT}/configs/models/mit_b0.py", "cfg.num_clases=3"], "num_clases.*num_classes"),
        ([f"{ROOT}/configs/models/mit_b0.py", "cfg.depths=[1,1]"], "4 values and depths 2"),
        ([f"{ROOT}/configs/models/mit_b0.py", "cfg.depths=[1,1"], "cannot read"),
        ([f"{ROOT}/configs/models/mit_b0.py", "train.seed=1"], "train.seed=1.*cfg.key=value"),
        ([f"{ROOT}/configs/segformer_city.py", "cfg.num_clases=3"], "num_clases.*num_classes"),
        ([f"{ROOT}/configs/common/optim.py"], "optim.py is not a config to run"),
        (["nowhere.py"], "no config file nowhere.py"),
        ([f"{ROOT}/configs/models/mit_b0.py", "--size", "16", "64"], "16 64.*32 or more"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(InputError, match=message):
        main(["--config", *arguments])


def test_values_of_omegaconf():
    assert model_parts(64, 64, **OmegaConf.create(IRREGULAR)) == model_parts(64, 64, **IRREGULAR)
