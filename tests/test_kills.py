"""A training killed at random moments ends as the undisturbed one, on one rank and on two."""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from conftest import CONFIG, TRAIN_ENVIRONMENT, metrics, processes_with, training, wait_until
from projects.SegFormer.model_utils.weight_files import read_weights

KILLS = int(os.environ.get("SEGFORMER_KILLS", 2))  # of both trainings together
STARTED = "Training from iteration"
# Every third step is followed by a checkpoint and an evaluation: much for a kill to come between.
SCHEDULE = (
    "train.train_iter=12",
    "train.checkpointer.period=3",
    "train.evaluation.eval_period=3",
)


def result(output: Path) -> dict:
    """What a training leaves behind, without times."""
    best = json.loads((output / "model_best" / "checkpoint.json").read_text())
    return {
        "metrics": [
            {name: value for name, value in line.items() if name not in ("time", "data_time")}
            for line in metrics(output)
        ],
        "evaluation": json.loads((output / "evaluation.json").read_text()),
        "best": {name: best[name] for name in ("iteration", "mIoU")},
    }


def assert_same_weights(output: Path, expected: Path) -> None:
    for name in ("model_final", "model_best"):
        found, wanted = (read_weights(str(folder / name)) for folder in (output, expected))
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key], value, err_msg=f"{name} {key}")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_kills_at_random_moments(folder_data, tmp_path, start, ranks):
    undisturbed = tmp_path / "undisturbed"
    (tmp_path / "log").touch()

    def run(output: Path):
        arguments = training(folder_data, output, *SCHEDULE)[2:]
        return start(
            *("bash", "tools/train.sh", CONFIG, str(ranks), "--resume", *arguments),
            env=TRAIN_ENVIRONMENT,
            stdout=open(tmp_path / "log", "w"),  # noqa: SIM115 - the process has it
            stderr=subprocess.STDOUT,
        )

    def has_begun(process) -> bool:
        return process.poll() is not None or STARTED in (tmp_path / "log").read_text()

    process = run(undisturbed)
    wait_until(lambda: has_begun(process))
    began = time.monotonic()
    assert process.wait(timeout=120) == 0
    duration = time.monotonic() - began

    rng = random.Random(ranks)
    left = KILLS // 2
    trainings = 0
    while left > 0:
        trainings += 1
        output = tmp_path / f"killed_{trainings}"
        while True:
            process = run(output)
            wait_until(lambda: has_begun(process))  # noqa: B023
            moment = rng.uniform(0, 0.7 * duration) if left > 0 else 120
            with suppress(subprocess.TimeoutExpired):
                assert process.wait(timeout=moment) == 0, (tmp_path / "log").read_text()[-3000:]
                break
            assert left > 0
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            left -= 1
            wait_until(lambda: not processes_with(str(output)))  # noqa: B023
        assert result(output) == result(undisturbed)
        assert_same_weights(output, undisturbed)
