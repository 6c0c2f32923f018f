"""MATLAB files of version 5 (what `save` writes, up to -v7): one matrix of numbers out of them.

SciPy reads more kinds, but damaged files make it end the process, and packed ones unpack without
end.
"""

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from projects.SegFormer.modeling.bounds import TABLE_BYTES
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes

# Kinds of elements, and those that are numbers.
MATRIX, PACKED = 14, 15
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
NUMBER_CLASSES = range(6, 16)  # double to uint64; below are cells, structures, text and the like
COMPLEX, LOGICAL = 0x800, 0x200


def read_matrix(path: str | Path, name: str) -> np.ndarray | None:
    """The variable `name`, (rows, columns, ...); None if no matrix of numbers is called so.

    Raises:
        InputError: the file is missing, damaged, or unpacks to more than TABLE_BYTES.
    """
    data = read_bytes(path, TABLE_BYTES)
    try:
        order = {b"\0\1IM": "<", b"\1\0MI": ">"}[data[124:128]]
        return _find(data, order, name.encode())
    except (KeyError, ValueError, zlib.error, struct.error) as error:
        raise InputError(
            f"{path}: damaged, cut short or not a MATLAB file of version 5 ({len(data)} bytes); "
            "replace it"
        ) from error


def _find(data: bytes, order: str, name: bytes) -> np.ndarray | None:
    left = TABLE_BYTES
    for kind, body in _elements(data[128:], order):
        if kind == PACKED:
            body = zlib.decompressobj().decompress(body, left + 1)
            left -= len(body)
            if left < 0:
                raise ValueError(f"more than {TABLE_BYTES} bytes")
            kind, body = next(_elements(body, order), (None, b""))
        if kind != MATRIX:
            raise ValueError(f"an element of kind {kind}")
        # Flags and class, size of each axis, name; then, of numbers, the values by columns.
        parts = _elements(body, order)
        (_, flags), (_, axes), (_, called) = islice(parts, 3)
        if called != name:
            continue
        (flags,) = struct.unpack_from(f"{order}I", flags)
        if flags & 0xFF not in NUMBER_CLASSES or flags & (COMPLEX | LOGICAL):
            return None
        kind, values = next(parts, (None, b""))
        shape = np.frombuffer(axes, f"{order}i4")
        if min(shape, default=-1) < 0:
            raise ValueError(f"a size of {shape}")
        return np.frombuffer(values, order + NUMBERS[kind]).reshape(shape, order="F")
    return None


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each element: a tag of 8 bytes, its content, zeros up to 8 bytes."""
    position = 0
    while position < len(data):
        kind, length = struct.unpack_from(f"{order}II", data, position)
        start = position + 8
        if kind >> 16:  # up to 4 bytes of content are in the tag
            kind, length, start = kind & 0xFFFF, kind >> 16, position + 4
        content = data[start : start + length]
        if len(content) < length:
            raise ValueError("cut short")
        yield kind, content
        position = start + length
        if kind != PACKED:
            position += -position % 8
