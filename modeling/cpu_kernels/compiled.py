"""Numba's compiler, as all kernels use it."""

import numba
import numpy as np

# Sums in any order and fused products, so that loops use vectors. What is not a number, or
# infinite, stays so: "nnan" and "ninf" are left out.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def kernel(function):
    """A function of NumPy arrays as machine code, without the GIL, kept on disk where it can be."""
    options = dict(nogil=True, fastmath=FASTMATH, error_model="numpy")
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # no folder can be written
        return numba.njit(function, **options)


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
