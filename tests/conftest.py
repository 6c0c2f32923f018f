"""What several tests use: a small data set on disk, a small model, and a run of the tools."""

import projects.SegFormer.engine.process  # noqa: F401

import importlib
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import cv2
import numpy as np
import oneflow as flow
import pytest
from libai.utils import distributed
from libai.utils.logger import setup_logger
from tensorboardX.proto.event_pb2 import Event

from projects.SegFormer.dataset.description import Description
from projects.SegFormer.engine import command_line, output_folder

ROOT = Path(__file__).resolve().parent.parent

# A network of the same kind with few channels, as overrides of any segmentation config.
TINY_MODEL = (
    "cfg.hidden_sizes=[8,16,24,32]",
    "cfg.num_attention_heads=[1,2,3,4]",
    "cfg.depths=[1,1,1,1]",
    "cfg.decoder_hidden_size=16",
)
CLASSES = ("disc", "field", "sky")
COLOURS = np.array([[200, 30, 30], [40, 160, 60], [90, 140, 220]], np.uint8)


def pytest_addoption(parser):
    parser.addoption("--count", type=int, default=100, help="damaged files of each kind to read")


@pytest.fixture(scope="session")
def folder_data(tmp_path_factory) -> Path:
    """A folder data set of three classes: 12 images of 80x96 for training, 5 for validation."""
    root = tmp_path_factory.mktemp("folder_data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            label = np.full((80, 96), 2, np.uint8)
            label[rng.integers(30, 60) :] = 1
            centre = (int(rng.integers(15, 80)), int(rng.integers(15, 65)))
            cv2.circle(label, centre, int(rng.integers(8, 16)), 0, -1)
            noise = rng.normal(0, 12, (80, 96, 3))
            image = (COLOURS[label] + noise).clip(0, 255).astype(np.uint8)
            label[0] = 255
            cv2.imwrite(str(root / "images" / split / f"{index:02d}.png"), image[..., ::-1])
            cv2.imwrite(str(root / "annotations" / split / f"{index:02d}.png"), label)
    return root


@pytest.fixture
def data_root(tmp_path) -> str:
    """A folder for data, with the description that segformer_own.py takes its classes from."""
    images = {"train": 10, "val": 2}
    Description(["a", "b"], [[0, 0, 0], [9, 9, 9]], [400, 600], images).write(tmp_path)
    return str(tmp_path)


def tiny_run(folder_data: Path, output: Path, *more: str) -> list[str]:
    """Overrides of configs/segformer_camvid.py for a training of seconds on `folder_data`."""
    return [
        *TINY_MODEL,
        f"data.root={folder_data}",
        f"train.output_dir={output}",
        "cfg.num_classes=3",
        f"dataloader.train.dataset.classes=[{','.join(CLASSES)}]",
        f"dataloader.test.0.dataset.classes=[{','.join(CLASSES)}]",
        "dataloader.train.dataset.palette=null",
        "dataloader.test.0.dataset.palette=null",
        "dataloader.train.dataset.transforms.0.size=[80,96]",
        "dataloader.train.dataset.transforms.1.size=[64,64]",
        "dataloader.train.dataset.transforms.5.size=[64,64]",
        "dataloader.train.num_workers=0",
        "dataloader.test.0.num_workers=0",
        "train.log_period=1",
        *more,
    ]


# Loading OneFlow takes longer than what these do.
RUN_HERE = {
    *("analyze", "check_dataset", "convert_weights", "export", "get_flops"),
    *("predict", "prepare_dataset"),
}


def run_tool(
    *command: str, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess:
    """Run `python tools/...` from the repository's root; its output as text.

    Some tools run in this process, unless they are given an environment.
    """
    if not environment and command[0].startswith("tools/") and Path(command[0]).stem in RUN_HERE:
        return run_here(*command)
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_here(*command: str) -> subprocess.CompletedProcess:
    """What `run_tool` gives, in this process."""
    name = ".".join(Path(command[0]).with_suffix("").parts)
    module = importlib.import_module(f"projects.SegFormer.{name}")
    context = pytest.MonkeyPatch.context()
    with kept(redirect_stdout) as out, kept(redirect_stderr) as err, context as patch:
        patch.setattr(sys, "argv", list(command))
        patch.chdir(ROOT)
        # Put back afterwards: a training says where the layers of its model are.
        patch.setattr(distributed, "_DIST_UTIL", distributed._DIST_UTIL)
        try:
            if name == "tools.train_net":
                module.leave(module.run(list(command[1:])))
            command_line.run(module.main)
        except SystemExit as end:
            code = end.code or 0
        finally:
            forget_training()
        texts = [stream.seek(0) or stream.read() for stream in (out, err)]
    return subprocess.CompletedProcess(command, code, *texts)


@contextmanager
def kept(redirect: type):
    """Keep in a file what is written to a standard stream."""
    encoding = dict(encoding="utf-8", errors="backslashreplace")
    with tempfile.TemporaryFile("w+", **encoding) as file, redirect(file):
        yield file


def forget_training() -> None:
    """Of what `run_here` has run: the log's files, console and level, the lock of the folder."""
    log = logging.getLogger("libai")
    log.handlers.clear()
    log.setLevel(logging.NOTSET)
    log.propagate = True
    setup_logger.cache_clear()
    while output_folder._held:
        os.close(output_folder._held.popitem()[1])


CONFIG = "configs/segformer_camvid.py"


def training(folder_data: Path, output: Path, *more: str) -> list[str]:
    """Arguments of tools/train_net.py for 24 steps that learn, dropout and drop path on."""
    schedule = (
        "train.train_iter=24",
        "train.checkpointer.period=8",
        "train.evaluation.eval_period=12",
        "optim.params.lr=5e-3",
    )
    return ["--config-file", CONFIG, *tiny_run(folder_data, output, *schedule, *more)]


@pytest.fixture(scope="session")
def trained(folder_data, tmp_path_factory) -> Path:
    """The output folder of `training` in eager mode."""
    output = tmp_path_factory.mktemp("trained")
    process = run_tool("tools/train_net.py", *training(folder_data, output))
    assert process.returncode == 0, process.stderr
    return output


def metrics(output: Path) -> list[dict]:
    """The lines of metrics.json."""
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def losses(output: Path) -> dict[int, float]:
    """The loss of each iteration in metrics.json, which names none twice and may not be there."""
    if not (output / "metrics.json").exists():
        return {}
    lines = [line for line in metrics(output) if "total_loss" in line]
    found = [(line["iteration"], line["total_loss"]) for line in lines]
    assert len(found) == len(dict(found))
    return dict(found)


def tensorboard_events(folder: Path) -> list[Event]:
    """Of all event files. An event's record is length, checksum, event, checksum."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def tensorboard_scalars(folder: Path) -> dict[tuple[str, int], float]:
    """(name, iteration) -> value."""
    return {
        (value.tag, event.step): value.simple_value
        for event in tensorboard_events(folder)
        for value in event.summary.value
        if value.HasField("simple_value")
    }


def error_line(process: subprocess.CompletedProcess) -> str:
    """The one line that a tool ended with."""
    assert process.returncode not in (0, None), process.stdout
    assert "Traceback" not in process.stdout + process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and process.stderr.rstrip().endswith(errors[0]), process.stderr
    return errors[0]


@pytest.fixture
def start():
    """Start a command in a process group of its own, which ends with the test."""
    started = []

    def start_process(*command: str, **options) -> subprocess.Popen:
        options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) | options
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options)
        started.append(process)
        return process

    yield start_process
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(condition: Callable[[], bool], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain"
        time.sleep(0.05)


def delayed(result: flow.Tensor) -> flow.Tensor:
    """`result`, with some milliseconds of work in the graph that gives it.

    OneFlow 0.9 launches a graph and then puts it into the queue that the graph's end takes it from.
    The graph of a single layer can end before that, and the process crashes.
    """
    zeros = (result.detach().sum() * 0).reshape(1, 1).repeat(768, 768)
    return result + flow.matmul(zeros, zeros).sum()


@pytest.fixture
def run_ranks(start, tmp_path):
    """Run a Python script on several ranks of this machine; its standard output."""

    def run(count: int, script: str, *arguments: str, timeout: float = 240) -> str:
        file = tmp_path / "on_every_rank.py"
        file.write_text(script)
        process = start(
            *(sys.executable, "tools/launch.py", "--ranks", str(count)),
            *(sys.executable, str(file), *map(str, arguments)),
        )
        stdout, stderr = process.communicate(timeout=timeout)
        assert process.returncode == 0, stderr
        return stdout

    return run


# train.sh takes the Python that it finds.
TRAIN_ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def train_sh(*arguments: str, timeout: float = 200, **environment: str) -> tuple[int, str, str]:
    """Run tools/train.sh to its end: exit code, standard output, standard error."""
    process = subprocess.Popen(
        ["bash", "tools/train.sh", *arguments],
        cwd=ROOT,
        env=TRAIN_ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        ranks = {*processes_with("tools/train_net.py")} - {*processes_with("tools/launch.py")}
        for rank in ranks:
            if os.getpgid(rank) == process.pid:
                os.kill(rank, signal.SIGUSR2)  # it tells where its threads stand
                time.sleep(1)
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"not at its end after {timeout} s: {process.communicate()[1]}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, stdout, stderr


def processes_with(word: str) -> list[int]:
    """Processes that have `word` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found
