"""Writers of what a training reports: lines in the log and TensorBoard event files."""

import datetime
import logging

from libai.utils.events import EventWriter, get_event_storage

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


class TensorBoardWriter(EventWriter):
    """All scalars, as TensorBoard event files in `folder`."""

    def __init__(self, folder: str):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(folder)
        self._last = -1

    def write(self):
        written = self._last
        for name, (value, iteration) in get_event_storage().latest().items():
            if iteration > self._last:
                self._writer.add_scalar(name, value, iteration)
                written = max(written, iteration)
        self._last = written
        self._writer.flush()

    def close(self):
        self._writer.close()
