"""Losses of segmentation, chosen by `cfg.loss`: cross entropy in its variants, and Dice."""

import inspect
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real

import numpy as np
import oneflow as flow
from libai.utils import distributed as dist

from projects.SegFormer.modeling import cpu_kernels as kernels
from projects.SegFormer.modeling.arrays import (
    SPLIT,
    WHOLE,
    Array,
    broadcast_sbp,
    exchange,
    on_cpu,
    sum_over_batch,
)
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.layers import constant, upsample_bilinear


class SegmentationLoss:
    """Cross entropy at label resolution over the global batch, and a Dice loss beside it.

    Pixels whose label is `ignore_index` count nowhere; without any other both losses are 0. A split
    of the batch over ranks changes nothing: what is averaged or sorted is the global batch.

    Args:
        num_classes: number of classes C.
        ignore_index: the label that counts nowhere.
        class_weights: a weight of each class in the cross entropy; None for equal ones.
        label_smoothing: share of the target that is spread over all classes, as in PyTorch.
        ohem_threshold: only hard pixels count in the cross entropy (Shrivastava et al. 2016): those
            whose own class has a probability below this. None for all pixels.
        ohem_min_kept: so many pixels an image count at least, the hardest of the batch.
        dice_weight: factor of the Dice loss; with 0 it is not computed.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int,
        *,
        class_weights: Iterable[float] | None = None,
        label_smoothing: float = 0.0,
        ohem_threshold: float | None = None,
        ohem_min_kept: int = 100_000,
        dice_weight: float = 0.0,
    ):
        _check("label_smoothing", label_smoothing, lambda value: 0 <= value <= 1, "from 0 to 1")
        if ohem_threshold is not None:
            _check("ohem_threshold", ohem_threshold, lambda value: 0 < value <= 1, "in (0, 1]")
        _check("ohem_min_kept", ohem_min_kept, lambda value: value >= 0, "from 0", kind=Integral)
        _check("dice_weight", dice_weight, lambda value: 0 <= value < math.inf, "from 0")
        self.ignore_index = ignore_index
        self.class_weights = None
        if class_weights is None and label_smoothing > 0:  # its sum over classes wants weights
            class_weights = [1.0] * num_classes
        if class_weights is not None:
            weights = _checked_weights(class_weights, num_classes)
            self.class_weights = constant(weights, dist.get_layer_placement(-1))
        self.label_smoothing = label_smoothing
        self.ohem_threshold, self.ohem_min_kept = ohem_threshold, ohem_min_kept
        self.dice_weight = dice_weight

    @classmethod
    def from_config(cls, settings: Mapping | None, num_classes: int, ignore_index: int):
        """The loss of `cfg.loss`. Raises InputError for a name or a value that does not exist."""
        known = inspect.getfullargspec(cls.__init__).kwonlyargs
        for name in settings or {}:
            if name not in known:
                raise InputError(f"loss has no setting {name!r}: it has {', '.join(known)}")
        return cls(num_classes, ignore_index, **(settings or {}))

    @on_cpu
    def __call__(self, logits, labels) -> dict:
        """The losses of a batch: "losses", the cross entropy, and "dice_loss" if it has a weight.

        Shape: logits (N, h, w, C), labels (N, H, W) -> scalars by name.
        """
        if isinstance(logits, Array):
            return self._on_arrays(logits, labels.values)
        images, _, width = labels.shape
        logits = upsample_bilinear(logits, labels.shape[1:])
        log_probabilities = flow.log_softmax(logits.reshape(-1, logits.shape[-1]), dim=-1)  # (P, C)
        labels = labels.reshape(-1)
        valid = labels != self.ignore_index
        nll = self._nll(log_probabilities, labels)
        classes = labels * valid.to(labels.dtype)  # fit to look up, also where the label is ignored
        counted = valid
        if self.ohem_threshold is not None:
            counted = self._hard_pixels(nll.detach(), valid, images)
        counted = counted.to(nll.dtype)
        total, weight = self._cross_entropy(log_probabilities, nll, classes, counted)
        losses = {"losses": total / _or_one(weight)}
        if self.dice_weight > 0:
            dice = _dice_loss(log_probabilities, nll, classes, valid, width)
            losses["dice_loss"] = self.dice_weight * dice
        return losses

    def _on_arrays(self, logits: Array, labels: np.ndarray) -> dict:
        classes = logits.shape[-1]
        valid = labels != self.ignore_index
        _check_labels(labels[valid], classes)
        weights = np.ones(classes, np.float32)
        if self.class_weights is not None:
            weights = logits.run.take(self.class_weights).values
        counted = valid
        if self.ohem_threshold is not None:
            nll = kernels.over_pixels(logits.values, labels, valid, self.ignore_index).nll
            counted = self._hard_pixels_of(nll, valid)
        share = np.full((1, 1), weights[labels[counted]].sum(dtype=np.float64), np.float32)
        pixels = dict(labels=labels, ignore_index=self.ignore_index, sum_over_batch=sum_over_batch)
        losses = {
            "losses": kernels.cross_entropy(
                logits,
                counted=counted,
                weights=weights,
                smoothing=self.label_smoothing,
                total=sum_over_batch(share).item() or 1,
                learns=logits.learns,
                **pixels,
            )
        }
        if self.dice_weight > 0:
            losses["dice_loss"] = kernels.dice_loss(logits, factor=self.dice_weight, **pixels)
        return losses

    def _hard_pixels_of(self, nll: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """The same as `_hard_pixels` on arrays: (N, H, W) -> (N, H, W)."""
        images = len(nll) * dist.get_data_parallel_size()
        least = self.ohem_min_kept * images
        if least >= nll[0].size * images:
            return valid
        nll = np.where(valid, nll, nll - 1)
        everywhere = exchange(nll, (SPLIT, WHOLE), (WHOLE, WHOLE)).reshape(-1)
        limit = np.partition(everywhere, -least - 1)[-least - 1]
        return nll > min(limit, -math.log(self.ohem_threshold))

    def _nll(self, log_probabilities, labels):
        """Minus the logarithm of the probability of each pixel's own class; 0 where it is ignored.

        Shape: (P, C), (P,) -> (P,).
        """
        return flow._C.nll_loss(log_probabilities, labels, None, self.ignore_index, "none")

    def _cross_entropy(self, log_probabilities, nll, classes, counted):
        """The sum over pixels, and that of their weights."""
        weights = counted
        if self.class_weights is not None:
            weights = weights * flow._C.gather(self.class_weights, classes, 0)
        losses = weights * nll
        if self.label_smoothing > 0:
            # Here each class has its own weight, not that of the pixel's class.
            spread = -flow.matmul(log_probabilities, self.class_weights.unsqueeze(1)).squeeze(1)
            share = self.label_smoothing / log_probabilities.shape[1]
            losses = (1 - self.label_smoothing) * losses + share * counted * spread
        return losses.sum(), weights.sum()

    def _hard_pixels(self, nll, valid, images: int):
        """Which pixels count, told by `nll`: a low probability is a high one of these.

        Shape: (P,), (P,) bool -> (P,) bool.
        """
        least = self.ohem_min_kept * images
        if least >= nll.shape[0]:
            return valid
        with flow.no_grad():
            nll = flow.where(valid, nll, nll - 1)  # from 0 to -1: the easiest
            ordered = flow.topk(nll.to_global(sbp=broadcast_sbp()), least + 1)[0]
            limit = flow.clamp(ordered[least], max=-math.log(self.ohem_threshold))
            return nll > limit


def _dice_loss(log_probabilities, nll, classes, valid, width: int):
    """1 - the mean soft Dice coefficient of the classes that occur in the labels.

    That of a class (Milletari et al. 2016, Sudre et al. 2017) is (2 * overlap + 1) / (predicted +
    labelled + 1), sums over all valid pixels of the batch: of its probability where it is the
    label, of its probability, of its labels. As (2 * overlap + 1) * factor the overlaps of all
    classes are one sum over pixels, each with the factor of its own class: no targets (P, C).

    Shape: (P, C), (P,), (P,), (P,) and the width of the images -> scalar.
    """
    num_classes = log_probabilities.shape[1]
    mask = valid.to(log_probabilities.dtype)
    # Rows of the images first: no sum is too large for half precision. A product with the mask,
    # because OneFlow is slow on a CPU where it repeats one value along the last axis.
    rows = flow.exp(log_probabilities).reshape(-1, width, num_classes)
    predicted = flow.matmul(mask.reshape(-1, 1, width), rows).squeeze(1).sum(0)
    predicted = predicted.to_global(sbp=broadcast_sbp())
    # In whole numbers: float32 cannot count beyond 2 ** 24.
    labelled = flow._C.unsorted_segment_sum(valid.to(flow.int32), classes, 0, num_classes)
    labelled = labelled.to_global(sbp=broadcast_sbp())
    occurs = (labelled > 0).to(mask.dtype)
    count = occurs.sum()
    factors = occurs / _or_one(count) / (predicted + labelled.to(mask.dtype) + 1)
    overlaps = flow.exp(-nll) * mask * flow._C.gather(factors, classes, 0)
    mean = 2 * overlaps.sum() + factors.sum()
    return flow.clamp(count, max=1) - mean


def _or_one(total):
    """A scalar to divide by: what is divided by 0 here is 0, and stays it."""
    return total + (total == 0).to(total.dtype)


def _check(name: str, value, holds, expected: str, kind=Real) -> None:
    if not isinstance(value, kind) or isinstance(value, bool) or not holds(value):
        number = "a whole number" if kind is Integral else "a number"
        raise InputError(f"loss.{name}={value!r}: expected {number} {expected}")


def _check_labels(labels: np.ndarray, classes: int) -> None:
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"labels from {labels.min()} to {labels.max()}: the model has {classes} classes, 0 to "
            f"{classes - 1}"
        )


def _checked_weights(values: Iterable[float], num_classes: int) -> np.ndarray:
    try:
        weights = np.array(list(values), np.float32)
    except (TypeError, ValueError):
        raise InputError(f"loss.class_weights={values!r}: expected a list of numbers") from None
    if weights.shape != (num_classes,):
        raise InputError(
            f"loss.class_weights has {len(weights)} values and num_classes is {num_classes}: it "
            "needs one a class"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise InputError(f"loss.class_weights={weights.tolist()}: a weight is 0 or more")
    return weights
