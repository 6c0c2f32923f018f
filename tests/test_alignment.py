"""model_utils/test_segloader.py, and with it every size against transformers."""

import importlib

import cv2
import numpy as np
import pytest
import torch
import transformers

from conftest import error_line, run_here
from projects.SegFormer.model_utils.huggingface_config import ARCHITECTURES
from projects.SegFormer.model_utils.segf_loader import SegFLoaderHuggerFace
from projects.SegFormer.model_utils.test_segloader import (
    MODELS,
    NAMES,
    compare,
    format_table,
    outputs,
    random_images,
    random_model,
    reference_outputs,
)

SCRIPT = "model_utils/test_segloader.py"
OUTPUTS = ["stage 1", "stage 2", "stage 3", "stage 4", "logits"]
TINY = dict(
    depths=[1, 2, 1, 1],
    hidden_sizes=[8, 12, 16, 16],
    num_attention_heads=[1, 2, 2, 4],
    decoder_hidden_size=12,
)


def size_of(name: str) -> dict:
    """The settings of transformers' model of that size, from our config."""
    cfg = importlib.import_module(f"projects.SegFormer.configs.models.mit_{name}").cfg
    return {key: cfg[key] for key in ("depths", "hidden_sizes", "decoder_hidden_size")}


def aligned(task, folder, images, **settings):
    reference = random_model(NAMES[task], **settings)
    reference.save_pretrained(folder)
    model = SegFLoaderHuggerFace(MODELS[task], {}, str(folder)).load()
    return compare(outputs(model, images), reference_outputs(reference, images))


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize(
    "size, shape",
    [
        pytest.param(f"b{i}", shape, marks=[pytest.mark.slow] if i or shape[0] > 256 else [])
        for i in range(6)
        for shape in (((128, 192),) if i else ((256, 384), (512, 512)))
    ],
)
def test_every_size_computes_what_transformers_does(task, size, shape, tmp_path):
    rows = aligned(task, tmp_path, random_images((1, 3, *shape)), **size_of(size))
    assert [row["name"] for row in rows] == OUTPUTS
    for row in rows:
        assert row["largest"] > 1  # or else small differences mean nothing
        assert row["max"] <= 1e-4
    assert rows[-1]["argmax"] == 1
    assert rows[-1]["max"] <= 1e-5 * rows[-1]["largest"]


@pytest.mark.filterwarnings("ignore:Reshape_last_stage")
@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize(
    "settings",
    [
        dict(num_channels=4, patch_sizes=[5, 3, 3, 3], strides=[2, 2, 2, 2]),
        dict(sr_ratios=[4, 4, 2, 2], mlp_ratios=[2, 3, 4, 1]),
        dict(num_labels=2),  # save_pretrained leaves the names of two classes out
        # There transformers takes the channels for the tokens: 4, as many as a map of 2x2 has.
        dict(reshape_last_stage=False, hidden_sizes=[8, 12, 16, 4], num_attention_heads=[1] * 4),
        dict(depths=[1, 2, 2, 1, 9], num_encoder_blocks=4),
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_setting_of_config_json_counts(task, settings, tmp_path):
    settings = {**TINY, **settings}
    shape = (1, settings.get("num_channels", 3), 64, 64)
    rows = aligned(task, tmp_path, random_images(shape), **settings)
    assert max(row["max"] for row in rows) <= 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_model_has_no_layer_as_it_was_initialised(architecture):
    config = transformers.SegformerConfig(**TINY, num_labels=19)
    fresh = getattr(transformers, architecture)(config).state_dict()
    state = random_model(architecture, **TINY).state_dict()
    for name, tensor in state.items():
        if tensor.ndim:
            assert tensor.std() > 0.03 and not torch.isclose(tensor, fresh[name]).all(), name
    assert any("running_var" in name for name in state) == (architecture == ARCHITECTURES[0])


# ---- The script -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    random_model(NAMES["seg"], **TINY).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_script_makes_its_own_weights():
    process = run_here(SCRIPT)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert [line[:9].strip() for line in lines[-5:]] == OUTPUTS
    assert all(line.endswith("same") for line in lines[-5:])
    assert "1x19x128x128" in lines[-1] and "100.0000%" in lines[-1]


@pytest.mark.slow
def test_script_takes_task_from_the_folder_and_an_image(folder, tmp_path):
    random_model(NAMES["cls"], **TINY).save_pretrained(tmp_path / "classifier")
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), image)
    for name, shape in (("model", "1x19x18x23"), ("classifier", "1x19")):
        process = run_here(
            *(SCRIPT, "--pretrained_model_path", str(tmp_path / name)),
            *("--image", str(tmp_path / "image.png")),
        )
        assert process.returncode == 0, process.stderr
        assert f" {shape} " in process.stdout.splitlines()[-1]


@pytest.mark.slow
def test_script_ends_with_1_beyond_the_tolerance(folder):
    process = run_here(SCRIPT, "--pretrained_model_path", str(folder), "--tolerance", "1e-9")
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "OFF by more than 1e-09" in process.stdout


@pytest.mark.slow
def test_script_with_a_folder_that_is_none(tmp_path):
    process = run_here(SCRIPT, "--pretrained_model_path", str(tmp_path))
    assert "config.json" in error_line(process)


def test_one_element_that_is_off_is_found():
    expected = {"logits": np.zeros((1, 3, 4, 4), np.float32)}
    expected["logits"][:, 1] = 1
    actual = {"logits": expected["logits"].copy()}
    actual["logits"][0, 2, 3, 3] = 1.5
    (row,) = compare(actual, expected)
    assert row["max"] == 1.5 and row["mean"] == 1.5 / 48 and row["argmax"] == 15 / 16
    assert "OFF" in format_table([row], 1e-4)
    actual["logits"][0, 0, 0, 0] = np.nan
    (row,) = compare(actual, expected)
    assert "OFF" in format_table([row], 1e9)
