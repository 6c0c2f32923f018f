"""How a run ends before its time: by a signal, by the watchdog, or because another is at it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import (
    CONFIG,
    TRAIN_ENVIRONMENT,
    error_line,
    losses,
    metrics,
    processes_with,
    run_here,
    training,
    wait_until,
)
from projects.SegFormer.engine.checkpoint import last_checkpoint

TOOL = "tools/train_net.py"
ENDLESS = ("train.train_iter=100000", "train.evaluation.enabled=False")


def ranks_of(output: Path) -> dict[int, int]:
    """The processes that train to `output`: rank -> process id."""
    found = {}
    for process in processes_with(str(output)):
        try:
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(b"RANK="):
                found[int(variable[5:])] = process
    return found


def hang_up_as_usual() -> None:
    """Also where the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def begin(folder_data, tmp_path, start):
    """Start a training to `tmp_path`/output, and wait until it has made some steps."""

    def begin_training(ranks: int, *more: str, **environment: str):
        output = tmp_path / "output"
        arguments = training(folder_data, output, *more)[2:]
        process = start(
            *("bash", "tools/train.sh", CONFIG, str(ranks), *arguments),
            env=TRAIN_ENVIRONMENT | environment,
            preexec_fn=hang_up_as_usual,
        )
        wait_until(lambda: process.poll() is not None or len(losses(output)) > 3)
        return process, output

    return begin_training


def assert_stopped(process, output: Path, number: signal.Signals) -> None:
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    path, iteration = last_checkpoint(str(output))
    line = f"stopped by {number.name} after iteration {iteration}; --resume goes on from {path}"
    assert stderr.splitlines().count(line) == 1, stderr
    assert "Traceback" not in stderr
    assert max(losses(output)) == iteration + 1  # the step that was reported last is saved
    wait_until(lambda: not processes_with(str(output)), timeout=20)


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)],
)
def test_one_process_stops_with_a_checkpoint(begin, number):
    process, output = begin(1, *ENDLESS)
    process.send_signal(number)
    assert_stopped(process, output, number)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGTERM, "one rank"),
        (signal.SIGHUP, "the launcher"),
        (signal.SIGINT, "all processes"),
    ],
)
def test_two_ranks_stop_after_the_same_step(begin, number, to):
    process, output = begin(2, *ENDLESS)
    if to == "one rank":
        os.kill(ranks_of(output)[1], number)
    elif to == "the launcher":
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    assert_stopped(process, output, number)


SLOW_EVALUATION = """
import sys, time
from projects.SegFormer.engine import process, signals
from projects.SegFormer.evaluation import inference
from projects.SegFormer.tools import train_net
call = inference.Inference.__call__
def slow_call(*arguments):
    time.sleep(float({seconds}))
    return call(*arguments)
inference.Inference.__call__ = slow_call
signals.catch()
train_net.leave(train_net.run(sys.argv[1:]))
"""


@pytest.fixture
def slow_evaluation(start, tmp_path, folder_data):
    """Start a training whose evaluation after iteration 4 takes `seconds` an image."""

    def begin_training(seconds: float, *more: str):
        script = tmp_path / "slow_evaluation.py"
        script.write_text(SLOW_EVALUATION.format(seconds=seconds))
        output = tmp_path / "output"
        arguments = training(folder_data, output, "train.evaluation.eval_period=4", *more)
        process = start(sys.executable, str(script), *arguments)
        wait_until(lambda: process.poll() is not None or "Evaluating on" in log_of(output))
        return process, output

    return begin_training


def log_of(output: Path) -> str:
    return (output / "log.txt").read_text() if (output / "log.txt").exists() else ""


@pytest.mark.slow
def test_stop_in_an_evaluation_which_the_resumed_training_begins_with(slow_evaluation, folder_data):
    process, output = slow_evaluation(1, "train.train_iter=8")
    process.send_signal(signal.SIGTERM)
    assert_stopped(process, output, signal.SIGTERM)
    assert last_checkpoint(str(output))[1] == 3
    assert not [line for line in metrics(output) if "mIoU" in line]

    arguments = training(
        folder_data, output, "train.evaluation.eval_period=4", "train.train_iter=8", "--resume"
    )
    assert run_here(TOOL, *arguments).returncode == 0
    assert [line["iteration"] for line in metrics(output) if "mIoU" in line] == [4, 8]
    assert list(losses(output)) == list(range(1, 9))


