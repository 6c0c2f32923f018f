"""tools/benchmark.py runs, and tells what it cannot measure. What it measures is not tested."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT, TINY_MODEL, error_line, run_tool, wait_until
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.tools import benchmark

TOOL = "tools/benchmark.py"
TINY = ("--size", "64", "96", "--rounds", "2", "--iterations", "3", *TINY_MODEL)


def measured(output: Path, *arguments: str) -> tuple[dict, str]:
    """What --json has, and what is printed."""
    process = run_tool(TOOL, *TINY, "--json", str(output / "figures.json"), *arguments)
    assert process.returncode == 0, process.stderr
    return json.loads((output / "figures.json").read_text()), process.stdout


@pytest.mark.slow
def test_training_step_against_transformers(tmp_path):
    report, printed = measured(tmp_path, "--training", "--against", "transformers", "--batch", "2")
    assert report["largest_difference"] < 1e-5 < 1 < report["largest_result"]
    assert (report["drop_path_rate"], report["decoder_dropout"]) == (0, 0)
    ours, theirs = report["sides"]
    for side in (ours, theirs):
        seconds = np.array(side["seconds"])
        assert seconds.shape == (2, 3) and (seconds > 0).all()
        assert side["fastest"] == seconds.min() and side["median"] == np.median(seconds)
        assert side["quartiles"] == np.percentile(seconds, (25, 75)).tolist()
        assert side["images_per_second"] == pytest.approx(2 / side["median"])
        assert 2**26 < side["peak_memory"] < 2**34
    assert set(ours["versions"]) == {"oneflow"}
    assert set(theirs["versions"]) == {"torch", "transformers"}
    assert report["ratio"] == theirs["median"] / ours["median"]
    assert report["memory_ratio"] == ours["peak_memory"] / theirs["peak_memory"]
    verdict = "faster" if report["ratio"] > 1 else "slower"
    assert f"{report['ratio']:.2f}x: oneflow is {verdict} than transformers" in printed
    assert (
        "training step, 2x64x96, cpu" in printed
        and f"torch {theirs['versions']['torch']}" in printed
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine, against", [("onnx", "transformers-onnx"), ("graph", "oneflow"), ("onnx", None)]
)
def test_inference_of_other_engines(engine, against, tmp_path):
    report, _ = measured(tmp_path, "--engine", engine, *(("--against", against) if against else ()))
    assert [side["engine"] for side in report["sides"]] == [engine, *([against] if against else [])]
    assert ("ratio" in report) == bool(against)
    if against:
        assert report["largest_difference"] < 1e-5 < 0.1 < report["largest_result"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--size", "31", "64"], ["--size 31 64", "32 or more"]),
        (["--threads", "4096"], ["--threads 4096", "cores"]),
        (["--batch", "0"], ["--batch 0", "1 or more"]),
        (["--engine", "onnx", "--training"], ["onnx", "inference alone"]),
        (["--against", "transformers-onnx", "--training"], ["transformers-onnx", "inference"]),
        (["--device", "cuda"], ["--device cuda", "no GPU"]),
        (["--reference-python", sys.executable], ["add --against transformers"]),
        (["--against", "transformers", "--reference-python", "nowhere/python"], ["nowhere/python"]),
        (["--config", "configs/models/classification/mit_cls_b0.py"], ["classification model"]),
    ],
)
def test_what_cannot_be_measured_is_told(arguments, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(benchmark.flow.cuda, "is_available", lambda: False)
    with pytest.raises(InputError) as error:
        benchmark.main(arguments)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.slow
def test_python_without_transformers_is_told(tmp_path):
    """A Python that finds its own library and no packages."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    process = run_tool(TOOL, *TINY, "--against", "transformers", "--reference-python", str(bare))
    error = error_line(process)
    assert str(bare) in error and "No module named" in error


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_no_process_outlives_the_tool(number, start, tmp_path):
    process = start(sys.executable, TOOL, *TINY, "--rounds", "100000", stdout=subprocess.DEVNULL)
    wait_until(lambda: children(process.pid))
    (worker,) = children(process.pid)
    process.send_signal(number)
    process.wait(60)
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), timeout=30)


def children(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return list(map(int, found.split()))


SETTINGS = ("OPENBLAS_CORETYPE", "GLOG_minloglevel")


def settings_after_import(**environment: str) -> list:
    """Values of SETTINGS in a process that has imported engine.process."""
    code = (
        "import projects.SegFormer.engine.process, json, os; "
        f"print(json.dumps([os.environ.get(name) for name in {SETTINGS}]))"
    )
    others = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, cwd=ROOT, env=others | environment, stdout=subprocess.PIPE)
    return json.loads(output.stdout)


def test_settings_of_a_process():
    core_type = "Haswell" if " avx2 " in Path("/proc/cpuinfo").read_text() else None
    assert settings_after_import() == [core_type, "2"]


def test_settings_of_the_user_stay():
    own = ["Zen", "0"]
    assert settings_after_import(**dict(zip(SETTINGS, own))) == own
