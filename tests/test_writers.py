"""The writers against what was put into LiBai's event storage."""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

import pytest
from libai.utils.events import EventStorage
from test_checkpoint import files_of_at_most

from conftest import tensorboard_events, tensorboard_scalars
from projects.SegFormer.engine import appended_file
from projects.SegFormer.engine.appended_file import AppendedFile
from projects.SegFormer.engine.log import ConsoleHandler, LogFile
from projects.SegFormer.engine.metrics import read_metrics
from projects.SegFormer.engine.writers import JsonWriter, LogWriter, TensorBoardWriter
from projects.SegFormer.modeling.errors import InputError


def write_all(writers, log_period: int, start: int = 0, stop: int = 9) -> None:
    """Iterations as the trainer reports them: the loss before the count goes up, the rest after.

    Another hook's score comes after iteration 4, and an evaluation after the last.
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
        for writer in writers:
            writer.write_scalars(stop, {"mIoU": 90.0})


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


def test_tensorboard_after_a_resume_shows_every_iteration_once(tmp_path):
    """It drops what came before a start, from the step of that start on (its SessionLog.START)."""
    write_all([TensorBoardWriter(str(tmp_path / "0"))], 1, stop=7)
    write_all([TensorBoardWriter(str(tmp_path / "1"), 5)], 1, start=5)
    write_all([TensorBoardWriter(str(tmp_path / "2"), 8)], 1, start=8)
    shown = []
    for event in (event for name in "012" for event in tensorboard_events(tmp_path / name)):
        if event.session_log.status == event.session_log.START:
            shown = [(name, step) for name, step in shown if step < event.step]
        shown += [(value.tag, event.step) for value in event.summary.value]
    losses = [step for name, step in shown if name == "total_loss"]
    assert losses == list(range(1, 10))


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "metrics.json"
    writer = JsonWriter(str(path), 0)
    writer.write_scalars(1, {"mIoU": float("nan"), "lr": float("inf"), "mAcc": 1.0})
    assert path.read_text() == '{"iteration": 1, "lr": null, "mAcc": 1.0, "mIoU": null}\n'


def test_json_is_there_before_the_end(tmp_path):
    path = tmp_path / "metrics.json"
    writer = JsonWriter(str(path), 0)
    with EventStorage(0) as storage:
        storage.put_scalar("total_loss", 1.0)
        storage.iter = 1
        writer.write()
        assert read_json(path) == [{"iteration": 1, "total_loss": 1.0}]


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


def test_json_knows_what_it_has_of_the_start(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 3, "mIoU": 5}\n{"iteration": 6, "lr": 1}\n{"iteration": 7}\n')
    assert JsonWriter(str(path), 5).names_at_start == set()
    assert JsonWriter(str(path), 3).names_at_start == {"iteration", "mIoU"}
    assert read_json(path) == [{"iteration": 3, "mIoU": 5}]


DAMAGED_LINES = [
    b"\x89PNG\xff\xfe\n",
    b"[1]\n",
    b'{"iteration": "2", "lr": 1}\n',
    b'{"iteration": NaN}\n',
    b'{"iteration": 1' + b"0" * 400 + b"}\n",
    b"[" * 100_000 + b"\n",
    b"x" * 3_000_000 + b"\n",
]


@pytest.mark.parametrize("line", DAMAGED_LINES, ids=range(len(DAMAGED_LINES)))
def test_damaged_lines_of_json_are_passed_over(tmp_path, log, capsys, line):
    path = tmp_path / "metrics.json"
    whole = [b'{"iteration": 1, "total_loss": 3.0}\n', b'{"iteration": 2, "total_loss": 2.0}\n']
    path.write_bytes(whole[0] + line + whole[1] + line)
    writer = JsonWriter(str(path), 2)
    assert f"{path}: " in log() and "damaged" in log()
    writer.write_scalars(3, {"total_loss": 1.0})
    data = path.read_bytes()
    assert data.startswith(whole[0] + line + whole[1] + b'{"iteration": 3')

    expected = {1: 3.0, 2: 2.0, 3: 1.0}
    assert dict(zip(*map(list, read_metrics(path)["total_loss"]))) == expected
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_json_that_is_no_file(tmp_path, make):
    path = tmp_path / "metrics.json"
    make(path)
    with pytest.raises(InputError, match=f"{path}.* no regular file"):
        JsonWriter(str(path), 0)


# --- a full disk --------------------------------------------------------------------------------


def test_full_disk_is_told_once_and_nothing_is_lost(tmp_path, log, errors):
    json_path = tmp_path / "metrics.json"
    writers = [JsonWriter(str(json_path), 0), TensorBoardWriter(str(tmp_path / "tensorboard"))]

    def write(*iterations):
        for iteration in iterations:
            for writer in writers:
                writer.write_scalars(iteration, {"total_loss": 0.5 * iteration})

    write(*range(1, 10))
    size = json_path.stat().st_size
    with files_of_at_most(size + 20):  # room for half a line
        write(*range(10, 260))
        assert json_path.stat().st_size == size
        assert max(line["iteration"] for line in read_json(json_path)) == 9
    (event_file,) = (tmp_path / "tensorboard").iterdir()
    told = [line for line in errors() if "cannot write" in line]
    assert len(told) == 2
    assert [name in line for name, line in zip((str(json_path), str(event_file)), told)]
    write(260)
    expected = {iteration: 0.5 * iteration for iteration in range(1, 261)}
    assert {line["iteration"]: line["total_loss"] for line in read_json(json_path)} == expected
    found = tensorboard_scalars(tmp_path / "tensorboard")
    assert found == {("total_loss", iteration): value for iteration, value in expected.items()}
    assert sum("can be written again" in line for line in errors()) == 2


def test_what_waits_for_room_is_bounded(tmp_path, monkeypatch, errors):
    monkeypatch.setattr(appended_file, "KEPT_BYTES", 1000)
    file = AppendedFile(tmp_path / "file")
    with files_of_at_most(0):
        for number in range(100):
            file.add(b"%099d\n" % number)
    file.add(b"last\n")
    lines = (tmp_path / "file").read_text().splitlines()
    assert [int(line) for line in lines[:-1]] == list(range(90, 100)) and lines[-1] == "last"
    assert "90 records are lost" in errors()[-1]


def test_log_file_on_a_full_disk(tmp_path, capsys):
    """The console has the one line about it; the file has all lines in the end."""
    logger = logging.getLogger("a log of its own")
    logger.propagate = False
    path = tmp_path / "log.txt"
    libai_log = logging.getLogger("libai")
    handler = LogFile(str(path))
    logger.addHandler(handler)
    libai_log.addHandler(handler)  # where AppendedFile speaks of it: in the file itself
    try:
        with files_of_at_most(0):
            for number in range(250):
                logger.error(f"line {number}")
        logger.error("room")
    finally:
        libai_log.removeHandler(handler)
    lines = path.read_text().splitlines()
    assert sum("cannot write" in line for line in lines) == 1
    assert [line.rpartition(": ")[2] for line in lines if ": line " in line] == [
        f"line {number}" for number in range(250)
    ]
    assert "Logging error" not in capsys.readouterr().err


def test_console_that_cannot_be_written_is_told_once(tmp_path, errors, capsys):
    logger = logging.getLogger("a console of its own")
    logger.propagate = False
    with open("/dev/full", "w", buffering=1) as full:
        logger.addHandler(ConsoleHandler(full))
        for number in range(250):
            logger.error(f"line {number}")
        assert [line for line in errors() if "cannot write to standard output" in line] == errors()
        assert len(errors()) == 1
        with suppress(OSError):
            full.close()
    assert "Logging error" not in capsys.readouterr().err


class Messages(logging.Handler):
    def __init__(self):
        super().__init__()
        self.found = []

    def emit(self, record):
        self.found.append(record.getMessage())


@pytest.fixture
def errors():
    """The messages of the modules that guard files."""
    names = ("appended_file", "log")
    loggers = [logging.getLogger(f"libai.projects.SegFormer.engine.{name}") for name in names]
    messages = Messages()
    for logger in loggers:
        logger.addHandler(messages)
    yield lambda: messages.found
    for logger in loggers:
        logger.removeHandler(messages)


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
            loss = 9.0 if iteration < 20 else 1.5 if iteration < 39 else 3.5
            storage.put_scalar("total_loss", loss)
            storage.iter = iteration + 1
            storage.put_scalar("lr", 6e-5, smoothing_hint=False)
            storage.put_scalar("time", 2.0)
        writer.write()
    expected = (
        "iter 40/5000  loss 3.5000 (mean of 20: 1.6000)  lr 6.00e-05  4.0 images/s  data 0.250 s  "
        "ETA 2:45:20"
    )
    assert log() == expected  # 4960 iterations of 2 s are left


def test_first_log_line_has_no_time(log):
    """LiBai's timer leaves out the first iterations."""
    with EventStorage(0) as storage:
        storage.put_scalar("total_loss", 2.0)
        storage.iter = 1
        LogWriter(batch_size=8, max_iter=10).write()
    assert log() == "iter 1/10  loss 2.0000 (mean of 1: 2.0000)"
