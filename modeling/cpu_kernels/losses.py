"""Cross entropy and Dice loss at label resolution, from logits at their own.

Logits of label size, and what is made of them, would be the largest arrays of a training. Here they
never exist: each pixel's logits are interpolated, its probabilities found, and its gradient put
back to the pixels it came from, all while they are in a core's first cache.
"""

from typing import NamedTuple

import numpy as np

from projects.SegFormer.modeling.arrays import operator
from projects.SegFormer.modeling.cpu_kernels.activations import exp
from projects.SegFormer.modeling.cpu_kernels.compiled import kernel, largest
from projects.SegFormer.modeling.cpu_kernels.interpolation import axis, interpolated_row
from projects.SegFormer.modeling.cpu_kernels.threads import in_parallel, pieces

F = np.float32


class Terms(NamedTuple):
    """What a loss is of each pixel, with its probabilities p and its class y.

    The cross entropy is counted * (weights[y] * (1 - smoothing) * -log p[y] + smoothing / C * the
    sum over c of weights[c] * -log p[c]), and its gradient is multiplied with `factor`. To that
    comes the gradient of the sum over c of p[c] * of_p[c], less p[y] * of_overlap[y].
    """

    weights: np.ndarray  # (C,)
    smoothing: np.float32
    factor: np.float32
    of_p: np.ndarray  # (C,)
    of_overlap: np.ndarray  # (C,)


class Found(NamedTuple):
    """What a pass over all pixels finds."""

    loss: float  # sum of the cross entropies
    # Unless it learns:
    nll: np.ndarray  # (N, H, W), -log p[y], 0 where the label is ignored
    predicted: np.ndarray  # (C,), sum of p over the pixels that are not ignored
    overlap: np.ndarray  # (C,), sum of p[y] over those of each class
    # If it learns:
    gradient: np.ndarray  # of the logits


@operator
def cross_entropy(
    logits, *, labels, counted, ignore_index, weights, smoothing, total, sum_over_batch, learns
):
    """The sum of the counted pixels' cross entropies over the global batch, divided by `total`.

    Its gradient, of the size of the logits, is found with it.

    Args:
        sum_over_batch: adds up the (K, C) of all ranks that have a part of the batch.
    Shape: (N, h, w, C), labels and counted (N, H, W) -> scalar.
    """
    zeros = np.zeros_like(weights)
    terms = Terms(weights, F(smoothing), F(1 / total), zeros, zeros)
    found = over_pixels(logits, labels, counted, ignore_index, terms, learns)
    loss = sum_over_batch(np.full((1, 1), found.loss / total, F))
    return loss.reshape(()), lambda gradient: found.gradient * gradient


@operator
def dice_loss(logits, *, labels, ignore_index, factor, sum_over_batch):
    """`factor` times (1 - the mean soft Dice coefficient of the classes that occur).

    That of a class is (2 * overlap + 1) / (predicted + labelled + 1), see modeling/losses.py.

    Shape: (N, h, w, C), labels (N, H, W) -> scalar.
    """
    valid = labels != ignore_index
    found = over_pixels(logits, labels, valid, ignore_index)
    labelled = np.bincount(labels[valid], minlength=logits.shape[-1])
    sums = sum_over_batch(np.stack([found.predicted, found.overlap, labelled]).astype(F))
    predicted, overlap, labelled = sums.astype(np.float64)
    occurs = labelled > 0
    size = predicted + labelled + 1
    coefficients = occurs / max(occurs.sum(), 1) * factor / size
    dice = (coefficients * (2 * overlap + 1)).sum()
    loss = np.array(factor * occurs.any() - dice, F)

    def backward(gradient):
        terms = Terms(
            np.ones(len(size), F),
            F(0),
            F(0),
            (gradient * coefficients * (2 * overlap + 1) / size).astype(F),
            (gradient * coefficients * 2).astype(F),
        )
        return over_pixels(logits, labels, valid, ignore_index, terms, learns=True).gradient

    return loss, backward


