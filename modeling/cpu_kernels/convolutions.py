"""Convolutions of maps whose channels are last."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from projects.SegFormer.modeling.arrays import operator
from projects.SegFormer.modeling.cpu_kernels.compiled import kernel
from projects.SegFormer.modeling.cpu_kernels.products import column_sum, product, rows_of
from projects.SegFormer.modeling.cpu_kernels.threads import in_parallel, pieces, total

F = np.float32


@operator
def conv2d(x, weight, bias, *, stride, padding):
    """A convolution as a product: of each output pixel the patch that it sees, and the kernel.

    Shape: (N, H, W, C), (O, C, k, k), (O,) -> (N, H', W', O).
    """
    n, height, width, channels = x.shape
    outputs, _, size, _ = weight.shape
    matrix = np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(-1, outputs)  # (k*k*C, O)
    border = (padding, padding)
    padded = np.pad(x, ((0, 0), border, border, (0, 0))) if padding else x
    windows = sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    windows = windows.transpose(0, 1, 2, 4, 5, 3)  # (N, H', W', k, k, C), a view
    result = np.empty((*windows.shape[:3], outputs), F)
    out_height, out_width = result.shape[1:3]
    rows = pieces(out_height, out_width * (len(matrix) + outputs))
    parts = [(image, part) for image in range(n) for part in rows]

    def patches(part):
        """Of a part of the result: (pixels, k * k * C)."""
        return windows[part].reshape(-1, len(matrix))

    def compute(part):
        result[part] = (patches(part) @ matrix + bias).reshape(-1, out_width, outputs)

    in_parallel(compute, parts)

    def backward(gradient):
        def of_weight():
            found = total(lambda part: patches(part).T @ rows_of(gradient[part]), parts)
            return found.reshape(size, size, channels, outputs).transpose(3, 2, 0, 1)

        def of_x():
            of_patches = product(rows_of(gradient), matrix.T)
            of_patches = of_patches.reshape(n, out_height, out_width, -1)
            found = np.empty((n * height, width, channels), F)
            geometry = height, size, stride, padding
            in_parallel(
                lambda part: _scatter(of_patches, part.start, *geometry, found[part]),
                pieces(len(found), width * channels),
            )
            return found.reshape(x.shape)

        return of_x, of_weight, lambda: column_sum(rows_of(gradient))

    return result, backward


@kernel
def _scatter(of_patches, first, height, size, stride, padding, of_x):
    """Each input pixel's gradient: the sum over the patches that it is in."""
    _, out_height, out_width, _ = of_patches.shape
    count, width, channels = of_x.shape
    for index in range(count):
        image, y = divmod(first + index, height)
        for z in range(width):
            for c in range(channels):
                of_x[index, z, c] = F(0)
            for i in range((y + padding) % stride, size, stride):
                row = (y + padding - i) // stride
                if not 0 <= row < out_height:
                    continue
                for j in range((z + padding) % stride, size, stride):
                    column = (z + padding - j) // stride
                    if not 0 <= column < out_width:
                        continue
                    at = (i * size + j) * channels
                    for c in range(channels):
                        of_x[index, z, c] += of_patches[image, row, column, at + c]


@operator
def depthwise_conv2d(x, weight, bias):
    """Each channel with its own 3x3 kernel, padding 1.

    Shape: (N, H, W, C), (C, 1, 3, 3), (C,) -> (N, H, W, C).
    """
    n, height, width, channels = x.shape
    taps = np.ascontiguousarray(weight.reshape(channels, 9).T)
    parts = pieces(n * height, width * channels)

    def correlate(values, taps, bias):
        result = np.empty((n * height, width, channels), F)
        in_parallel(lambda part: _correlate(values, taps, bias, part.start, result[part]), parts)
        return result.reshape(x.shape)

    def backward(gradient):
        def of_taps(part):
            sums = np.zeros((9, channels), F)
            _tap_gradients(x, gradient.reshape(n * height, width, channels)[part], part.start, sums)
            return sums

        return (
            lambda: correlate(gradient, np.ascontiguousarray(taps[::-1]), np.zeros_like(bias)),
            lambda: total(of_taps, parts).T.reshape(weight.shape),
            lambda: column_sum(rows_of(gradient)),
        )

    return correlate(x, taps, bias), backward


@kernel
def _correlate(x, taps, bias, first, result):
    """result[y, z] = bias + the sum over i, j of taps[3 * i + j] * x[y + i - 1, z + j - 1]."""
    _, height, width, channels = x.shape
    for index in range(len(result)):
        image, y = divmod(first + index, height)
        result[index] = bias
        for i in range(max(1 - y, 0), min(height + 1 - y, 3)):
            row, a, b, c = x[image, y + i - 1], taps[3 * i], taps[3 * i + 1], taps[3 * i + 2]
            for z in range(width):
                out = result[index, z]
                if 0 < z < width - 1:
                    left, here, right = row[z - 1], row[z], row[z + 1]
                    for k in range(channels):
                        out[k] += a[k] * left[k] + b[k] * here[k] + c[k] * right[k]
                else:
                    for j in range(max(1 - z, 0), min(width + 1 - z, 3)):
                        for k in range(channels):
                            out[k] += taps[3 * i + j, k] * row[z + j - 1, k]


@kernel
def _tap_gradients(x, gradient, first, sums):
    """sums[3 * i + j] += the sum over y, z of gradient[y, z] * x[y + i - 1, z + j - 1].

    Four pixels at a time, so that a sum is read and written once for four products.
    """
    _, height, width, channels = x.shape
    steps = -(-width // 4) * 4
    row, g = np.zeros((steps + 2, channels), F), np.zeros((steps, channels), F)
    for index in range(len(gradient)):
        image, y = divmod(first + index, height)
        g[:width] = gradient[index]
        for i in range(max(1 - y, 0), min(height + 1 - y, 3)):
            row[1 : width + 1] = x[image, y + i - 1]
            for z in range(0, steps, 4):
                g0, g1, g2, g3 = g[z], g[z + 1], g[z + 2], g[z + 3]
                for j in range(3):
                    out = sums[3 * i + j]
                    x0, x1, x2, x3 = row[z + j], row[z + j + 1], row[z + j + 2], row[z + j + 3]
                    for k in range(channels):
                        out[k] += g0[k] * x0[k] + g1[k] * x1[k] + g2[k] * x2[k] + g3[k] * x3[k]
