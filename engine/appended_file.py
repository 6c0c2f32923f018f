"""Files that a training adds to, on a disk that may be full for a while."""

import errno
import logging
import os
import stat
from collections import deque
from pathlib import Path

from projects.SegFormer.modeling.files import reason

logger = logging.getLogger("libai." + __name__)

KEPT_BYTES = 16 * 2**20


class AppendedFile:
    """A file to which records are added, each whole or not at all, and which never ends a run.

    What the disk does not take waits in memory, up to KEPT_BYTES, and is written with what comes
    later. One line says that it waits, and one that it is written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._descriptor: int | None = None
        self._waiting: deque[bytes] = deque()
        self._failing, self._lost = False, 0

    def add(self, record: bytes) -> None:
        self._waiting.append(record)
        try:
            while self._waiting:
                self._append(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self._wait(error)
            return
        if self._failing:
            self._failing = False
            lost = f"; {self._lost} records are lost" if self._lost else ""
            logger.warning(f"{self.path} can be written again{lost}")
            self._lost = 0

    def _append(self, record: bytes) -> None:
        if self._descriptor is None:
            self._descriptor = _open(self.path)
        size = os.fstat(self._descriptor).st_size
        if os.write(self._descriptor, record) < len(record):
            os.ftruncate(self._descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _wait(self, error: OSError) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None  # opened anew: on a network's file system it may be stale
        while sum(map(len, self._waiting)) > KEPT_BYTES:
            self._waiting.popleft()
            self._lost += 1
        if not self._failing:
            self._failing = True  # first, for the line may go to this very file
            logger.error(
                f"cannot write {self.path}: {reason(error)}; the run goes on, and what is to be "
                "written waits for room"
            )


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file")
    return descriptor