SIGNALLED = """
import os, signal, sys, time
from projects.SegFormer.engine import signals
signals.catch()
if sys.argv[1] == "deferred":
    signals.defer()
print("ready", flush=True)
while True:
    time.sleep(0.05)
    if signals.noted():
        print(signals.noted().name, flush=True)
        signals._noted = None
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_signal_before_the_training_ends_at_once(start, number):
    process = start(sys.executable, "-c", SIGNALLED, "at once", preexec_fn=hang_up_as_usual)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert stderr == f"ended by {number.name}\n"


def test_nohup_is_respected(start):
    process = start("nohup", sys.executable, "-c", SIGNALLED, "at once")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)


def test_same_signal_later_ends_at_once(start):
    """A scheduler and a launcher may both deliver the first; 5 s later it is a person."""
    process = start(sys.executable, "-c", SIGNALLED, "deferred")
    assert process.stdout.readline() == "ready\n"
    for pause in (0, 0.5, 0.5):
        time.sleep(pause)
        process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    time.sleep(5.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143


# --- the watchdog -------------------------------------------------------------------------------


@pytest.mark.slow
def test_process_that_hangs_ends_itself(slow_evaluation):
    process, _ = slow_evaluation(1000, "train.watchdog_seconds=5")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    line, _, stacks = stderr[stderr.index("error: ") :].partition("\n")
    assert "no sign of life" in line and "after iteration 3, evaluating" in line
    assert "in slow_call" in stacks  # where it stands


@pytest.mark.slow
def test_evaluation_longer_than_the_limit_is_no_hang(slow_evaluation):
    process, output = slow_evaluation(2, "train.watchdog_seconds=6", "train.train_iter=4")
    assert process.wait(timeout=60) == 0
    assert [line["iteration"] for line in metrics(output) if "mIoU" in line] == [4]


HOLDS_PYTHONS_LOCK = """
import ctypes, sys, time
from projects.SegFormer.engine import watchdog
watchdog.GRACE = 1
with watchdog.Watchdog(2) as watching:
    watching.alive("training", 7)
    time.sleep(1)
    ctypes.PyDLL(None).sleep(60)  # as C code that waits and does not let Python's threads run
"""


def test_process_that_hangs_with_pythons_lock_ends_itself(start):
    process = start(sys.executable, "-c", HOLDS_PYTHONS_LOCK)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Timeout" in stderr and "most recent call first" in stderr


def test_signs_of_life_for_the_launcher(tmp_path, start):
    script = (
        "import os\n"
        "from projects.SegFormer.engine.watchdog import Watchdog\n"
        "with Watchdog(60) as watchdog:\n"
        "    watchdog.alive('waiting for data')\n"
        "    watchdog.alive('training')\n"
        "    watchdog.alive('training', 41)\n"
        "    os.kill(os.getpid(), 12)\n"  # SIGUSR2
    )
    with open(tmp_path / "progress", "w+b") as file:
        environment = os.environ | {"SEGFORMER_PROGRESS": str(file.fileno())}
        process = start(sys.executable, "-c", script, env=environment, pass_fds=[file.fileno()])
        _, stderr = process.communicate(timeout=60)
        data = file.read()
    assert len(data) == 256
    assert json.loads(data) == {"limit": 60, "step": 41, "doing": "training", "count": 3}
    assert process.returncode == 0 and "most recent call first" in stderr


@pytest.mark.slow
def test_rank_that_hangs_is_named(begin):
    process, output = begin(2, *ENDLESS, "train.watchdog_seconds=8")
    os.kill(ranks_of(output)[1], signal.SIGSTOP)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert "rank 1" in stderr and "Thread" in stderr, stderr
    wait_until(lambda: not processes_with(str(output)), timeout=20)


# --- one training to a folder -------------------------------------------------------------------


@pytest.mark.slow
def test_second_run_into_a_folder(begin, folder_data, start):
    """Neither a training nor an evaluation touches it; a dead process leaves it free."""
    process, output = begin(1, *ENDLESS)
    os.kill(process.pid, signal.SIGSTOP)  # so that the folder stays as it is
    os.waitpid(process.pid, os.WUNTRACED)

    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in output.rglob("*") if path.is_file()}

    before = content()
    for more in ((), ("--eval-only",)):
        line = error_line(run_here(TOOL, *training(folder_data, output, *more)))
        assert f"{output} is in use by process {process.pid} on {os.uname().nodename}" in line
        assert "train.output_dir=" in line
    assert content() == before
    process.kill()
    process.wait()
    arguments = training(
        folder_data, output, "train.train_iter=1", "train.evaluation.enabled=False"
    )
    assert run_here(TOOL, *arguments).returncode == 0


@pytest.mark.slow
def test_second_run_of_two_ranks_into_a_folder(begin, folder_data, start):
    process, output = begin(1, *ENDLESS)
    arguments = training(folder_data, output)[2:]
    second = start("bash", "tools/train.sh", CONFIG, "2", *arguments, env=TRAIN_ENVIRONMENT)
    _, stderr = second.communicate(timeout=120)
    assert second.returncode == 1
    assert stderr.count(f"{output} is in use by process {process.pid}") == 1
    assert "Traceback" not in stderr
    assert not (output / "log.txt.rank1").exists()
