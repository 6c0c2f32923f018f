"""Weights as people have them: in containers, behind prefixes, with adapters, under other names."""

import argparse
import datetime
import gzip
import io
import json
import os
import pathlib
import pickle
import tarfile
import zipfile

import numpy as np
import oneflow as flow
import pytest
import torch
import transformers
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from projects.SegFormer.engine.checkpoint import Checkpointer
from projects.SegFormer.model_utils.huggingface_config import read_config, to_settings
from projects.SegFormer.model_utils.key_rules import (
    HUGGINGFACE,
    LIBAI,
    OFFICIAL_IMAGENET,
    OFFICIAL_SEGMENTATION,
    SMP,
    from_here,
    lazily_here,
)
from projects.SegFormer.model_utils.lazy_state import LazyState
from projects.SegFormer.model_utils.model_weights import load_state, state_of
from projects.SegFormer.model_utils.segf_loader import (
    SegFLoaderHuggerFace,
    SegFLoaderOfficial,
    eps_in,
    fill_model,
    load_weights,
    open_in_any_format,
)
from projects.SegFormer.model_utils.unwrapping import find_fit
from projects.SegFormer.model_utils.weight_files import read_meta
from projects.SegFormer.model_utils.weight_writers import write_huggingface, write_libai
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)
from projects.SegFormer.modeling.segformer_model import (
    SegformerForSemanticSegmentation,
    SegformerModel,
)
from projects.SegFormer.modeling.sizes import SIZES

TINY = dict(
    depths=[1, 2, 1, 1],
    hidden_sizes=[8, 12, 16, 16],
    num_attention_heads=[1, 2, 2, 4],
    sr_ratios=[4, 2, 2, 1],
    mlp_ratios=[2, 3, 4, 4],
    patch_sizes=[7, 3, 3, 3],
    strides=[4, 2, 2, 2],
    decoder_hidden_size=12,
    num_classes=5,
)


@pytest.fixture(scope="module")
def here() -> dict[str, np.ndarray]:
    """A state of the tiny model, no two elements alike."""
    start, state = 1, {}
    for name, value in state_of(SegformerForSemanticSegmentation(**TINY)).items():
        numbers = np.arange(start, start + value.size) / 2**18
        state[name] = numbers.astype(np.float32).reshape(value.shape)
        start += value.size
    return state


def tensors(state: dict, prefix: str = "") -> dict:
    return {prefix + name: torch.from_numpy(value.copy()) for name, value in state.items()}


def saved(path, content) -> str:
    torch.save(content, path)
    return str(path)


def assert_read(path, expected: dict[str, np.ndarray]) -> None:
    state = dict(open_in_any_format(str(path))[0].read())
    assert state.keys() - {"head.batch_norm.num_batches_tracked"} == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


# ---- Containers and prefixes ------------------------------------------------------------------

CONTAINERS = (
    *("state_dict", "model", "model_state_dict", "state_dict_ema", "params", "params_ema", "ema"),
    *("module", "network", "net", "weights", "teacher", "student", "model_state", "generator"),
    *("model.state_dict", "checkpoint.model", "a.b.c.d", "ema.state_dict"),
)
PREFIXES = (
    *("module.", "_orig_mod.", "model.", "net.", "network.", "student.", "ema.", "segformer."),
    *("module._orig_mod.", "_orig_mod.module.", "model.net.", "net.model.module.", "a.b.c.d.e."),
    *("base_model.model.", "encoder.", "backbone."),
)
SOME_FORMATS = (HUGGINGFACE, OFFICIAL_SEGMENTATION, SMP, LIBAI)


def contained(name: str, content: dict, beside) -> dict:
    for container in reversed(name.split(".")):
        content = {container: content, "epoch": 3, **beside}
    return content


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(here, tmp_path, container):
    content = contained(container, tensors(from_here(here, HUGGINGFACE)), {"name": "x"})
    assert_read(saved(tmp_path / "x.pth", content), here)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(here, tmp_path, prefix):
    """Of every format, and in a container or not."""
    for key_format in SOME_FORMATS:
        state = from_here(here, key_format)
        assert_read(saved(tmp_path / "x.pth", tensors(state, prefix)), here)
    assert_read(saved(tmp_path / "x.pth", {"state_dict": tensors(state, prefix)}), here)


def test_prefixes_in_other_files(here, tmp_path):
    named = {f"net.module.{name}": value for name, value in from_here(here, HUGGINGFACE).items()}
    save_file(named, tmp_path / "x.safetensors")
    assert_read(tmp_path / "x.safetensors", here)
    flow.save({name: flow.tensor(value) for name, value in named.items()}, str(tmp_path / "x"))
    assert_read(tmp_path / "x", here)


@pytest.mark.parametrize(
    "inside", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"]
)
def test_wrappers_within_the_names(here, tmp_path, inside):
    state = {
        name.replace(".block.", f".block.{inside}."): value
        for name, value in from_here(here, HUGGINGFACE).items()
    }
    assert_read(saved(tmp_path / "x.pth", tensors(state)), here)


