"""Bilinear interpolation with half-pixel centres (align_corners False), and its gradient."""

from typing import NamedTuple

import numpy as np

from projects.SegFormer.modeling.arrays import operator
from projects.SegFormer.modeling.cpu_kernels.compiled import kernel
from projects.SegFormer.modeling.cpu_kernels.threads import in_parallel, pieces

F = np.float32


class Axis(NamedTuple):
    """How an axis is read at another length: (1 - weight) * x[first] + weight * x[first + 1].

    `first` (int64) and `weight` (float32) have one entry for each index of the result.
    """

    first: np.ndarray
    weight: np.ndarray


def axis(length: int, new_length: int) -> Axis:
    centres = ((np.arange(new_length) + 0.5) * length / new_length - 0.5).clip(0, length - 1)
    first = centres.astype(np.int64).clip(0, max(length - 2, 0))
    return Axis(first, (centres - first).astype(F))


@operator
def upsampled_sum(*maps):
    """All maps at the size of the first, and added: (N, H_i, W_i, C) each -> (N, H_0, W_0, C)."""
    first, *others = maps
    n, height, width, channels = first.shape
    axes = [(axis(x.shape[1], height), axis(x.shape[2], width)) for x in others]
    result = np.empty((n * height, width, channels), F)

    def compute(part):
        result[part] = first.reshape(result.shape)[part]
        for x, (rows, columns) in zip(others, axes):
            _add_upsampled(x, rows, columns, part.start, height, result[part])

    in_parallel(compute, pieces(len(result), width * channels))

    def backward(gradient):
        return gradient, *(downsampled(gradient, x.shape[1:3]) for x in others)

    return result.reshape(first.shape), backward


@operator
def upsample(x, *, size):
    """Shape: (N, H, W, C) -> (N, *size, C)."""
    n, height, width, channels = x.shape
    rows, columns = axis(height, size[0]), axis(width, size[1])
    result = np.zeros((n * size[0], size[1], channels), F)
    in_parallel(
        lambda part: _add_upsampled(x, rows, columns, part.start, size[0], result[part]),
        pieces(len(result), size[1] * channels),
    )
    return (
        result.reshape(n, *size, channels),
        lambda gradient: downsampled(gradient, (height, width)),
    )


def downsampled(gradient: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The gradient of a map of this size, from that of the upsampled one."""
    n, height, width, channels = gradient.shape
    rows, columns = axis(size[0], height), axis(size[1], width)
    result = np.zeros((n * size[0], size[1], channels), F)
    in_parallel(
        lambda part: _add_downsampled(gradient, rows, columns, part.start, size[0], result[part]),
        pieces(len(result), height * width * channels // size[0]),
    )
    return result.reshape(n, *size, channels)


@kernel
def interpolated_row(image, rows, y, result):
    """Row y of the result, as wide as the image is: (H, W, C) -> (W, C)."""
    above = image[rows.first[y]]
    below = image[min(rows.first[y] + 1, len(image) - 1)]
    weight = rows.weight[y]
    for j in range(len(result)):
        for c in range(result.shape[1]):
            result[j, c] = above[j, c] + weight * (below[j, c] - above[j, c])


@kernel
def _add_upsampled(x, rows, columns, start, height, result):
    """Add rows of the upsampled map, from `start` on, counted over all images."""
    _, _, width, channels = x.shape
    row = np.empty((width, channels), F)
    for index in range(len(result)):
        image, y = divmod(start + index, height)
        interpolated_row(x[image], rows, y, row)
        for z in range(result.shape[1]):
            left, right = row[columns.first[z]], row[min(columns.first[z] + 1, width - 1)]
            weight, out = columns.weight[z], result[index, z]
            for c in range(channels):
                out[c] += left[c] + weight * (right[c] - left[c])


@kernel
def _add_downsampled(gradient, rows, columns, start, height, result):
    """Add rows of the small map's gradient, from `start` on, counted over all images."""
    _, _, width, channels = gradient.shape
    row = np.empty((width, channels), F)
    for index in range(len(result)):
        image, i = divmod(start + index, height)
        row[:] = F(0)
        for y in range(np.searchsorted(rows.first, i - 1), np.searchsorted(rows.first, i + 1)):
            weight = rows.weight[y] if rows.first[y] == i - 1 else F(1) - rows.weight[y]
            for z in range(width):
                for c in range(channels):
                    row[z, c] += weight * gradient[image, y, z, c]
        for z in range(width):
            j, weight = columns.first[z], columns.weight[z]
            for c in range(channels):
                result[index, j, c] += (F(1) - weight) * row[z, c]
            if weight:
                for c in range(channels):
                    result[index, j + 1, c] += weight * row[z, c]
