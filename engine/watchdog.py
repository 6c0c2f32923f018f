"""Notices a run that hangs: nothing has been heard of it for train.watchdog_seconds.

Of several ranks the launcher notices, which hears of each through a file; see `Watchdog`. A process
without a launcher watches itself.
"""

import faulthandler
import json
import os
import signal
import sys
import time
from contextlib import suppress
from threading import Event, Thread

from projects.SegFormer.modeling.errors import InputError

PROGRESS = "SEGFORMER_PROGRESS"  # the launcher's: number of the file descriptor to write to
RECORD_BYTES = 256
LIMIT = 1800  # seconds, where a config of an earlier version says nothing
GRACE = 60  # seconds after which a process is ended that cannot end itself


class Watchdog:
    """What a rank is doing, for the launcher or a thread that ends the process when it hangs.

    With a launcher each sign of life is one line of JSON, padded to RECORD_BYTES, at the start of
    its file: {"limit": seconds, "step": last finished iteration or null, "doing": a word or two,
    "count": how many signs of life so far}. The launcher sends SIGUSR2 to a rank that hangs, and it
    writes where its threads stand to standard error.

    Args:
        limit: seconds without a sign of life; with 0 nothing is watched.
    Raises InputError for another limit.
    """

    def __init__(self, limit: float):
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 <= limit < 1e7:
            raise InputError(
                f"train.watchdog_seconds={limit}: expected a number of seconds, 0 for no watchdog"
            )
        self._limit = limit
        self._step, self._doing, self._count, self._heard = None, "", 0, time.monotonic()
        self._file = int(os.environ[PROGRESS]) if PROGRESS in os.environ else None
        self._ended, self._thread = Event(), None

    def __enter__(self) -> "Watchdog":
        if self._limit and self._file is None:
            self._thread = Thread(target=self._watch, daemon=True, name="watchdog")
            self._thread.start()
        elif self._limit:
            faulthandler.register(signal.SIGUSR2, file=sys.__stderr__, all_threads=True)
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def alive(self, doing: str, step: int | None = None) -> None:
        """A sign of life: what is done from now on, and the iteration that has been finished."""
        self._step = self._step if step is None else step
        self._doing, self._heard = doing, time.monotonic()
        self._count += 1
        if self._limit and self._file is not None:
            record = dict(limit=self._limit, step=self._step, doing=doing, count=self._count)
            with suppress(OSError):  # a launcher that is gone ends the ranks
                os.pwrite(self._file, json.dumps(record).encode().ljust(RECORD_BYTES), 0)

    def _watch(self) -> None:
        self._heard = time.monotonic()
        while not self._ended.wait(min(self._limit / 10, 10)):
            # If this thread cannot run either, because Python's lock is held, faulthandler's does.
            faulthandler.dump_traceback_later(self._limit + GRACE, exit=True, file=sys.__stderr__)
            silent = time.monotonic() - self._heard
            if silent > self._limit:
                self._end(silent)

    def _end(self, silent: float) -> None:
        after = "before the first step" if self._step is None else f"after iteration {self._step}"
        with suppress(OSError):
            os.write(
                2,
                f"error: no sign of life for {silent:.0f} s (train.watchdog_seconds) {after}, "
                f"{self._doing or 'starting'}; where the threads stand:\n".encode(),
            )
            faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        os._exit(1)
