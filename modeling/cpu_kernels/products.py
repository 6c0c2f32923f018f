"""Matrix products of rows, and what stands at their edges: the bias and its gradient."""

import numpy as np

from projects.SegFormer.modeling.arrays import operator
from projects.SegFormer.modeling.cpu_kernels.threads import (
    cut,
    in_parallel,
    pieces,
    thread_count,
    total,
)

MANY_ROWS = 4096  # a product that sums over so many rows is cut along them


def rows_of(x: np.ndarray) -> np.ndarray:
    """(..., C) -> (rows, C)."""
    return x.reshape(-1, x.shape[-1])


def product(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """x @ weight + bias: (rows, in), (in, out), (out,) -> (rows, out)."""
    result = np.empty((len(x), weight.shape[1]), np.float32)

    def compute(rows):
        np.matmul(x[rows], weight, out=result[rows])
        if bias is not None:
            result[rows] += bias

    in_parallel(compute, pieces(len(x), sum(weight.shape)))
    return result


def weight_gradient(x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """x^T @ gradient: (rows, in), (rows, out) -> (in, out)."""
    count, width = x.shape
    if count < MANY_ROWS:
        result = np.empty((width, gradient.shape[1]), np.float32)
        threads = thread_count() if count * result.size > 2**20 else 1
        in_parallel(
            lambda part: np.matmul(x[:, part].T, gradient, out=result[part]), cut(width, threads)
        )
        return result
    parts = cut(count, -(-count // MANY_ROWS))
    return total(lambda rows: x[rows].T @ gradient[rows], parts)


def column_sum(x: np.ndarray) -> np.ndarray:
    """(rows, C) -> (C,)."""
    return total(lambda rows: x[rows].sum(0), pieces(*x.shape))


@operator
def linear(x, weight, bias):
    """x @ weight + bias. Shape: (..., in), (in, out), (out,) or None -> (..., out)."""
    rows = rows_of(x)
    result = product(rows, weight, bias).reshape(*x.shape[:-1], -1)

    def backward(gradient):
        gradient = rows_of(gradient)
        return (
            lambda: product(gradient, weight.T).reshape(x.shape),
            lambda: weight_gradient(rows, gradient),
            lambda: column_sum(gradient),
        )

    return result, backward


@operator
def pointwise_conv2d(x, weight, *, channels_first=False):
    """A 1x1 convolution without bias.

    Shape: (N, H, W, C), (O, C, 1, 1) -> (N, H, W, O), or (N, O, H, W) with `channels_first`.
    """
    n, height, width, channels = x.shape
    matrix = weight.reshape(len(weight), channels)  # (O, C)
    tokens = x.reshape(n, height * width, channels)
    if channels_first:
        result = np.empty((n, len(weight), height * width), np.float32)
        parts = pieces(height * width, sum(matrix.shape))
        in_parallel(
            lambda at: np.matmul(matrix, tokens[at[0], at[1]].T, out=result[at[0], :, at[1]]),
            [(image, part) for image in range(n) for part in parts],
        )
        result = result.reshape(n, -1, height, width)
    else:
        result = product(rows_of(x), matrix.T).reshape(n, height, width, -1)

    def backward(gradient):
        if channels_first:
            gradient = np.ascontiguousarray(gradient.transpose(0, 2, 3, 1))
        gradient = rows_of(gradient)
        return (
            lambda: product(gradient, matrix).reshape(x.shape),
            lambda: weight_gradient(gradient, rows_of(x)).reshape(weight.shape),
        )

    return result, backward