def over_pixels(
    logits, labels, counted, ignore_index: int, terms: Terms | None = None, learns: bool = False
) -> Found:
    """Without `terms` those of plain cross entropy; what is found depends on `learns`.

    Shape: (N, h, w, C), (N, H, W), (N, H, W).
    """
    n, height, width, classes = logits.shape
    if terms is None:
        terms = Terms(np.ones(classes, F), F(0), F(1), np.zeros(classes, F), np.zeros(classes, F))
    rows, columns = axis(height, labels.shape[1]), axis(width, labels.shape[2])
    # A part of the work is what lies between the small map's rows from `start` to `stop`. The
    # gradient of row `stop` has a second half in the next part, and is added to that.
    spans = pieces(max(height - 1, 1), labels[0].size * classes // height)
    parts = [(image, span) for image in range(n) for span in spans]
    gradient = np.zeros(logits.shape if learns else (n, 0, 0, 0), F)
    borders = np.zeros((len(parts), *logits.shape[2:]) if learns else (len(parts), 0, 0), F)
    losses = np.zeros(len(parts))
    nll = np.zeros(labels.shape, F)
    sums = np.zeros((len(parts), 2, classes))

    def compute(index):
        image, span = parts[index]
        losses[index] = _over_pixels(
            *(logits[image], labels[image], counted[image], ignore_index, terms),
            *(rows, columns, span.start, span.stop),
            *(nll[image], sums[index], gradient[image], borders[index], learns),
        )

    in_parallel(compute, range(len(parts)))
    if learns:
        for (image, span), border in zip(parts, borders):
            gradient[image, min(span.stop, height - 1)] += border
    return Found(losses.sum(), nll, *sums.sum(0), gradient)


@kernel
def _over_pixels(
    logits, labels, counted, ignore_index, terms, rows, columns, start, stop, nll, sums, gradient,
    border, learns,
):  # fmt: skip
    """The sum of the losses of an image's pixels between rows `start` and `stop` of its logits."""
    height, width, classes = logits.shape
    row, of_row = np.empty((width, classes), F), np.empty((width, classes), F)
    p = np.empty(classes, F)
    smoothing, all_weights = terms.smoothing / F(classes), terms.weights.sum()
    loss = 0.0
    for y in range(np.searchsorted(rows.first, start), np.searchsorted(rows.first, stop)):
        interpolated_row(logits, rows, y, row)
        of_row[:] = F(0)
        for z in range(len(columns.first)):
            label = labels[y, z]
            if label == ignore_index:
                continue
            j, weight = columns.first[z], columns.weight[z]
            left, right = row[j], row[min(j + 1, width - 1)]
            for c in range(classes):
                p[c] = left[c] + weight * (right[c] - left[c])
            top, own, spread, total = largest(p), p[label], F(0), F(0)
            if smoothing > 0:
                for c in range(classes):
                    spread += terms.weights[c] * (top - p[c])
            for c in range(classes):
                p[c] -= top
            for c in range(classes):
                e = exp(p[c])
                p[c] = e
                total += e
            logarithm, inverse = np.log(total), F(1) / total
            for c in range(classes):
                p[c] *= inverse
            factor = terms.factor if counted[y, z] else F(0)
            share = terms.weights[label] * (F(1) - terms.smoothing)
            if counted[y, z]:
                loss += share * (logarithm + top - own)
                loss += smoothing * (all_weights * logarithm + spread)
            if not learns:
                nll[y, z] = logarithm + top - own
                sums[1, label] += p[label]
                for c in range(classes):
                    sums[0, c] += p[c]
                continue
            along = -p[label] * terms.of_overlap[label]
            for c in range(classes):
                along += p[c] * terms.of_p[c]
            common = factor * (share + smoothing * all_weights) - along
            of_label = factor * share + p[label] * terms.of_overlap[label]
            of_left, of_right = of_row[j], of_row[min(j + 1, width - 1)]
            of_left[label] -= (F(1) - weight) * of_label
            of_right[label] -= weight * of_label
            for c in range(classes):
                g = p[c] * (common + terms.of_p[c]) - factor * smoothing * terms.weights[c]
                of_left[c] += (F(1) - weight) * g
                of_right[c] += weight * g
        if learns:
            i, weight = rows.first[y], rows.weight[y]
            below = gradient[i + 1] if i + 1 < stop else border
            for j in range(width):
                for c in range(classes):
                    gradient[i, j, c] += (F(1) - weight) * of_row[j, c]
                    below[j, c] += weight * of_row[j, c]
    return loss
