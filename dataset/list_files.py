"""Text files beside the images: lists of the names in a split, tables of their classes."""

import csv
from os.path import basename, splitext
from pathlib import Path

from projects.SegFormer.modeling.bounds import LIST_BYTES
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes, reason

NAME_LENGTH = 255  # characters of a file name; what is longer is no list of names


def read_names(path: Path) -> list[str]:
    """The names in a list file of a split: of each line, the first file name without its suffix.

    Raises:
        InputError: the file is missing, is no text or has no names.
    """
    lines = (line.split() for line in read_lines(path, "one image name a line"))
    names = [splitext(basename(words[0]))[0] for words in lines if words]
    if not names:
        raise InputError(f"{path}: the list is empty; expected one image name a line")
    if max(map(len, names)) > NAME_LENGTH:
        raise InputError(f"{path}: no list of file names; expected one image name a line")
    return names


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
    """The lines of a text file.

    Raises:
        InputError: the file is missing or is no UTF-8; the message says what is `expected`.
    """
    try:
        return read_bytes(path, LIST_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file; expected {expected}") from error
