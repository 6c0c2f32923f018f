"""Text files beside the images: lists of the names in a split, tables of their classes."""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Container
from os.path import basename, splitext
from pathlib import Path

from projects.SegFormer.dataset.image_files import IMAGE_SUFFIXES
from projects.SegFormer.modeling.bounds import LIST_BYTES
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes, reason

NAME_LENGTH = 255  # characters of a file name; what is longer is no list of names
_FILE = re.compile(rf"(.*?({'|'.join(map(re.escape, IMAGE_SUFFIXES))}))([\s,;]|$)", re.IGNORECASE)


def read_names(path: Path, known: Container[str] = ()) -> list[str]:
    """The names in a list file of a split, without suffix, in Unicode's form NFC.

    A line has a name, a file or a path, and perhaps those of its label after it. Where a name has
    spaces or dots, `known` decides: the names of the files that are there.

    Raises:
        InputError: the file is missing, is no text or has no names.
    """
    lines = read_lines(path, "one image name a line")
    names = [_name(unicodedata.normalize("NFC", line.strip()), known) for line in lines]
    names = list(filter(None, names))
    if not names:
        raise InputError(f"{path}: the list is empty; expected one image name a line")
    if max(map(len, names)) > NAME_LENGTH:
        raise InputError(f"{path}: no list of file names; expected one image name a line")
    return names


def _name(line: str, known: Container[str]) -> str:
    file, words = _FILE.match(line), line.split()
    readings = [line, *([file[1]] if file else []), *words[:1]]
    readings = [basename(reading) for reading in readings]
    for reading in readings:
        for name in (reading, _without_suffix(reading)):
            if name in known:
                return name
    return _without_suffix(readings[1 if file else -1])


def _without_suffix(name: str) -> str:
    """But frame.0001 is a name."""
    stem, suffix = splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def read_rows(path: Path, expected: str) -> list[list[str]]:
    """The rows of a CSV file.

    Raises:
        InputError: the file is missing or is no such table; the message says what is `expected`.
    """
    try:
        return list(csv.reader(read_lines(path, expected)))
    except csv.Error as error:
        raise InputError(f"{path}: no CSV table ({reason(error)}); expected {expected}") from error


def read_lines(path: Path, expected: str) -> list[str]:
    """The lines of a text file, whichever system's line ends and byte order mark it has.

    Raises:
        InputError: the file is missing or is no UTF-8, nor UTF-16 that says so; the message says
            what is `expected`.
    """
    data = read_bytes(path, LIST_BYTES)
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf_16 else "utf-8-sig")
        return [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file; expected {expected}") from error
