"""Scaled dot-product attention."""

import numpy as np

from projects.SegFormer.modeling.arrays import operator
from projects.SegFormer.modeling.cpu_kernels.activations import exp
from projects.SegFormer.modeling.cpu_kernels.compiled import kernel, largest
from projects.SegFormer.modeling.cpu_kernels.threads import cut, in_parallel, pieces

F = np.float32
SCORES = 2**17  # of some queries: 512 KB, a core's second cache


@operator
def attend(query, key, value, *, heads, scale):
    """softmax(query key^T * scale) value, each head for itself (Vaswani et al. 2017).

    Some queries at a time, so that their scores stay in a core's cache and never exist as a whole.
    The way back computes them anew, from the sum that each softmax was divided by (Dao et al.
    2022).

    Shape: (N, L, C), (N, M, C), (N, M, C) -> (N, L, C).
    """
    n, length, channels = query.shape
    result = np.empty_like(query)
    softmaxes = np.empty((n, heads, length, 2), F)  # of each its largest score and its sum
    slots = [
        (image, head, slice(head * channels // heads, (head + 1) * channels // heads))
        for image in range(n)
        for head in range(heads)
    ]
    # Products of fewer than 128 rows are slow.
    parts = pieces(length, key.shape[1], max(SCORES, 128 * key.shape[1]))

    def compute(task):
        (image, head, own), rows = task
        scores = query[image, rows, own] @ key[image, :, own].T
        _softmax(scores, F(scale), softmaxes[image, head, rows])
        np.matmul(scores, value[image, :, own], out=result[image, rows, own])

    in_parallel(compute, [(slot, rows) for slot in slots for rows in parts])

    def backward(gradient):
        of_query = np.empty_like(query)
        groups = cut(len(parts), 8)  # each sums up by itself
        of_key, of_value = (np.zeros((len(groups), *key.shape), F) for _ in range(2))

        def compute(task):
            (image, head, own), group = task
            k, v = key[image, :, own], value[image, :, own]
            for rows in parts[groups[group]]:
                q, g = query[image, rows, own], gradient[image, rows, own]
                p, of_scores = q @ k.T, g @ v.T
                _softmax_gradient(p, F(scale), softmaxes[image, head, rows], of_scores)
                of_value[group, image, :, own] += p.T @ g
                np.matmul(of_scores, k, out=of_query[image, rows, own])
                of_key[group, image, :, own] += of_scores.T @ q

        in_parallel(compute, [(slot, group) for slot in slots for group in range(len(groups))])
        return of_query, of_key.sum(0), of_value.sum(0)

    return result, backward


@kernel
def _softmax(scores, scale, softmaxes):
    """scores = softmax(scores * scale) of each row, its largest score and its sum."""
    count, length = scores.shape
    for row in range(count):
        top, total = largest(scores[row]), F(0)
        for i in range(length):
            scores[row, i] = (scores[row, i] - top) * scale
        for i in range(length):
            e = exp(scores[row, i])
            scores[row, i] = e
            total += e
        for i in range(length):
            scores[row, i] /= total
        softmaxes[row, 0], softmaxes[row, 1] = top, total


@kernel
def _softmax_gradient(scores, scale, softmaxes, gradients):
    """Scores become probabilities p, gradients of p those of the scores.

    These are p * (g - the sum of p * g) * scale.
    """
    count, length = scores.shape
    for row in range(count):
        top, total, along = softmaxes[row, 0], softmaxes[row, 1], F(0)
        for i in range(length):
            scores[row, i] = (scores[row, i] - top) * scale
        for i in range(length):
            p = exp(scores[row, i]) / total
            scores[row, i] = p
            along += p * gradients[row, i]
        for i in range(length):
            gradients[row, i] = scores[row, i] * (gradients[row, i] - along) * scale
