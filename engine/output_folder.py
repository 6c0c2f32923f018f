"""One training to an output folder."""

import fcntl
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from projects.SegFormer.engine.ranks import from_main
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason

logger = logging.getLogger("libai." + __name__)

LOCK = ".lock"

_held = {}  # folder -> descriptor, open for as long as the process lives


def claim(folder: str) -> None:
    """Make `folder` this run's alone, for as long as its main rank lives.

    Raises InputError, on every rank, when another process has it.
    """
    from_main(lambda: _lock(Path(folder).resolve()))


def _lock(folder: Path) -> None:
    if folder in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(
            f"cannot write to train.output_dir={folder}: {reason(error)}; name another folder"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip().split("\n")[0]
        os.close(descriptor)
        raise InputError(
            f"train.output_dir={folder} is in use by {holder or 'another process'}: wait for its "
            "end, or give this run a folder of its own with train.output_dir=..."
        ) from None
    except OSError as error:  # a file system without locks
        logger.warning(f"{folder} cannot be locked ({reason(error)}): start no second run in it")
    with suppress(OSError):  # a full disk: then the holder has no name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[folder] = descriptor
