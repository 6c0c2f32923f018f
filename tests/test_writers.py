"""The writers against what was put into LiBai's event storage."""

import json
import logging
from pathlib import Path

import pytest
from libai.utils.events import EventStorage

from conftest import tensorboard_scalars
from projects.SegFormer.engine.writers import JsonWriter, LogWriter, TensorBoardWriter


def write_all(writers, log_period: int, start: int = 0, stop: int = 9) -> None:
    """Iterations as the trainer reports them: the loss before the count goes up, the rest after.

    An evaluation comes after iteration 4, and one after the last, when all has been written.
    """
    with EventStorage(start) as storage:
        for iteration in range(start, stop):
            storage.put_scalar("total_loss", 10.0 - iteration)
            storage.iter = iteration + 1
            storage.put_scalar("lr", 0.1 / (iteration + 1), smoothing_hint=False)
            if storage.iter == 4:
                storage.put_scalar("mIoU", 40.0, smoothing_hint=False)
            if storage.iter % log_period == 0 or storage.iter == stop:
                for writer in writers:
                    writer.write()
        storage.put_scalar("mIoU", 90.0, smoothing_hint=False)
        for writer in writers:
            writer.close()


def read_json(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scalars(log_period: int) -> dict[tuple[str, int], float]:
    """What `write_all` leaves to be read: the value of each written iteration, unsmoothed."""
    written = range(log_period, 10, log_period)
    first_after_evaluation = next(iteration for iteration in written if iteration >= 4)
    return (
        {("total_loss", iteration): 11.0 - iteration for iteration in written}
        | {("lr", iteration): 0.1 / iteration for iteration in written}
        | {("mIoU", first_after_evaluation): 40.0, ("mIoU", 9): 90.0}
    )


@pytest.mark.parametrize("log_period", [1, 3])
def test_json_loses_nothing(tmp_path, log_period):
    path = tmp_path / "metrics.json"
    write_all([JsonWriter(str(path), 0)], log_period)
    found = {
        (name, line["iteration"]): value
        for line in read_json(path)
        for name, value in line.items()
        if name != "iteration"
    }
    assert found == scalars(log_period)


@pytest.mark.parametrize("log_period", [1, 3])
def test_tensorboard_loses_nothing(tmp_path, log_period):
    write_all([TensorBoardWriter(str(tmp_path))], log_period)
    assert tensorboard_scalars(tmp_path) == pytest.approx(scalars(log_period))


def test_json_is_there_before_the_end(tmp_path):
    path = tmp_path / "metrics.json"
    writer = JsonWriter(str(path), 0)
    with EventStorage(0) as storage:
        storage.put_scalar("total_loss", 1.0)
        storage.iter = 1
        writer.write()
        assert read_json(path) == [{"iteration": 1, "total_loss": 1.0}]
        writer.close()


def test_json_after_a_resume_holds_every_iteration_once(tmp_path):
    """The checkpoint was of iteration 5, the interruption after 7."""
    path = tmp_path / "metrics.json"
    write_all([JsonWriter(str(path), 0)], 1, stop=7)
    write_all([JsonWriter(str(path), 5)], 1, start=5)
    lines = [line for line in read_json(path) if "total_loss" in line]
    assert [line["iteration"] for line in lines] == list(range(1, 10))


def test_json_of_a_new_training_starts_anew(tmp_path):
    path = tmp_path / "metrics.json"
    write_all([JsonWriter(str(path), 0)], 1)
    write_all([JsonWriter(str(path), 0)], 1, stop=2)
    assert max(line["iteration"] for line in read_json(path)) == 2


def test_json_line_that_a_kill_cut_off_is_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1, "total_loss": 1.0}\n{"iteration": 2, "total_')
    write_all([JsonWriter(str(path), 1)], 1, start=1, stop=3)
    lines = [line["iteration"] for line in read_json(path) if "total_loss" in line]
    assert lines == [1, 2, 3]


@pytest.fixture
def log(caplog):
    """LiBai's logger may not hand its lines on to pytest."""
    logger = logging.getLogger("libai.projects.SegFormer.engine.writers")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(caplog.handler)
    yield lambda: caplog.records[-1].getMessage()
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)


def test_log_line(log):
    writer = LogWriter(batch_size=8, max_iter=5000)
    with EventStorage(0) as storage:
        for iteration in range(40):
            storage.put_scalar("data_time", 0.5 if iteration < 20 else 0.25)
            storage.put_scalar("total_loss", 9.0 if iteration < 20 else 1.5)  # 20 are averaged
            storage.iter = iteration + 1
            storage.put_scalar("lr", 6e-5, smoothing_hint=False)
            storage.put_scalar("time", 2.0)
        writer.write()
    expected = "iter 40/5000  loss 1.5000  lr 6.00e-05  4.0 images/s  data 0.250 s  ETA 2:45:20"
    assert log() == expected  # 4960 iterations of 2 s are left


def test_first_log_line_has_no_time(log):
    """LiBai's timer leaves out the first iterations."""
    with EventStorage(0) as storage:
        storage.put_scalar("total_loss", 2.0)
        storage.iter = 1
        LogWriter(batch_size=8, max_iter=10).write()
    assert log() == "iter 1/10  loss 2.0000"