def test_modules_in_containers_of_their_own(here, tmp_path):
    """As of a backbone and a head that were saved apart in one file."""
    parts = {"backbone": {}, "decode_head": {}}
    for name, value in tensors(from_here(here, OFFICIAL_SEGMENTATION)).items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    assert_read(saved(tmp_path / "x.pth", {"model": parts}), here)


def lightning(state: dict) -> dict:
    """A checkpoint of Lightning with all that it has beside the weights."""
    moment = {"step": torch.tensor(7.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    return {
        "epoch": 3,
        "global_step": 700,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state | {"criterion.weight": torch.ones(5)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'x'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: moment}, "param_groups": [{"lr": 1e-3, "params": [0]}]}],
        "lr_schedulers": [{"base_lrs": [1e-3], "_last_lr": [1e-4], "last_epoch": 7}],
        "hyper_parameters": argparse.Namespace(path=pathlib.Path("/x"), classes=("a", "b")),
        "datamodule_hyper_parameters": OmegaConf.create({"root": "/x", "sizes": [512, 512]}),
        "MixedPrecision": {"scale": 65536.0, "_growth_tracker": 12},
    }


def mmcv(state: dict) -> dict:
    meta = {"CLASSES": ("a", "b"), "time": "now", "mmcv_version": "1.6", "seed": np.int64(3)}
    return {"meta": meta, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def training_loop(state: dict) -> dict:
    scalars = {"epoch": torch.tensor(3), "best": np.float64(0.7), "step": np.int64(3)}
    return {**scalars, "model": state, "when": datetime.datetime(2024, 5, 4), "args": None}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("beside", [lightning, mmcv, training_loop])
def test_what_stands_beside_weights(here, tmp_path, beside, zipped):
    state = tensors(from_here(here, OFFICIAL_SEGMENTATION), "net.")
    torch.save(beside(state), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_read(tmp_path / "x.pth", here)
    if beside is mmcv:
        assert read_meta(str(tmp_path / "x.pth"))["CLASSES"] == ("a", "b")


SEVERAL = (  # the one that is taken, the other
    *(("state_dict.", "state_dict_ema."), ("model.", "model_ema."), ("params.", "params_ema.")),
    *(("student.", "teacher."), ("net.", "ema."), ("online_model.", "ema_model."), ("", "ema.")),
    *(("module.model.", "module.averaged."), ("model.net.", "swa.net."), ("first.", "second.")),
)


@pytest.mark.parametrize("taken, other", SEVERAL)
@pytest.mark.parametrize("is_first", [True, False])
def test_of_several_sets_of_weights_one_is_taken_and_named(
    here, tmp_path, caplog, taken, other, is_first
):
    if taken == "first." and not is_first:
        taken, other = other, taken
    state = from_here(here, HUGGINGFACE)
    mine = tensors(state, taken)
    others = tensors({name: value + 1 for name, value in state.items()}, other)
    content = mine | others if is_first or taken == "second." else others | mine
    if taken == "second.":
        content = mine | others
    assert_read(saved(tmp_path / "x.pth", content), here)
    (message,) = [record.message for record in caplog.records]
    named = [(name.removeprefix("module.") or "no prefix").rstrip(".") for name in (taken, other)]
    assert f"under {named[0]}, which is taken, and under {named[1]}." in message


def test_what_is_no_part_of_the_model_is_left_out(here, tmp_path, caplog):
    state = from_here(here, OFFICIAL_SEGMENTATION)
    more = {
        "auxiliary_head.conv_seg.weight": np.ones(3, np.float32),
        "criterion.weight": np.ones(5, np.float32),
        "metric.confusion": np.ones((5, 5), np.int64),
    }
    caplog.set_level("INFO", "libai")
    assert_read(saved(tmp_path / "x.pth", tensors(state | more)), here)
    assert "3 tensors beside the weights are left out, as auxiliary_head" in caplog.text
    counted = {"backbone.total_ops": np.ones(1), "total_params": np.ones(1)}  # of a profiler
    path = saved(tmp_path / "x.pth", tensors(state | counted))
    load_weights(TINY, path)


@pytest.mark.parametrize(
    "keys, message",
    [
        (["blocks.0.norm1.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight",
          "blocks.0.attn.proj.weight", "norm.weight", "cls_token"], "holds no SegFormer weights"),
        (["layer1.0.conv1.weight", "bn1.weight", "fc.weight"], "holds no SegFormer weights"),
        (["pos_embed1", "patch_embed1.proj.weight", "block1.0.norm1.weight"], "of PVT "),
        (["model.pvt.encoder.patch_embeddings.0.projection.weight"], "of PVT "),
        (["stages.0.blocks.0.attn.kv.weight", "stages.0.norm.weight"], "of PVTv2 "),
        (["pvt_v2.encoder.layers.0.blocks.0.attention.query.weight"], "of PVTv2 "),
    ],
)  # fmt: skip
def test_other_networks(tmp_path, keys, message):
    path = saved(tmp_path / "x.pth", {key: torch.zeros(4, 4) for key in keys})
    with pytest.raises(InputError, match=message):
        open_in_any_format(path)


# ---- Adapters ---------------------------------------------------------------------------------

LAYERS = (  # in transformers; the shapes of the factors
    ("segformer.encoder.block.1.0.attention.self.query", (3, 12), (12, 3)),
    ("segformer.encoder.block.1.1.mlp.dense1", (3, 12), (36, 3)),
    ("segformer.encoder.patch_embeddings.0.proj", (3, 3, 7, 7), (8, 3, 1, 1)),
)
CLASSIFIER = "decode_head.classifier"


def with_adapters(here, folder, base_layer=".base_layer", **config):
    """A file of a PEFT model, and the state that merging gives, by torch."""
    state = tensors(from_here(here, HUGGINGFACE))
    expected = {name: value.clone() for name, value in state.items()}
    random = torch.Generator().manual_seed(0)
    for layer, a_shape, b_shape in LAYERS:
        a, b = (torch.randn(shape, generator=random) for shape in (a_shape, b_shape))
        weight = expected[f"{layer}.weight"]
        if weight.ndim == 2:
            change = torch.einsum("or,ri->oi", b, a)
        else:
            change = torch.nn.functional.conv2d(a.permute(1, 0, 2, 3), b).permute(1, 0, 2, 3)
        weight += 16 / 3 * change
        for leaf in ("weight", "bias"):
            state[f"{layer}{base_layer}.{leaf}"] = state.pop(f"{layer}.{leaf}")
        state |= {f"{layer}.lora_A.default.weight": a, f"{layer}.lora_B.default.weight": b}
    for leaf in ("weight", "bias"):
        saved_beside = expected[f"{CLASSIFIER}.{leaf}"] + 1
        expected[f"{CLASSIFIER}.{leaf}"] = saved_beside
        state[f"{CLASSIFIER}.original_module.{leaf}"] = state.pop(f"{CLASSIFIER}.{leaf}")
        state[f"{CLASSIFIER}.modules_to_save.default.{leaf}"] = saved_beside
    content = {"peft_type": "LORA", "r": 3, "lora_alpha": 16, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return {f"base_model.model.{name}": value for name, value in state.items()}, expected


@pytest.mark.parametrize("base_layer", [".base_layer", ""], ids=["now", "before peft 0.6"])
def test_factors_of_lora_are_merged(here, tmp_path, base_layer):
    state, expected = with_adapters(here, tmp_path, base_layer)
    path = saved(tmp_path / "x.bin", state)
    plain = saved(tmp_path / "plain.bin", expected)
    merged = dict(open_in_any_format(path)[0].read())
    for name, value in open_in_any_format(plain)[0].read():
        np.testing.assert_allclose(merged[name], value, rtol=1e-6, atol=1e-5, err_msg=name)
    name = "segformer.blocks.1.0.attn.q.weight"
    assert np.abs(merged[name] - here[name]).max() > 1


@pytest.mark.parametrize("change, message", [
    (dict(use_dora=True), "use_dora, which is not plain LoRA"),
    (dict(use_rslora=True), "use_rslora, which is not plain LoRA"),
    (dict(rank_pattern={"query": 8}), "rank_pattern, which is not plain LoRA"),
    (dict(r=4), "r 4 and lora_alpha 16"),
    (dict(lora_alpha=None), "r 3 and lora_alpha None"),
])  # fmt: skip
def test_config_of_lora_that_is_unusual(here, tmp_path, change, message):
    state, _ = with_adapters(here, tmp_path, **change)
    with pytest.raises(InputError, match=rf"{message}.*merge_and_unload\(\)"):
        open_in_any_format(saved(tmp_path / "x.bin", state))


QUERY = f"base_model.model.{LAYERS[0][0]}"


@pytest.mark.parametrize("change, message", [
    ({f"{QUERY}.lora_magnitude_vector.default.weight": 12}, "not plain LoRA"),
    ({f"{QUERY}.ia3_l.default": 12}, "ia3_l.*not plain LoRA"),
    ({f"{QUERY}.hada_w1_a.default": 12}, "not plain LoRA"),
    ({f"{QUERY}.lora_A.other.weight": 12}, "adapters default, other"),
    ({f"{QUERY}.lora_B.default.weight": None}, "one of the two LoRA factors"),
    ({f"{QUERY}.base_layer.weight": None}, "without the weights that it changes"),
])  # fmt: skip
def test_adapters_that_cannot_be_merged(here, tmp_path, change, message):
    state, _ = with_adapters(here, tmp_path)
    state |= {name: size and torch.ones(size) for name, size in change.items()}
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(InputError, match=rf"x\.bin.*{message}.*merge_and_unload\(\)"):
        open_in_any_format(saved(tmp_path / "x.bin", state))


def test_adapters_without_their_config_or_their_weights(here, tmp_path):
    state, _ = with_adapters(here, tmp_path)
    (tmp_path / "adapter_config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match=r"adapter_config\.json.*merge_and_unload\(\)"):
        open_in_any_format(saved(tmp_path / "x.bin", state))
    alone = {name.replace(".default", ""): value for name, value in state.items() if "lora" in name}
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({name: value.numpy() for name, value in alone.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    (tmp_path / "elsewhere.json").rename(folder / "adapter_config.json")
    with pytest.raises(InputError, match=r"without the weights that it changes.*merge_and_unload"):
        load_weights(TINY, str(folder))


# ---- segmentation_models.pytorch ----------------------------------------------------------------


class Attention(torch.nn.Module):
    def __init__(self, dim, heads, ratio):
        super().__init__()
        self.heads = heads
        self.q, self.kv = torch.nn.Linear(dim, dim), torch.nn.Linear(dim, 2 * dim)
        self.proj = torch.nn.Linear(dim, dim)
        if ratio > 1:
            self.sr = torch.nn.Conv2d(dim, dim, ratio, ratio)
            self.norm = torch.nn.LayerNorm(dim)

    def forward(self, x):  # (N, C, H, W)
        few = x
        if hasattr(self, "sr"):
            few = self.norm(self.sr(x).movedim(1, -1)).movedim(-1, 1)
        tokens, reduced = (maps.flatten(2).transpose(1, 2) for maps in (x, few))

        def heads(values):
            return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        keys, values = map(heads, self.kv(reduced).chunk(2, -1))
        query = heads(self.q(tokens))
        scores = query @ keys.transpose(-2, -1) / query.shape[-1] ** 0.5
        found = (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)
        return self.proj(found).transpose(1, 2).reshape(x.shape)


class Block(torch.nn.Module):
    def __init__(self, dim, heads, ratio, hidden):
        super().__init__()
        self.norm1, self.norm2 = (torch.nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.attn = Attention(dim, heads, ratio)
        self.mlp = torch.nn.Module()
        self.mlp.fc1, self.mlp.fc2 = torch.nn.Linear(dim, hidden), torch.nn.Linear(hidden, dim)
        self.mlp.dwconv = torch.nn.Module()
        self.mlp.dwconv.dwconv = torch.nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x.movedim(1, -1)).movedim(-1, 1))
        hidden = self.mlp.fc1(self.norm2(x.movedim(1, -1))).movedim(-1, 1)
        hidden = torch.nn.functional.gelu(self.mlp.dwconv.dwconv(hidden)).movedim(1, -1)
        return x + self.mlp.fc2(hidden).movedim(-1, 1)


class SmpSegformer(torch.nn.Module):
    """The network of segmentation_models.pytorch, from what is published about it: the maps go into
    the head coarsest first, `mlp_stage.0` is that of the coarsest, and the logits are at a quarter.
    """

    def __init__(self, sizes):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Module(), torch.nn.Module()
        channels = 3
        for i, dim in enumerate(sizes["hidden_sizes"]):
            embed = torch.nn.Module()
            patch, stride = sizes["patch_sizes"][i], sizes["strides"][i]
            embed.proj = torch.nn.Conv2d(channels, dim, patch, stride, patch // 2)
            embed.norm = torch.nn.LayerNorm(dim)
            blocks = [
                Block(dim, sizes["num_attention_heads"][i], sizes["sr_ratios"][i],
                      dim * sizes["mlp_ratios"][i])
                for _ in range(sizes["depths"][i])
            ]  # fmt: skip
            for name, module in (
                ("patch_embed", embed),
                ("block", torch.nn.Sequential(*blocks)),
                ("norm", torch.nn.LayerNorm(dim, eps=1e-6)),
            ):
                setattr(self.encoder, f"{name}{i + 1}", module)
            channels = dim
        width = sizes["decoder_hidden_size"]
        stages = [torch.nn.Module() for _ in sizes["hidden_sizes"]]
        for stage, dim in zip(stages, sizes["hidden_sizes"][::-1]):
            stage.linear = torch.nn.Linear(dim, width)
        self.decoder.mlp_stage = torch.nn.ModuleList(stages)
        self.decoder.fuse_stage = torch.nn.Sequential(
            torch.nn.Conv2d(width * len(stages), width, 1, bias=False),
            torch.nn.BatchNorm2d(width),
            torch.nn.ReLU(),
        )
        self.segmentation_head = torch.nn.Sequential(
            torch.nn.Conv2d(width, sizes["num_classes"], 1)
        )

    def forward(self, images):
        x, maps = images, []
        for i in range(1, 5):
            embed = getattr(self.encoder, f"patch_embed{i}")
            x = embed.norm(embed.proj(x).movedim(1, -1)).movedim(-1, 1)
            x = getattr(self.encoder, f"block{i}")(x)
            x = getattr(self.encoder, f"norm{i}")(x.movedim(1, -1)).movedim(-1, 1)
            maps.append(x)
        projected = [
            torch.nn.functional.interpolate(
                stage.linear(values.movedim(1, -1)).movedim(-1, 1),
                size=maps[0].shape[2:], mode="bilinear", align_corners=False,
            )
            for stage, values in zip(self.decoder.mlp_stage, maps[::-1])
        ]  # fmt: skip
        return self.segmentation_head(self.decoder.fuse_stage(torch.cat(projected, 1)))


def smp_model(sizes) -> SmpSegformer:
    model = SmpSegformer(sizes).eval()
    random = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and name.endswith(("weight", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=random)
        elif tensor.ndim:
            fan = tensor[0].numel() if tensor.ndim > 1 else 16
            tensor.normal_(0, fan**-0.5, generator=random)
    return model


def test_segmentation_models_pytorch_computes_the_same_here(tmp_path):
    reference = smp_model(TINY)
    torch.save(reference.state_dict(), tmp_path / "best_model.pth")
    model = load_weights(TINY, str(tmp_path / "best_model.pth"))
    images = np.random.default_rng(0).normal(size=(2, 3, 96, 64)).astype(np.float32)
    with torch.no_grad():
        expected = reference.double()(torch.from_numpy(images).double()).numpy()
    actual = model(flow.tensor(images))["prediction_scores"].numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_folder_of_segmentation_models_pytorch(tmp_path):
    """Sizes, channels and classes are in its config.json, in words of its own."""
    sizes = dict(depths=[2, 2, 2, 2], hidden_sizes=[32, 64, 160, 256], decoder_hidden_size=64)
    family = dict(num_attention_heads=[1, 2, 5, 8], sr_ratios=[8, 4, 2, 1], mlp_ratios=[4] * 4)
    sizes = TINY | sizes | family | dict(num_classes=3)
    reference = smp_model(sizes)
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    config = dict(_model_class="Segformer", encoder_name="mit_b0", encoder_depth=5, in_channels=3,
                  decoder_segmentation_channels=64, classes=3, activation=None)  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = state_of(load_weights({}, str(tmp_path)))
    for name, theirs in (
        ("head.linear_pred.weight", "segmentation_head.0.weight"),
        ("head.linear_c.3.proj.bias", "decoder.mlp_stage.0.linear.bias"),
    ):
        np.testing.assert_array_equal(state[name], reference.state_dict()[theirs].numpy())
    for change in ({"encoder_name": "resnet34"}, {"_model_class": "Unet"}, {"encoder_name": 3}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=r"config\.json is of a .*expected a Segformer"):
            load_weights({}, str(tmp_path))


def test_head_of_mmsegmentation_is_named(here, tmp_path):
    """Its head cannot be loaded, its encoder can."""
    encoder = {name: value for name, value in here.items() if name.startswith("segformer.")}
    state = tensors(from_here(encoder, OFFICIAL_IMAGENET), "backbone.")
    head = ("convs.0.conv.weight", "convs.0.bn.weight", "fusion_conv.conv.weight", "conv_seg.bias")
    state |= {f"decode_head.{name}": torch.ones(2) for name in head}
    path = saved(tmp_path / "x.pth", {"state_dict": state})
    with pytest.raises(InputError, match=r"mmsegmentation's, another network.*pretrained_model_pa"):
        load_weights(TINY, path)
    model = SegformerSegmentationLoadImageNetPretrain(**TINY, pretrained_model_path=path)
    for name, value in state_of(model).items():
        if name in encoder:
            np.testing.assert_array_equal(value, encoder[name], err_msg=name)


# ---- Files by their content ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["3f9c0e81", "x.bin", "x.pth", "x.safetensors", "x.ckpt", "x.onnx"]
)
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_kind_of_a_file_is_told_by_its_content(here, tmp_path, name, kind):
    state = from_here(here, HUGGINGFACE)
    if kind == "safetensors":
        save_file(state, tmp_path / name)
    else:
        zipped = kind == "zip"
        torch.save(tensors(state), tmp_path / name, _use_new_zipfile_serialization=zipped)
    if (name, kind) == ("x.onnx", "legacy"):
        return  # a pickle has no first bytes of its own
    assert_read(tmp_path / name, here)


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "npz":
        np.savez(buffer, a=np.ones(3))
    elif kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("mit_b0.pth", b"x" * 99)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as file:
            entry = tarfile.TarInfo("mit_b0.pth")
            entry.size = 99
            file.addfile(entry, io.BytesIO(bytes(99)))
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 15\n"
OTHER_FILES = [  # name, content, message
    ("model.safetensors", POINTER, "Git LFS pointer.*git lfs pull"),
    ("mit_b0.pth", POINTER, "Git LFS pointer.*git lfs pull"),
    ("mit_b0.pth", b"<!DOCTYPE html><title>x", "web page: download it again"),
    ("model.pdparams", b"\x80\x02}q\x00.", "PaddlePaddle"),
    ("tf_model.h5", b"\x89HDF\r\n\x1a\n" + bytes(99), "TensorFlow.*from_tf=True"),
    ("x.pth", b"\x89HDF\r\n\x1a\n" + bytes(99), "TensorFlow"),
    ("model.ckpt.index", bytes(99), "TensorFlow"),
    ("model.ckpt.data-00000-of-00001", bytes(99), "TensorFlow"),
    ("saved_model.pb", b"\x08\x01" + bytes(99), "TensorFlow"),
    ("flax_model.msgpack", b"\x82" + bytes(99), "Flax.*from_flax=True"),
    ("model.onnx", b"\x08\x07" + bytes(99), "ONNX graph.*--engine onnx"),
    ("model.engine", bytes(99), "other software"),
    ("weights.npz", archive("npz"), "arrays of NumPy"),
    ("weights.npy", b"\x93NUMPY" + bytes(99), "arrays of NumPy"),
    ("x.zip", archive("zip"), "zip archive.*unpack it"),
    ("x.tar", archive("tar"), "an archive: unpack it"),
    ("x.tar.gz", gzip.compress(archive("tar"), mtime=0), "an archive: unpack it"),
    ("x.pth", gzip.compress(archive("tar"), mtime=0), "an archive: unpack it"),
    ("x.pth", b"", "is empty: download it again"),
    ("x.pth", b"PK\x03\x04" + bytes(99), "damaged, download it again"),
]


@pytest.mark.parametrize("name, content, message", OTHER_FILES, ids=lambda value: str(value)[:24])
def test_other_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_in_any_format(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)
    damaged = "web page" in message or "again" in message
    assert ("download it again" in str(caught.value)) == damaged


def test_weights_of_paddle_under_another_name(here, tmp_path):
    """Their linear weights are laid out otherwise: square ones would be read wrong."""
    state = from_here(here, OFFICIAL_SEGMENTATION) | {"StructuredToParameterName@@": {"a": "b"}}
    (tmp_path / "x.pth").write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(InputError, match="PaddlePaddle"):
        open_in_any_format(str(tmp_path / "x.pth"))


def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"TorchScript archive.*Save the state_dict"):
        open_in_any_format(str(tmp_path / "x.pt"))


# ---- Folders ------------------------------------------------------------------------------------


@pytest.fixture
def cache(here, tmp_path):
    """A cache of the Hub with one model, in two snapshots of links; `main` is the older one."""
    model = tmp_path / "hub" / "models--nvidia--mit-b0"
    for number, name in enumerate(("old", "new")):
        folder = model / "snapshots" / name
        state = {key: value + number for key, value in here.items()}
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_huggingface(str(folder), state, TINY, list("abcde"), {})
        (model / "blobs").mkdir(exist_ok=True)
        for file in list(folder.iterdir()):
            blob = model / "blobs" / f"{name}{abs(hash(file.name)):x}"
            file.rename(blob)
            file.symlink_to(os.path.relpath(blob, folder))
        os.utime(folder, (10**9 + number, 10**9 + number))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("old")
    return model


@pytest.mark.parametrize("level", ["hub", "model", "snapshots", "snapshot", "blob"])
def test_cache_of_the_hub(here, cache, level):
    snapshot = cache / "snapshots" / "old"
    path = {
        "hub": cache.parent,
        "model": cache,
        "snapshots": cache / "snapshots",
        "snapshot": snapshot,
        "blob": (snapshot / "model.safetensors").resolve(),
    }[level]
    settings = TINY if level == "blob" else {}
    model = load_weights(settings, str(path))
    for name, value in state_of(model).items():
        np.testing.assert_array_equal(value, here[name], err_msg=name)
    assert_read(path, here)


def test_cache_without_main_has_the_newest(here, cache):
    (cache / "refs" / "main").write_text("../../elsewhere")
    newer = {name: value + 1 for name, value in here.items()}
    assert_read(cache, newer)
    (cache.parent / "models--other--b1").mkdir()
    with pytest.raises(InputError, match=r"holds 2 models, models--nvidia--mit-b0, models--other"):
        open_in_any_format(str(cache.parent))
    with pytest.raises(InputError, match=r"models--other--b1 has no snapshot"):
        open_in_any_format(str(cache.parent / "models--other--b1"))


@pytest.mark.parametrize("name, advice", [
    ("nvidia/mit-b0", "huggingface-cli download nvidia/mit-b0 --local-dir pretrained/mit-b0"),
    ("https://example.com/mit_b0.pth", "Download it"),
    ("pretrained/mit_b0.pth", None),
    ("tests/nowhere", None),
    ("/nowhere/x", None),
])  # fmt: skip
def test_names_that_are_no_path(name, advice):
    for work in (
        lambda: load_weights(TINY, name),
        lambda: SegFLoaderHuggerFace(SegformerModel, {}, name).load(),
        lambda: SegformerSegmentationLoadImageNetPretrain(**TINY, pretrained_model_path=name),
    ):
        with pytest.raises(InputError) as caught:
            work()
        assert name in str(caught.value)
        assert (advice or "huggingface-cli") in str(caught.value) or not advice
        assert advice or "ownload" not in str(caught.value)


def test_folder_with_other_files(tmp_path):
    with pytest.raises(InputError, match=r"no weights in .*it is empty"):
        open_in_any_format(str(tmp_path))
    for name in ("README.md", "a.txt", "tf_model.h5", "b", "c", "d"):
        (tmp_path / name).write_text("x")
    with pytest.raises(
        InputError, match=r"holds README\.md, a\.txt, b.* and 1 more. tf_model\.h5 is"
    ):
        open_in_any_format(str(tmp_path))


@pytest.mark.parametrize("name", ["last.ckpt", "x.pt", "x.safetensors", "weights.bin", "x.pth"])
def test_folder_with_one_file_of_weights(here, tmp_path, name):
    state = tensors(from_here(here, OFFICIAL_SEGMENTATION))
    for beside in ("optimizer.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"a": 1}, tmp_path / beside)
    (tmp_path / "old.pth").mkdir()
    torch.save(state, tmp_path / name)
    assert_read(tmp_path, here)


# ---- What stands in config.json -----------------------------------------------------------------


@pytest.mark.parametrize("index", [0, -100, -1, 255, 300])
def test_ignore_index_of_transformers(index):
    settings = to_settings({"semantic_loss_ignore_index": index}, "x")
    assert settings["ignore_index"] == index


@pytest.mark.parametrize(
    "name",
    [
        *("drop_path_rate", "classifier_dropout_prob", "semantic_loss_ignore_index", "num_labels"),
        *("num_channels", "hidden_sizes", "depths", "mlp_ratios", "num_encoder_blocks", "id2label"),
    ],
)
def test_null_is_the_default_of_transformers(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer", name: None}))
    settings = to_settings(read_config(str(tmp_path)), str(tmp_path))
    default = transformers.SegformerConfig()
    assert settings["drop_path_rate"] == default.drop_path_rate
    assert settings["decoder_dropout"] == default.classifier_dropout_prob
    assert settings["ignore_index"] == default.semantic_loss_ignore_index
    assert settings["num_classes"] == default.num_labels
    for same in ("num_channels", "hidden_sizes", "depths", "mlp_ratios"):
        assert settings[same] == getattr(default, same)


# ---- eps ----------------------------------------------------------------------------------------


@pytest.fixture
def huggingface(here, tmp_path) -> str:
    write_huggingface(str(tmp_path / "huggingface"), here, TINY, list("abcde"), {})
    return str(tmp_path / "huggingface")


@pytest.mark.parametrize("config, expected", [
    ({}, (1e-5, 1e-5)),
    (dict(layer_norm_eps=1e-6, embed_norm_eps=1e-5), (1e-5, 1e-5)),  # the defaults, written out
    (dict(layer_norm_eps=1e-3), (1e-3, 1e-5)),
    (dict(embed_norm_eps=1e-2), (1e-5, 1e-2)),
    (dict(layer_norm_eps=1e-3, embed_norm_eps=1e-2), (1e-3, 1e-2)),
])  # fmt: skip
def test_encoder_takes_the_eps_of_its_weights(huggingface, caplog, config, expected):
    """As SegformerForSemanticSegmentation with these values computes its maps."""
    model = SegformerSegmentationLoadImageNetPretrain(
        **TINY, **config, pretrained_model_path=huggingface
    )
    told = SegformerForSemanticSegmentation(
        **TINY, layer_norm_eps=expected[0], embed_norm_eps=expected[1]
    )
    fill_model(told, huggingface, only="segformer.")
    assert eps_in(model) == expected
    images = flow.tensor(np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32))
    for actual, wanted in zip(model.eval().segformer(images), told.eval().segformer(images)):
        np.testing.assert_array_equal(actual.numpy(), wanted.numpy())
    assert ("the config was set to" in caplog.text) == (expected != (1e-5, 1e-5))


def test_eps_goes_by_the_config_again_with_other_weights(here, huggingface, tmp_path):
    """Several sets of weights in one model, one after the other, as an evaluation has them."""
    official = tmp_path / "official.pth"
    torch.save(tensors(from_here(here, OFFICIAL_SEGMENTATION)), official)
    flow.save({name: flow.tensor(value) for name, value in here.items()},
              str(tmp_path / "trained" / "model"))  # fmt: skip
    model = SegformerForSemanticSegmentation(**TINY)
    for path, eps in (
        (huggingface, (1e-5, 1e-5)),
        (official, (1e-6, 1e-5)),
        (huggingface, (1e-5, 1e-5)),
        (tmp_path / "trained", (1e-6, 1e-5)),
    ):
        fill_model(model, str(path))
        assert eps_in(model) == eps


@pytest.mark.parametrize("where", ["", "model"])
@pytest.mark.parametrize("written", ["checkpoint.json", "segformer.json"])
def test_eps_of_a_checkpoint_is_what_is_written_with_it(here, tmp_path, written, where):
    """A training from Hugging Face's encoder had its eps: so has what it saved, with any config."""
    folder = tmp_path / "model_best"
    write_libai(str(folder), here, TINY | dict(layer_norm_eps=1e-5, embed_norm_eps=1e-4), [], {})
    if written == "checkpoint.json":
        content = json.loads((folder / "segformer.json").read_text())
        settings = {
            name: content["settings"][name] for name in ("layer_norm_eps", "embed_norm_eps")
        }
        (folder / "segformer.json").unlink()
        (folder / written).write_text(json.dumps({"iteration": 3, "settings": settings}))
    model = SegformerForSemanticSegmentation(**TINY)
    fill_model(model, str(folder / where))
    assert eps_in(model) == (1e-5, 1e-4)
    assert eps_in(load_weights(TINY, str(folder / where))) == ((1e-5, 1e-4))
    (folder / written).write_text('{"settings": {"layer_norm_eps": "x", "embed_norm_eps": 1}}')
    with pytest.raises(InputError, match=rf"{written}.*"):
        fill_model(model, str(folder / where))


def test_eps_of_a_training_stays_with_what_it_saved(huggingface, tmp_path):
    """Taken with the encoder's weights, it is that of a prediction, an evaluation and a resume."""
    config = TINY | dict(pretrained_model_path=huggingface)
    path = str(tmp_path / "model_best")
    model = SegformerSegmentationLoadImageNetPretrain(**config)
    Checkpointer(model, str(tmp_path)).save("model_best", 3)
    assert eps_in(load_weights(TINY, path)) == (1e-5, 1e-5)
    for work in (
        lambda model: fill_model(model, path),
        lambda model: Checkpointer(model, str(tmp_path)).load_training_state(path),
    ):
        for made in (SegformerForSemanticSegmentation(**TINY), model):
            work(made)
            assert eps_in(made) == (1e-5, 1e-5)
    # A checkpoint from before says nothing, and had the config's.
    record = json.loads((tmp_path / "model_best" / "checkpoint.json").read_text())
    del record["settings"]
    (tmp_path / "model_best" / "checkpoint.json").write_text(json.dumps(record))
    Checkpointer(model, str(tmp_path)).load_training_state(path)
    assert eps_in(model) == (1e-6, 1e-5)


# ---- What does not fit --------------------------------------------------------------------------


def shaped(channels, blocks, width, ratios=(4, 4, 4, 4)) -> dict:
    """Hollow weights of the paper's form."""
    state, before = {}, 3
    for i, (size, depth, ratio) in enumerate(zip(channels, blocks, ratios), start=1):
        kernel = 7 if i == 1 else 3
        names = {f"patch_embed{i}.proj": (size, before, kernel, kernel)}
        names |= {f"patch_embed{i}.norm": (size,), f"norm{i}": (size,)}
        for j in range(depth):
            block = f"block{i}.{j}"
            names |= {f"{block}.norm1": (size,), f"{block}.norm2": (size,)}
            names |= {f"{block}.attn.q": (size, size), f"{block}.attn.kv": (2 * size, size)}
            names |= {f"{block}.attn.proj": (size, size), f"{block}.mlp.fc2": (size, ratio * size)}
            names |= {f"{block}.mlp.fc1": (ratio * size, size)}
            names |= {f"{block}.mlp.dwconv.dwconv": (ratio * size, 1, 3, 3)}
            if i < 4:
                sr = 2 ** (4 - i)
                names |= {f"{block}.attn.sr": (size, size, sr, sr), f"{block}.attn.norm": (size,)}
        for name, shape in names.items():
            state[f"{name}.weight"] = torch.zeros(1).expand(shape)
            state[f"{name}.bias"] = torch.zeros(1).expand(shape[:1])
        before = size
    return state


@pytest.mark.parametrize("size", ["B1", "B2", "B3", "B4", "B5", "PVTv2-B0", "own"])
def test_weights_of_another_size_are_named(tmp_path, caplog, size):
    """Hollow tensors: a whole B5 in a file of bytes would be refused."""
    ratios = (8, 8, 4, 4) if size.startswith("PVT") else (4,) * 4
    own = dict(hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1))
    its = SIZES.get(size.removeprefix("PVTv2-").lower(), own)
    channels, blocks = its["hidden_sizes"], its["depths"]
    state = {name: value.numpy() for name, value in shaped(channels, blocks, 256, ratios).items()}
    caplog.set_level("INFO", "libai")
    model = SegformerModel()
    with pytest.raises(InputError) as caught:
        load_state(
            model,
            lambda: lazily_here(LazyState.of(state), find_fit(
                {name: value.shape for name, value in state.items()}, "x").key_format),
            "pretrained/mit_b2.pth",
        )  # fmt: skip
    message = str(caught.value)
    named = "an encoder of 8, 16, 24, 32 channels and 1, 1, 1, 1 blocks"
    sizes = f"sizes of {named}" if size == "own" else f"{size}'s sizes"
    assert f"does not fit the model: these are {sizes}, the config is B0; " in message
    assert len(message) < 400
    assert message.count("segformer.") <= 3
    # The log has all of them.
    listed = [
        record.message for record in caplog.records if ", of another shape: " in record.message
    ]
    assert len(listed) == 1 and listed[0].count("segformer.") == int(
        message.partition(" of another shape")[0].rpartition("; ")[2]
    )


def test_weights_that_fit_have_no_cause(here, tmp_path):
    state = from_here(here, OFFICIAL_SEGMENTATION)
    del state["decode_head.linear_pred.bias"]
    path = saved(tmp_path / "x.pth", tensors(state))
    with pytest.raises(InputError, match=r"the model: 1 missing: head\.linear_pred\.bias$"):
        SegFLoaderOfficial(SegformerForSemanticSegmentation, TINY, path).load()
