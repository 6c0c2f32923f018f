"""tools/train.sh: its two forms, its errors, and several processes on one machine."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import (
    CONFIG,
    TRAIN_ENVIRONMENT,
    losses,
    processes_with,
    train_sh,
    training,
    wait_until,
)


def overrides(folder_data: Path, output: Path, *more: str) -> list[str]:
    return training(folder_data, output, *more)[2:]


def evaluation(output: Path) -> dict:
    return json.loads((output / "evaluation.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["usage: bash tools/train.sh", "CONFIG GPUS"]),
        ((CONFIG,), ["usage"]),
        ((CONFIG, "zero"), ["usage"]),
        ((CONFIG, "0"), ["usage"]),
        (("tools/train_net.py", CONFIG), ["usage"]),
        (("configs/not_there.py", "1"), ["no such file", "configs/not_there.py"]),
        (("tools/not_there.py", CONFIG, "1"), ["no such file", "tools/not_there.py"]),
    ],
)
def test_usage_errors(arguments, words):
    code, stdout, stderr = train_sh(*arguments)
    assert code == 2 and not stdout
    assert stderr.startswith("train: ") and stderr.count("\n") == 1
    assert all(word in stderr for word in words), stderr


def test_several_machines_need_an_address():
    code, _, stderr = train_sh(CONFIG, "1", NODE="2", ADDR="")
    assert code == 2 and "ADDR" in stderr


@pytest.mark.parametrize(
    ("processes", "override", "words"),
    [
        ("3", "train.dist.tensor_parallel_size=2", "3 processes cannot be shared"),
        ("9", "train.dist.pipeline_parallel_size=9", "more stages than the model has blocks, 8"),
        ("2", "train.no_such_key=1", "no 'no_such_key' in train"),
    ],
)
def test_what_all_ranks_would_fail_on_is_said_once(tmp_path, processes, override, words):
    output = f"train.output_dir={tmp_path}/output"
    code, stdout, stderr = train_sh(CONFIG, processes, output, override)
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and words in errors[0]
    assert not stdout and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def two_processes(folder_data, tmp_path_factory) -> Path:
    """The output folder of a training on two processes, started in LiBai's form."""
    output = tmp_path_factory.mktemp("two_processes")
    code, _, stderr = train_sh("tools/train_net.py", *short_training(folder_data, output, 2))
    assert code == 0, stderr
    return output


def short_training(folder_data: Path, output: Path, processes: int) -> list[str]:
    more = (
        "train.train_iter=6",
        "train.checkpointer.period=3",
        "train.evaluation.enabled=False",
        f"train.dist.data_parallel_size={processes}",
    )
    return [CONFIG, str(processes), *overrides(folder_data, output, *more)]


@pytest.mark.slow
def test_two_processes_train_as_one(folder_data, two_processes, tmp_path):
    """Of the same global batch each has its half."""
    code, _, stderr = train_sh(*short_training(folder_data, tmp_path, 1))
    assert code == 0, stderr
    one, two = losses(tmp_path), losses(two_processes)
    assert list(one) == list(two) == [1, 2, 3, 4, 5, 6]
    assert one[6] < one[1] - 0.05
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_log_says_who_holds_what(two_processes):
    log = (two_processes / "log.txt").read_text()
    assert "data 2 x tensor 1 x pipeline 1; share of the multiply-adds at 64x64" in log
    assert "stage 0, ranks 0 to 1, blocks 0 to 3, 100%: parameters 0." in log


@pytest.mark.slow
def test_two_processes_resume(folder_data, two_processes, tmp_path):
    output = tmp_path / "interrupted"
    shutil.copytree(two_processes, output)
    for name in ("model_final", "model_0000005"):
        shutil.rmtree(output / name, ignore_errors=True)
    code, stdout, stderr = train_sh(*short_training(folder_data, output, 2), "--resume")
    assert code == 0, stderr
    assert "Training from iteration 3 to 6" in stdout
    assert losses(output) == losses(two_processes)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["data", "tensor", "pipeline"])
def test_two_processes_evaluate_every_image_once(folder_data, trained, tmp_path, split):
    """Five images on two data ranks: one has nothing to count in the last batch."""
    more = (f"train.dist.{split}_parallel_size=2", f"train.load_weight={trained}/model_final")
    code, _, stderr = train_sh(CONFIG, "2", "--eval-only", *overrides(folder_data, tmp_path, *more))
    assert code == 0, stderr
    assert evaluation(tmp_path) == evaluation(trained)


@pytest.mark.slow
def test_error_on_two_processes_ends_both(folder_data, tmp_path):
    more = ("train.dist.data_parallel_size=2", "data.root=/not/there")
    code, stdout, stderr = train_sh(
        CONFIG, "2", *overrides(folder_data, tmp_path, *more), timeout=60
    )
    assert code != 0
    assert "error: /not/there: 0 images" in stderr
    assert not processes_with(str(tmp_path))


@pytest.mark.slow
def test_interrupted_processes_leave_none_behind(folder_data, tmp_path, start):
    """Ctrl-C in a terminal reaches the whole process group."""
    more = ("train.train_iter=100000", "train.dist.data_parallel_size=2")
    command = overrides(folder_data, tmp_path, *more)
    process = start("bash", "tools/train.sh", CONFIG, "2", *command, env=TRAIN_ENVIRONMENT)
    reported = tmp_path / "metrics.json"
    wait_until(
        lambda: process.poll() is not None or reported.exists() and len(losses(tmp_path)) > 2
    )
    assert len(processes_with(str(tmp_path))) >= 3  # the launcher and its ranks
    asked = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    wait_until(lambda: not processes_with(str(tmp_path)), timeout=20)
    assert time.monotonic() - asked < 20
