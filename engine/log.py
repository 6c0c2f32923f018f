"""LiBai's log, to the console and to log.txt. A full disk or a closed terminal ends no training."""

import logging
import os
import re
import sys

from libai.utils.logger import setup_logger as libai_setup_logger

from projects.SegFormer.engine.appended_file import AppendedFile
from projects.SegFormer.modeling.files import reason

PLAIN = logging.Formatter(
    "[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S"
)
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def set_up_log(output_dir: str | None = None, distributed_rank: int = 0) -> logging.Logger:
    """LiBai's logger: rank 0 writes to the console and log.txt, rank n to log.txt.rankn."""
    logger = libai_setup_logger(None, distributed_rank)
    for handler in list(logger.handlers):
        if type(handler) is logging.StreamHandler:
            logger.removeHandler(handler)
            console = ConsoleHandler(handler.stream)
            # LiBai's has colours, which only a terminal shows as such.
            console.setFormatter(handler.formatter if handler.stream.isatty() else PLAIN)
            logger.addHandler(console)
        elif isinstance(handler, LogFile):  # of an earlier run in this process
            logger.removeHandler(handler)
    if output_dir:
        name = "log.txt" + (f".rank{distributed_rank}" if distributed_rank else "")
        logger.addHandler(LogFile(os.path.join(output_dir, name)))
    return logger


class ConsoleHandler(logging.StreamHandler):
    """A stream that may fail: one line about it goes to the other handlers."""

    _failing = False

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        super().emit(record)
        self._failing = self._failed

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        was_failing, self._failing = self._failing, True
        if not was_failing:
            logging.getLogger("libai." + __name__).error(
                f"cannot write to standard output: {reason(error)}; the run goes on"
            )
        self._failed = True


class LogFile(logging.Handler):
    """A line a record, in LiBai's form."""

    def __init__(self, path: str):
        super().__init__()
        self._file = AppendedFile(path)
        self.setFormatter(PLAIN)

    def emit(self, record: logging.LogRecord) -> None:
        line = COLOURS.sub("", self.format(record)) + "\n"
        self._file.add(line.encode("utf-8", "backslashreplace"))
