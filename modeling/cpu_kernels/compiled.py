"""Numba's compiler, as all kernels use it."""

import logging
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

import numba
import numpy as np

logger = logging.getLogger("libai." + __name__)

# Sums in any order and fused products, so that loops use vectors. What is not a number, or
# infinite, stays so: "nnan" and "ninf" are left out.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def kernel(function):
    """A function of NumPy arrays as machine code, without the GIL, kept on disk where it can be."""
    options = dict(nogil=True, fastmath=FASTMATH, error_model="numpy")
    try:
        compiled = numba.njit(function, cache=True, **options)
    except RuntimeError:  # no folder can be written
        _say(None)
        return numba.njit(function, **options)
    _mend(compiled._cache)
    _say(compiled._cache.cache_path)
    return compiled


def _mend(kept) -> None:
    """Numba 0.60 looks for changes in a function's own file alone, though parts of others are
    compiled into it; and a full disk, or a file that a power cut has emptied, ends the program.

    It can go when Numba looks at all of them, and compiles where it cannot read or write.
    """
    kept._cache_file._source_stamp = _sources()
    load, save = kept.load_overload, kept.save_overload

    def load_overload(*signature):
        try:
            return load(*signature)
        except Exception:  # whatever a damaged file leads to
            with suppress(OSError):
                kept.flush()
            return None

    def save_overload(*result):
        with suppress(OSError):
            save(*result)

    kept.load_overload, kept.save_overload = load_overload, save_overload


@cache
def _sources() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def _say(folder: str | None) -> None:
    """What a first use waits for."""
    if folder is None:
        logger.info(
            "the CPU kernels are compiled in each process, up to half a minute: no folder can be "
            "written to keep them (NUMBA_CACHE_DIR names one)"
        )
    elif not any(Path(folder).glob("*.nbi")):
        logger.info(f"the CPU kernels are compiled, half a minute once, and kept in {folder}")


def inlined(function):
    """A part of kernels."""
    return numba.njit(function, inline="always", fastmath=FASTMATH, error_model="numpy")


@inlined
def largest(values):
    """The largest value of a vector, where that is a number."""
    result = values[0]
    for i in range(1, len(values)):
        result = values[i] if values[i] > result else result
    return result


def arg_max(values: np.ndarray) -> np.ndarray:
    """Where the largest value of the last axis is, as NumPy's argmax: (..., C) -> int64 (...)."""
    result = np.empty(values.shape[:-1], np.int64)
    _arg_max(values.reshape(-1, values.shape[-1]), result.reshape(-1))
    return result


@kernel
def _arg_max(values, result):
    for row in range(len(values)):
        best, found = values[row, 0], 0
        for i in range(1, values.shape[1]):
            value = values[row, i]
            if value > best or (value != value and best == best):
                best, found = value, i
        result[row] = found
