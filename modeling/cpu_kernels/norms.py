"""Layer normalisation and batch normalisation."""

import numpy as np

from projects.SegFormer.modeling.arrays import operator
from projects.SegFormer.modeling.cpu_kernels.compiled import kernel
from projects.SegFormer.modeling.cpu_kernels.products import rows_of
from projects.SegFormer.modeling.cpu_kernels.threads import in_parallel, joined, pieces, total

F = np.float32


@operator
def layer_norm(x, weight, bias, *, eps):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016).

    Shape: (..., C), (C,), (C,) -> (..., C).
    """
    rows = rows_of(x)
    result = np.empty_like(rows)
    statistics = np.empty((len(rows), 2), F)  # of each row its mean and 1 / standard deviation
    parts = pieces(*rows.shape)
    in_parallel(
        lambda part: _layer_norm(rows[part], weight, bias, F(eps), result[part], statistics[part]),
        parts,
    )

    def backward(gradient):
        gradient = rows_of(gradient)
        of_rows = np.empty_like(rows)
        of_parameters = np.zeros((len(parts), 2, x.shape[-1]), F)

        def compute(index):
            part = parts[index]
            _layer_norm_gradient(
                *(rows[part], weight, gradient[part], statistics[part]),
                *(of_rows[part], of_parameters[index]),
            )

        in_parallel(compute, range(len(parts)))
        return of_rows.reshape(x.shape), *of_parameters.sum(0)

    return result.reshape(x.shape), backward


@kernel
def _layer_norm(x, weight, bias, eps, result, statistics):
    count, channels = x.shape
    for row in range(count):
        total = F(0)
        for c in range(channels):
            total += x[row, c]
        mean = total / F(channels)
        total = F(0)
        for c in range(channels):
            total += (x[row, c] - mean) ** 2
        inverse = F(1) / np.sqrt(total / F(channels) + eps)
        for c in range(channels):
            result[row, c] = (x[row, c] - mean) * inverse * weight[c] + bias[c]
        statistics[row, 0], statistics[row, 1] = mean, inverse


@kernel
def _layer_norm_gradient(x, weight, gradient, statistics, of_x, of_parameters):
    """(h - mean(h) - n * mean(h * n)) / std with n = (x - mean) / std, h = gradient * weight."""
    count, channels = x.shape
    for row in range(count):
        mean, inverse = statistics[row, 0], statistics[row, 1]
        total, along = F(0), F(0)
        for c in range(channels):
            n, g = (x[row, c] - mean) * inverse, gradient[row, c]
            of_parameters[0, c] += g * n
            of_parameters[1, c] += g
            total += g * weight[c]
            along += g * weight[c] * n
        total /= F(channels)
        along /= F(channels)
        for c in range(channels):
            n = (x[row, c] - mean) * inverse
            of_x[row, c] = (gradient[row, c] * weight[c] - total - n * along) * inverse


@operator
def batch_norm(x, weight, bias, *, eps, sum_over_batch, keep):
    """(x - mean) / sqrt(variance + eps) * weight + bias over all axes but the last.

    Args:
        sum_over_batch: adds up the (K, C) of all ranks that have a part of the batch.
        keep: called with mean, biased variance and the number of rows of the global batch.
    Shape: (..., C), (C,), (C,) -> (..., C). Source: Ioffe and Szegedy 2015.
    """
    rows = rows_of(x)
    parts = pieces(*rows.shape)

    def sums(values, centre):
        """Of each channel the sum of `values` and of values * (x - centre): (2, C)."""

        def of_part(p):
            found = np.zeros((2, x.shape[-1]))
            _add_sums(values(p), rows[p], centre, found)
            return found

        return total(of_part, parts).astype(F)

    count = sum_over_batch(np.full((1, 1), len(rows), F))[0, 0]
    mean = sum_over_batch(sums(lambda p: rows[p], np.zeros_like(bias)))[0] / count
    variance = sum_over_batch(sums(lambda p: rows[p] - mean, mean))[1] / count
    keep(mean, variance, int(count))
    inverse = 1 / np.sqrt(variance + F(eps))
    result = joined(lambda p: (rows[p] - mean) * (inverse * weight) + bias, parts, rows)

    def backward(gradient):
        gradient = rows_of(gradient)
        of_bias, of_weight = sums(lambda p: gradient[p], mean)
        of_weight *= inverse
        g, h = sum_over_batch(np.stack([of_bias, of_weight])) / count

        def of_x(p):
            normalised = (rows[p] - mean) * inverse
            return (gradient[p] - g - normalised * h) * (inverse * weight)

        return lambda: joined(of_x, parts, rows).reshape(x.shape), of_weight, of_bias

    return result.reshape(x.shape), backward


@kernel
def _add_sums(values, x, centre, sums):
    """In float64: means are taken from them, and their errors would add up over all rows."""
    for row in range(len(x)):
        for c in range(len(centre)):
            sums[0, c] += values[row, c]
            sums[1, c] += values[row, c] * (x[row, c] - centre[c])
