"""A training whose disk is full for a while, and data that changes under an evaluation."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import metrics, tensorboard_scalars, training, wait_until


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


@pytest.mark.slow
def test_training_goes_on_while_the_disk_is_full(small_disk, folder_data, tmp_path, start):
    """It is full from about the third step to the twentieth of 24, also for standard output."""
    output = small_disk / "output"
    more = (
        "train.checkpointer.period=6",
        "train.evaluation.eval_period=6",
        "train.evaluation.worst_images=2",
    )
    with open(small_disk / "stdout", "w") as stdout, open(tmp_path / "progress", "w+b") as progress:

        def step() -> int:
            record = os.pread(progress.fileno(), 256, 0)
            return json.loads(record)["step"] or 0 if record else 0

        process = start(
            *(sys.executable, "tools/train_net.py", *training(folder_data, output, *more)),
            stdout=stdout,
            env=os.environ | {"SEGFORMER_PROGRESS": str(progress.fileno())},
            pass_fds=[progress.fileno()],
        )
        wait_until(lambda: process.poll() is not None or step() >= 2)
        filler = fill(small_disk)
        wait_until(lambda: process.poll() is not None or step() >= 19)
        filler.unlink()
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr and "Logging error" not in stderr

    lines = metrics(output)
    assert [line["iteration"] for line in lines if "lr" in line] == list(range(1, 25))
    assert [line["iteration"] for line in lines if "mIoU" in line] == [6, 12, 18, 24]
    assert tensorboard_scalars(output / "tensorboard").keys() == {
        (name, line["iteration"]) for line in lines for name in line if name != "iteration"
    }
    assert (output / "evaluation.json").exists() and (output / "model_final").exists()
    log = (output / "log.txt").read_text()
    assert log.count("  loss ") == 24
    told = [
        line for line in log.splitlines() if "cannot write" in line and "evaluation" not in line
    ]
    for name in ("metrics.json", "events.out", "log.txt", "standard output"):
        assert sum(name in line for line in told) <= 1, told  # a file's last block has some room
    assert any("log.txt" in line for line in told)
    for name in ("evaluation.json", "model_0000005", "model_0000017"):
        told = [line for line in log.splitlines() if "No space left" in line and name in line]
        assert told, name


CHANGED_IMAGE = """
import sys
import oneflow as flow
from projects.SegFormer.dataset.segmentation import SegmentationDataset
from projects.SegFormer.tools import train_net
load = SegmentationDataset.load
def load_smaller(self, index):
    image, label = load(self, index)
    return (image[:40], label[:40]) if "val" in str(self.images[index]) else (image, label)
if flow.env.get_rank() == 1:
    SegmentationDataset.load = load_smaller
train_net.leave(train_net.run(sys.argv[1:]))
"""


@pytest.mark.slow
def test_image_that_changes_on_one_rank(folder_data, tmp_path, start):
    """Its header said another size when the ranks agreed on their batches."""
    script = tmp_path / "changed_image.py"
    script.write_text(CHANGED_IMAGE)
    arguments = training(folder_data, tmp_path / "output", "--eval-only")
    process = start(
        *(sys.executable, "tools/launch.py", "--ranks", "2"),
        *(sys.executable, str(script), *arguments),
    )
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    (line,) = (line for line in stderr.splitlines() if line.startswith("error: "))
    assert "images/val/" in line and "is 40x96 (height x width) and was 80x96 before" in line
    assert "Traceback" not in stderr and "Error" not in stderr, stderr
