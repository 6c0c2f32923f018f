"""Top-1 and top-5 accuracy from counts of integers."""

import math
from collections.abc import Sequence

import numpy as np
from libai.evaluation.evaluator import DatasetEvaluator

from projects.SegFormer.evaluation.mean_iou import percent
from projects.SegFormer.modeling.errors import InputError


class AccuracyEvaluator(DatasetEvaluator):
    """Counts right predictions of classes as they come.

    Attributes:
        counts: int64 (classes, 3); of each class the samples with that label, those of them where
            it has the highest logit, and those where it is among the five highest (all, of fewer
            classes). That of several ranks is the sum of theirs.
    """

    BEST = 5

    def __init__(self, classes: Sequence[str], ignore_label: int = -1):
        self.classes = list(classes)
        self.ignore_label = ignore_label
        self.reset()

    def reset(self) -> None:
        self.counts = np.zeros((len(self.classes), 3), np.int64)

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Count one batch.

        Of equal logits the one of the lower class is taken for the higher, so that a model that
        gives the same for all classes is as good as chance.

        Args:
            logits: float (N, classes).
            labels: integers (N,). Samples whose label is `ignore_label` count nowhere.

        Raises:
            InputError: the shapes do not fit together, or a label that counts is of no class.
        """
        size = len(self.classes)
        if logits.shape != (len(labels), size):
            raise InputError(
                f"logits of shape {logits.shape} against {len(labels)} labels and {size} classes; "
                "expected a row a label and a column a class"
            )
        counted = labels != self.ignore_label
        logits, labels = logits[counted], labels[counted].astype(np.int64)
        if labels.size and (labels.min() < 0 or labels.max() >= size):
            raise InputError(
                f"label values from {labels.min()} to {labels.max()}; "
                f"expected 0 to {size - 1} for the {size} classes"
            )
        best = np.argsort(-logits, axis=1, kind="stable")[:, : self.BEST]
        hits = best == labels[:, None]
        for column, right in enumerate((np.ones_like(counted[counted]), hits[:, 0], hits.any(1))):
            self.counts[:, column] += np.bincount(labels[right], minlength=size)

    def evaluate(self) -> dict:
        """See `scores`."""
        return scores(self.counts, self.classes)


def scores(counts: np.ndarray, classes: Sequence[str]) -> dict:
    """The usual figures in percent from the counts of an AccuracyEvaluator.

    Returns:
        {"top1": float, "top5": float, "Acc": {class: float or None}}: the share of the samples, NaN
        if there are none; the top-1 accuracy of each class, None for one in no label.
    """
    total, top1, top5 = counts.sum(axis=0)
    return {
        "top1": 100.0 * float(top1) / float(total) if total else math.nan,
        "top5": 100.0 * float(top5) / float(total) if total else math.nan,
        "Acc": {
            name: percent(right, labelled)
            for name, (labelled, right, _) in zip(classes, counts, strict=True)
        },
    }


def format_table(result: dict) -> str:
    """The result of `scores` as text, without the classes: ImageNet has a thousand."""
    return "\n".join(f"{name:<5}  {result[name]:6.2f}" for name in ("top1", "top5"))
