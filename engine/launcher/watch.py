"""Does a rank hang? What the ranks say of their progress, and which one the others wait for.

Each rank has a small file in memory (its descriptor is in SEGFORMER_PROGRESS) with one record at
its beginning, which the rank writes over: JSON, filled up with spaces to RECORD bytes.

    {"limit": 1800, "step": 41, "doing": "training", "count": 977}

`step` is the last that was finished, or null. `count` grows with each sign of life, and `limit` is
how many seconds may pass without one; 0: any.
"""

import json
import math
import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import NamedTuple

from projects.SegFormer.modeling.errors import printable

RECORD = 256  # bytes
TRACEBACK = 3  # seconds that a rank has to print where its threads stand
AT_WORK = ("training", "evaluating")  # one that waits for others at a collective says so too

STATES = {
    "R": "is running",
    "S": "is sleeping",
    "D": "is waiting for the disk or a device",
    "T": "is stopped",
    "t": "is stopped by a debugger",
    "Z": "has ended",
}


class Record(NamedTuple):
    limit: float
    step: int | None
    doing: str
    count: int


class Suspect(NamedTuple):
    """The rank that the others wait for. Of several, the smallest."""

    blame: int  # 0: its process is stopped, 1: it waits for the disk, 2: for data, 3: for others
    count: int
    rank: int
    news: str

    @property
    def waits_for_others(self) -> bool:
        return self.blame == 3


class Watch:
    """Over the ranks of one machine."""

    def __init__(self):
        self._files: dict[int, int] = {}
        self._records: dict[int, Record] = {}
        self._silent: dict[int, float] = {}  # seconds since a rank's record changed
        self._looked = time.monotonic()

    def descriptor(self, rank: int) -> int:
        """Of the file that this rank has to inherit."""
        self._files[rank] = os.memfd_create(f"progress of rank {rank}")
        return self._files[rank]

    def hanging(self, pids: dict[int, int]) -> Suspect | None:
        """The suspect, once one of these ranks, which run, has been silent for its limit."""
        # A launcher that was stopped itself, with its ranks or a whole batch job, has not watched.
        passed = min(1, time.monotonic() - self._looked)
        self._looked = time.monotonic()
        for rank in pids:
            self._look(rank, passed)
        watched = [rank for rank in pids if rank in self._records and self._records[rank].limit]
        if not any(self._silent[rank] >= self._records[rank].limit for rank in watched):
            return None
        # The rank that hangs and those that wait for it fall silent within one step of each other.
        silent = [rank for rank in watched if self._silent[rank] >= self._records[rank].limit / 2]
        return min(suspect(rank, self._records[rank], state_of(pids[rank])) for rank in silent)

    def _look(self, rank: int, passed: float) -> None:
        record = parse(os.pread(self._files[rank], RECORD, 0))
        if record is None or record == self._records.get(rank):
            self._silent[rank] = self._silent.get(rank, 0) + passed
        else:
            self._records[rank] = record
            self._silent[rank] = 0


def parse(data: bytes) -> Record | None:
    """A record, or None for what is none: nothing yet, or one that is just being written."""
    try:
        fields = json.loads(data)
        record = Record(*(fields[name] for name in Record._fields))
        limit, count = float(record.limit), int(record.count)
        step = None if record.step is None else int(record.step)
        if not (math.isfinite(limit) and limit >= 0 and isinstance(record.doing, str)):
            return None
        return record._replace(limit=limit, step=step, count=count)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def suspect(rank: int, record: Record, state: str) -> Suspect:
    doing = printable(record.doing)
    blame = {"T": 0, "t": 0, "D": 1}.get(state, 3 if doing in AT_WORK else 2)
    where = "before the first step" if record.step is None else f"after step {record.step}"
    news = (
        f"rank {rank} hangs: no sign of life for {record.limit:g} s {where}, {doing}; "
        f"its process {STATES.get(state, 'is in state ' + state)}"
    )
    return Suspect(blame, record.count, rank, news)


def state_of(pid: int) -> str:
    """The letter that the kernel has for how a process stands."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return "Z"


def show_threads(process: subprocess.Popen) -> None:
    """Have a rank print where its threads stand: it has registered faulthandler for SIGUSR2."""
    # In this order: a process that is stopped does it before anything else when it goes on.
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGCONT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(TRACEBACK)
