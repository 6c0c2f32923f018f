"""The tools themselves, started on a stranger's files: one line of error, and nothing ran."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_attacks_weights import Writes

from conftest import error_line, run_tool, train_sh, training
from hostile_files import mapping, text, variable, write_libai, write_variable

CONFIG = "configs/segformer_camvid.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> tuple[Path, Path]:
    """A TorchScript archive, and the file that it makes as soon as PyTorch reads it."""
    folder = tmp_path_factory.mktemp("script")
    marker = folder / "marker"
    torch.jit.save(torch.jit.script(Writes(str(marker))), folder / "script.pth")
    torch.load(folder / "script.pth", weights_only=True)
    assert marker.exists()  # it does, if it may
    marker.unlink()
    return folder / "script.pth", marker


def image(folder: Path) -> str:
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "image.png")
    return str(folder / "image.png")


def with_weights(tool: str, weights: Path, folder: Path) -> list[str]:
    """The command line of a tool that takes weights."""
    output = str(folder / "output")
    return {
        "convert": ["tools/convert_weights.py", "--from", weights, "--to", "libai", "--output"]
        + [output],
        "predict": ["tools/predict.py", "--config", CONFIG, "--weights", weights, "--output"]
        + [output, image(folder)],
        "onnx": ["tools/predict.py", "--config", CONFIG, "--weights", weights, "--output"]
        + [output, "--engine", "onnx", image(folder)],
        "export": ["tools/export.py", "--config", CONFIG, "--weights", weights, "--output"]
        + [f"{output}.onnx"],
        "alignment": ["model_utils/test_segloader.py", "--pretrained_model_path", weights],
    }[tool]


@pytest.mark.parametrize("tool", ["convert", "predict", "export", "alignment", "onnx"])
def test_weights_that_are_a_program(script, tmp_path, tool):
    archive, marker = script
    weights = tmp_path / {"onnx": "model.onnx"}.get(tool, "model.pth")
    shutil.copy(archive, weights)
    if tool == "alignment":  # the model that goes with it, whose weights are both forms
        weights = tmp_path / "folder"
        weights.mkdir()
        shutil.copy(archive, weights / "pytorch_model.bin")
        (weights / "config.json").write_text("{}")
    line = error_line(run_tool(*map(str, with_weights(tool, weights, tmp_path))))
    assert str(weights) in line and not marker.exists() and not list(tmp_path.glob("output*"))


@pytest.mark.parametrize("option", ["model.cfg.pretrained_model_path", "train.load_weight"])
def test_training_from_weights_that_are_a_program(script, folder_data, tmp_path, option):
    archive, marker = script
    code, _, errors = train_sh(
        *("configs/segformer_camvid.py", "1", f"data.root={folder_data}"),
        *(f"train.output_dir={tmp_path}/output", f"{option}={archive}", "train.train_iter=1"),
    )
    assert code == 1 and "Traceback" not in errors and str(archive) in errors.splitlines()[-1]
    assert not marker.exists()


RUNS = {
    "tag": "x: !!python/object/apply:os.system [touch MARKER]\n",
    "target": "train: {}\nmodel: {_target_: os.system, command: touch MARKER}\n",
    "pairs": "dataloader: !!pairs [test: {_target_: os.system, command: touch MARKER}]\n",
}


@pytest.mark.parametrize(
    "tool, way",
    [*((tool, "tag") for tool in ("predict", "export", "check_dataset", "get_flops", "convert"))]
    + [("get_flops", "target"), ("check_dataset", "pairs")],
)
def test_configs_that_are_programs(tmp_path, tool, way):
    marker, config = tmp_path / "marker", tmp_path / "config.yaml"
    config.write_text(RUNS[way].replace("MARKER", str(marker)))
    output = ["--output", str(tmp_path / "output")]
    command = {
        "predict": ["predict.py", "--weights", "x", *output, image(tmp_path), "--config"],
        "export": ["export.py", "--weights", "x", f"{output[0]}={output[1]}.onnx", "--config"],
        "check_dataset": ["check_dataset.py", *output],
        "get_flops": ["get_flops.py", "--config"],
        "convert": ["convert_weights.py", "--from", "x", "--to", "libai", *output, "--config"],
    }[tool]
    if tool == "convert":
        command[2] = str(classifier_of_libai(tmp_path))
    line = error_line(run_tool(f"tools/{command[0]}", *command[1:], str(config)))
    assert str(config) in line and not marker.exists()


def classifier_of_libai(folder: Path) -> Path:
    """Weights that do not say what model they are of, so that a config is looked at."""
    keys = ("segformer.layer_norms.0.weight", "segformer.layer_norms.0.bias", "head.weight")
    for key in keys:
        write_variable(folder / "weights", key, np.zeros((8, 8), np.float32))
    return write_libai(folder / "weights", mapping({key: variable(key) for key in keys}))


@pytest.mark.parametrize("way", ["tag", "target"])
def test_training_by_a_config_that_is_a_program(tmp_path, way):
    marker, config = tmp_path / "marker", tmp_path / "config.yaml"
    config.write_text(RUNS[way].replace("MARKER", str(marker)))
    code, _, errors = train_sh(str(config), "1")
    assert code == 1 and "Traceback" not in errors and str(config) in errors.splitlines()[-1]
    assert not marker.exists()


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_a_checkpoint_to_resume_that_is_a_program(trained, folder_data, tmp_path, part):
    output, marker = tmp_path / "output", tmp_path / "marker"
    shutil.copytree(trained, output)
    checkpoint = output / "model_best"
    for other in set(output.glob("model_*")) - {checkpoint}:
        shutil.rmtree(other)
    write_libai(checkpoint / part, b"cos\nsystem\n(" + text(f"touch {marker}") + b"tR")
    record = checkpoint / "checkpoint.json"
    files = (file for file in checkpoint.rglob("*") if file.is_file() and file != record)
    sizes = {str(file.relative_to(checkpoint)): file.stat().st_size for file in files}
    record.write_text(json.dumps(json.loads(record.read_text()) | {"files": sizes}))
    arguments = training(folder_data, output, "train.train_iter=32")
    line = error_line(run_tool("tools/train_net.py", *arguments, "--resume"))
    assert str(checkpoint / part) in line and "os.system" in line and not marker.exists()


def test_label_that_is_a_program(folder_data, tmp_path):
    """Pillow starts Ghostscript, if it may, for what is called x.png and is EPS."""
    marker, programs, data = tmp_path / "marker", tmp_path / "programs", tmp_path / "data"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (programs / "gs").chmod(0o755)
    shutil.copytree(folder_data, data)
    label = data / "annotations" / "train" / "00.png"
    Image.new("L", (96, 80)).save(label, "EPS")
    process = run_tool(
        *("tools/check_dataset.py", "configs/segformer_camvid.py", f"data.root={data}"),
        *("--output", str(tmp_path / "output"), "--sample", "0"),
        *(f"dataloader.{part}.dataset.{name}" for part in ("train", "test.0")
          for name in ("classes=[disc,field,sky]", "palette=null")),
        "cfg.num_classes=3",
        PATH=f"{programs}:{os.environ['PATH']}",
    )  # fmt: skip
    assert error_line(process) and f"{label} holds PostScript" in process.stdout
    assert not marker.exists()
