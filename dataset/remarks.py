"""Faults and remarks of data: to whoever listens, all of them; else the first fault is an error.

A training ends at the first thing that is wrong with its data. Who looks through a data set wants
to know all of them, and also what was read but is not as it should be.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from projects.SegFormer.modeling.errors import InputError

logger = logging.getLogger("libai." + __name__)

ALPHA = "an alpha band that is not opaque is left out"
TURNED = "turned as their EXIF orientation says, as every viewer shows them"
AS_STORED = "have an EXIF orientation and are taken as stored, since their labels have that size"
UNFINISHED = "read, but the end marker of the file is missing; all pixels are there"
LONG_TEXT = "read, but more than a megabyte of the file is text, which is passed over"
ONE_BIT = "labels of 1 bit: what viewers show as black and white are the class indices 0 and 1"


class Heard(NamedTuple):
    """What was told of data: faults, each a line, and (remark, file)."""

    faults: list[str]
    remarks: list[tuple[str, str]]


_heard: ContextVar[Heard | None] = ContextVar("heard", default=None)
_warned = set()


@contextmanager
def listening() -> Iterator[Heard]:
    """Within, in this thread, faults of a data set are collected and it is made of what is left."""
    heard = Heard([], [])
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)


def fault(message: str) -> None:
    """Raises InputError, unless somebody listens."""
    heard = _heard.get()
    if heard is None:
        raise InputError(message)
    heard.faults.append(str(InputError(message)))


def remark(kind: str, path: str | Path) -> None:
    """One of the above about a file that is read.

    Of ALPHA the first is logged where nobody listens: no band is left out without a word.
    """
    heard = _heard.get()
    if heard is not None:
        heard.remarks.append((kind, str(path)))
    elif kind == ALPHA and kind not in _warned:
        _warned.add(kind)
        logger.warning(f"{path}: {kind}; so is that of other images (check_dataset.py counts them)")


def named(names: list[str], most: int = 3) -> str:
    """The first of some names: all of them, or as many as where somebody listens are told."""
    most = most if _heard.get() is None else 20
    return f"{', '.join(names[:most])}{', ...' if len(names) > most else ''}"
