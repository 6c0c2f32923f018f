"""Writers of what a training reports: log lines, metrics.json and TensorBoard event files."""

import datetime
import json
import logging
import os
import socket
import struct
import time
from pathlib import Path

import numpy as np
from libai.utils.events import EventWriter, get_event_storage
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from projects.SegFormer.engine.appended_file import AppendedFile
from projects.SegFormer.engine.json_lines import LINE_BYTES, parse_line
from projects.SegFormer.evaluation.pictures import encoded
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import finite, reason

logger = logging.getLogger("libai." + __name__)

SMOOTHED_OVER = 20  # iterations


class LogWriter(EventWriter):
    """One line: iteration, its loss, the mean of the last ones, learning rate, images/s, ETA.

    The loss is the same as in the other writers' files.
    """

    def __init__(self, batch_size: int, max_iter: int):
        self.batch_size, self.max_iter = batch_size, max_iter

    def write(self):
        storage = get_event_storage()
        history = storage.histories()
        parts = [f"iter {storage.iter}/{self.max_iter}"]
        if "total_loss" in history:
            loss = history["total_loss"]
            count = min(SMOOTHED_OVER, len(loss.values()))
            parts.append(f"loss {loss.latest():.4f} (mean of {count}: {loss.avg(count):.4f})")
        if "lr" in history:
            parts.append(f"lr {history['lr'].latest():.2e}")
        if "time" in history:
            seconds = history["time"].median(SMOOTHED_OVER)
            eta = datetime.timedelta(seconds=int(seconds * (self.max_iter - storage.iter)))
            parts.append(f"{self.batch_size / seconds:.1f} images/s")
            parts.append(f"data {history['data_time'].avg(SMOOTHED_OVER):.3f} s")
            parts.append(f"ETA {eta}")
        logger.info("  ".join(parts))

    def write_scalars(self, iteration: int, scalars: dict[str, float]) -> None:
        """An evaluation has logged its table already."""


class JsonWriter(EventWriter):
    """All scalars of an iteration as one line of JSON, LiBai's metrics.json.

    LiBai's own writer takes medians, and leaves out the loss when it writes every iteration. Lines
    from iterations after `start_iter`, of a training that was interrupted, are dropped: they come
    again.

    Attributes:
        names_at_start: the scalars that the file has of iteration `start_iter`.
    Raises InputError for a file that cannot be used.
    """

    def __init__(self, path: str, start_iter: int):
        self.names_at_start = _drop_later_lines(Path(path), start_iter)
        self._file = AppendedFile(path)
        self._changed = _ChangedScalars()

    def write(self):
        changed = self._changed.take()
        if changed:
            self.write_scalars(get_event_storage().iter, changed)

    def write_scalars(self, iteration: int, scalars: dict[str, float]) -> None:
        record = finite({"iteration": iteration, **scalars})
        self._file.add(json.dumps(record, sort_keys=True).encode() + b"\n")


def _drop_later_lines(path: Path, start_iter: int) -> set[str]:
    """Cut off what follows the last line up to iteration `start_iter`; the names of the latter."""
    end, names, damaged = 0, set(), 0
    try:
        if not path.exists():
            return names
        if not path.is_file():
            raise InputError(f"{path} is no regular file: remove it, or name another folder")
        with open(path, "r+b") as file:
            while start_iter and (line := file.readline(LINE_BYTES)):
                record = parse_line(line)
                if record is None or not line.endswith(b"\n"):
                    damaged += 1
                elif record["iteration"] <= start_iter:
                    end = file.tell()
                    names |= record.keys() if record["iteration"] == start_iter else set()
            file.truncate(end)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error
    if damaged:
        logger.warning(f"{path}: {damaged} lines are damaged and are passed over")
    return names


class TensorBoardWriter(EventWriter):
    """All scalars, as a TensorBoard event file in `folder`.

    TensorBoard is told to leave out what earlier files have after `start_iter`: it comes again.
    tensorboardX's SummaryWriter has a thread that a full disk ends, and then waits for it for ever.
    """

    def __init__(self, folder: str, start_iter: int = 0):
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(Path(folder) / name)
        start = SessionLog(status=SessionLog.START)
        for event in (
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), session_log=start, step=start_iter + 1),
        ):
            self._file.add(_event_record(event))
        self._changed = _ChangedScalars()

    def write(self):
        self.write_scalars(get_event_storage().iter, self._changed.take())

    def write_scalars(self, iteration: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._add(iteration, scalar(name, value))

    def write_pictures(self, iteration: int, pictures: dict[str, np.ndarray]) -> None:
        """Pictures (H, W, 3) of RGB by name; TensorBoard has a slider over their iterations."""
        for name, picture in pictures.items():
            image = Summary.Image(
                height=picture.shape[0],
                width=picture.shape[1],
                colorspace=picture.shape[2],
                encoded_image_string=encoded(picture, "png"),
            )
            self._add(iteration, Summary(value=[Summary.Value(tag=name, image=image)]))

    def _add(self, iteration: int, summary: Summary) -> None:
        event = Event(wall_time=time.time(), step=iteration, summary=summary)
        self._file.add(_event_record(event))


def _event_record(event: Event) -> bytes:
    """TFRecord's form: length, its checksum, event, its checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(sums) + data + next(sums)


class _ChangedScalars:
    """The scalars of the event storage that were put since the last look."""

    def __init__(self):
        self._seen = {}

    def take(self) -> dict[str, float]:
        latest = get_event_storage().latest()
        changed = {
            name: value for name, (value, when) in latest.items() if self._seen.get(name) != when
        }
        self._seen = {name: when for name, (_, when) in latest.items()}
        return changed
