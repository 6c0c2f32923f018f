"""tools/benchmark.py runs, and tells what it cannot measure. What it measures is not tested."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from conftest import ROOT, TINY_MODEL, error_line, run_tool, wait_until
from projects.SegFormer.engine.benchmark import on_oneflow, sides
from projects.SegFormer.engine.config import model_settings
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


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """What an engine's process measures: `(engine, **job)` to its Work, on the same inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    config = model_settings(str(ROOT / "configs/models/mit_b0.py"), list(TINY_MODEL))
    settings = benchmark.OmegaConf.to_container(config) | dict(
        drop_path_rate=0.0, decoder_dropout=0.0
    )
    sides.write_inputs(folder, SimpleNamespace(batch=2, size=(72, 105)), settings)
    arrays = [np.load(folder / f"{name}.npy") for name in ("images", "labels")]
    always = dict(model=str(folder / "model"), device="cpu", optimizer=sides.OPTIMIZER)
    always |= dict(threads=len(os.sched_getaffinity(0)), training=False, label_map=False)

    def of(engine: str, **job):
        build = on_oneflow.build
        if engine.startswith("transformers"):
            with pytest.MonkeyPatch.context() as context:
                context.setattr(sys, "path", [str(sides.FOLDER), *sys.path])
                from on_transformers import build
        return build(always | dict(engine=engine) | job, *arrays)

    return of


def test_label_maps_of_both_sides(work):
    ours, theirs, logits = (
        made.to_numpy(made.step())
        for made in (
            work("oneflow", label_map=True),
            work("transformers", label_map=True),
            work("transformers"),
        )
    )
    assert ours.dtype == theirs.dtype == np.int64 and ours.shape == theirs.shape == (2, 72, 105)
    assert len(np.unique(theirs)) > 5 and (ours != theirs).mean() < 1e-3
    scores = torch.nn.functional.interpolate(torch.from_numpy(logits), (72, 105), mode="bilinear")
    np.testing.assert_array_equal(theirs, scores.argmax(1).numpy())


@pytest.mark.parametrize("job", [dict(), dict(label_map=True), dict(training=True)])
def test_compiled_is_the_whole_model(job, work, monkeypatch):
    """And computes the same: in place of torch.compile something that counts."""
    seen = []

    def compile_model(model):
        def call(*args, **kwargs):
            seen.append((model, tuple(kwargs)))
            return model(*args, **kwargs)

        call.parameters = model.parameters
        return call

    monkeypatch.setattr(torch, "compile", compile_model, raising=False)
    plain, compiled = work("transformers", **job), work("transformers-compiled", **job)
    for _ in range(2):
        one, other = (made.to_numpy(made.step()) for made in (plain, compiled))
        np.testing.assert_array_equal(one, other)
    assert len(seen) == 2 and {names for _, names in seen} == {("labels",) * ("training" in job)}
    assert all(type(model) is transformers.SegformerForSemanticSegmentation for model, _ in seen)
    assert all(model.training == ("training" in job) for model, _ in seen)


def test_torch_without_compile_is_told(work, monkeypatch):
    monkeypatch.delattr(torch, "compile", raising=False)
    with pytest.raises(SystemExit, match="torch .* has no torch.compile: it needs 2.0 or later"):
        work("transformers-compiled")


def test_label_map_without_pillow_is_told(work, monkeypatch):
    def missing():
        raise ImportError("\nSegformerImageProcessor requires the PIL library\n")

    monkeypatch.setattr(transformers, "SegformerImageProcessor", missing)
    with pytest.raises(SystemExit, match="finds no Pillow: install it there.*--label-map"):
        work("transformers", label_map=True)


@pytest.mark.parametrize(
    "engine, of_reference",
    [
        ("oneflow", False),
        ("graph", False),
        ("onnx", False),
        ("transformers", True),
        ("transformers-compiled", True),
        ("transformers-onnx", False),
    ],
)
@pytest.mark.parametrize("label_map", [False, True])
def test_job_that_a_process_is_handed(engine, of_reference, label_map, tmp_path, monkeypatch):
    monkeypatch.setattr(sides.subprocess, "Popen", lambda command, **_: command)
    args = benchmark._parser().parse_args(["--label-map"] if label_map else [])
    args.reference_python, args.threads = "other/python", 1
    python, script, job = sides.Side(engine, tmp_path, "b", args)._process
    assert python == ("other/python" if of_reference else sys.executable)
    assert Path(script).is_file() and ("transformers" in Path(script).name) == of_reference
    job = json.loads(Path(job).read_text())
    assert (job["engine"], job["label_map"], job["training"]) == (engine, label_map, False)


def test_label_maps_are_compared_by_pixels():
    """The share of pixels is told, whatever the distance between the numbers of two classes."""
    maps = np.zeros((1, 2, 10, 10), np.int64)
    other = maps.copy()
    other[0, 1, 3, 4:8] = [1, 100, 7, 1]
    both = [
        SimpleNamespace(
            engine=engine, versions={}, seconds=[[second]] * 2, peak_memory=2**30, results=results
        )
        for engine, second, results in (("oneflow", 1.0, maps), ("transformers", 3.0, other))
    ]
    comparison = sides.comparison(*both, label_maps=True)
    assert comparison["differing_pixels"] == 4 / 200 and comparison["ratio"] == 3
    assert not {"largest_difference", "largest_result"} & set(comparison)
    report = dict(config="c", num_classes=101, training=False, label_map=True, batch=2)
    report |= dict(size=[10, 10], device="cpu", cpu="a CPU", threads=1, cores_of_others=0.0)
    report |= dict(sides=[sides.summary(side, 2) for side in both]) | comparison
    printed = benchmark.format_report(report)
    assert "101 classes: evaluation, 2x10x10" in printed
    assert "label maps differ in 2 % of the pixels" in printed and "logits" not in printed


@pytest.mark.slow
def test_evaluation_against_transformers(tmp_path):
    report, printed = measured(tmp_path, "--label-map", "--against", "transformers")
    assert report["label_map"] and report["differing_pixels"] < 1e-3
    assert "evaluation, 1x64x96" in printed and "of the pixels" in printed


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--size", "31", "64"], ["--size 31 64", "32 or more"]),
        (["--threads", "4096"], ["--threads 4096", "cores"]),
        (["--batch", "0"], ["--batch 0", "1 or more"]),
        (["--engine", "onnx", "--training"], ["onnx", "inference alone"]),
        (["--against", "transformers-onnx", "--training"], ["transformers-onnx", "inference"]),
        *(
            (["--label-map", *which], [which[1], "ends with the logits", "transformers-compiled"])
            for which in (
                ("--engine", "graph"),
                ("--engine", "onnx"),
                ("--against", "transformers-onnx"),
            )
        ),
        (["--label-map", "--training"], ["--label-map", "leave out --training"]),
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


FRAME = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    x\n'


@pytest.mark.parametrize(
    "code, errors, expected",
    [
        (1, "a warning\ntorch 1.13 has no torch.compile\n", "torch 1.13 has no torch.compile"),
        (1, f"{FRAME}KeyError: 1\n\nDuring it:\n\n{FRAME}ValueError: two\n", "ValueError: two"),
        (1, f"a warning\n{FRAME}a.b.Error: no C++ compiler\n\nSet LOGS=1\n  for more\n\n",
         "a.b.Error: no C++ compiler"),
        (1, "", "it ended with 1"),
        (-9, f"{FRAME}ValueError: two\n", "it ended by SIGKILL"),
    ],
)  # fmt: skip
def test_reason_is_the_line_of_the_error(code, errors, expected):
    assert sides.reason(code, errors) == expected


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
