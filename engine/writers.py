"""Writers of what a training reports: log lines, metrics.json and TensorBoard event files."""

import datetime
import json
import logging
import math
from pathlib import Path

from libai.utils.events import EventWriter, get_event_storage
from tensorboardX import SummaryWriter

logger = logging.getLogger("libai." + __name__)

SMOOTHED_OVER = 20  # iterations


class LogWriter(EventWriter):
    """One line: iteration, loss, learning rate, images/s, ETA."""

    def __init__(self, batch_size: int, max_iter: int):
        self.batch_size, self.max_iter = batch_size, max_iter

    def write(self):
        storage = get_event_storage()
        history = storage.histories()
        parts = [f"iter {storage.iter}/{self.max_iter}"]
        if "total_loss" in history:
            parts.append(f"loss {history['total_loss'].avg(SMOOTHED_OVER):.4f}")
        if "lr" in history:
            parts.append(f"lr {history['lr'].latest():.2e}")
        if "time" in history:
            seconds = history["time"].median(SMOOTHED_OVER)
            eta = datetime.timedelta(seconds=int(seconds * (self.max_iter - storage.iter)))
            parts.append(f"{self.batch_size / seconds:.1f} images/s")
            parts.append(f"data {history['data_time'].avg(SMOOTHED_OVER):.3f} s")
            parts.append(f"ETA {eta}")
        logger.info("  ".join(parts))


class JsonWriter(EventWriter):
    """All scalars of an iteration as one line of JSON, LiBai's metrics.json.

    LiBai's own writer takes medians, and leaves out the loss when it writes every iteration. Lines
    from iterations after `start_iter`, of a training that was interrupted, are dropped: they come
    again.
    """

    def __init__(self, path: str, start_iter: int):
        path = Path(path)
        lines = path.read_text().splitlines() if start_iter and path.exists() else []
        kept = [line for line in lines if _iteration(line) <= start_iter]
        self._file = open(path, "w")  # noqa: SIM115 - open for as long as the training runs
        self._file.writelines(line + "\n" for line in kept)
        self._file.flush()
        self._changed = _ChangedScalars()

    def write(self):
        changed = self._changed.take()
        if changed:
            record = {"iteration": get_event_storage().iter, **changed}
            self._file.write(json.dumps(record, sort_keys=True) + "\n")
            self._file.flush()

    def close(self):
        self.write()  # the evaluation after the last iteration
        self._file.close()


def _iteration(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except ValueError:  # cut off by a kill
        return math.inf


class TensorBoardWriter(EventWriter):
    """All scalars, as TensorBoard event files in `folder`."""

    def __init__(self, folder: str):
        self._writer = SummaryWriter(folder)
        self._changed = _ChangedScalars()

    def write(self):
        iteration = get_event_storage().iter
        for name, value in self._changed.take().items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def close(self):
        self.write()
        self._writer.close()


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
