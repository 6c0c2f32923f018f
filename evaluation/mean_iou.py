"""Mean intersection over union from a confusion matrix of integers."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from libai.evaluation.evaluator import DatasetEvaluator

from projects.SegFormer.modeling.errors import InputError


class MeanIoUEvaluator(DatasetEvaluator):
    """Counts predictions against labels as they come.

    Attributes:
        matrix: int64 (classes, classes), pixels by label (row) and prediction (column). That of
            several ranks is the sum of theirs.
    """

    def __init__(self, classes: Sequence[str], ignore_index: int = 255):
        self.classes = list(classes)
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        size = len(self.classes)
        self.matrix = np.zeros((size, size), np.int64)

    def update(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Count one batch or one image.

        Args:
            prediction, label: integer arrays of equal shape, (N, H, W) or (H, W). Pixels whose
                label is `ignore_index` count nowhere.

        Raises:
            InputError: the shapes differ, or a pixel that counts is of no class.
        """
        if prediction.shape != label.shape:
            raise InputError(
                f"prediction of shape {prediction.shape} against labels of shape {label.shape}; "
                "they must be equal: bring the logits to label size first"
            )
        counted = label != self.ignore_index
        size = len(self.classes)
        label = label[counted].astype(np.int64)
        prediction = prediction[counted].astype(np.int64)
        for name, values in (("label", label), ("prediction", prediction)):
            if values.size and (values.min() < 0 or values.max() >= size):
                raise InputError(
                    f"{name} values from {values.min()} to {values.max()}; "
                    f"expected 0 to {size - 1} for the {size} classes"
                )
        pairs = np.bincount(label * size + prediction, minlength=size * size)
        self.matrix += pairs.reshape(size, size)

    def evaluate(self) -> dict:
        """See `scores`."""
        return scores(self.matrix, self.classes)


def scores(matrix: np.ndarray, classes: Sequence[str]) -> dict:
    """The usual figures in percent from a confusion matrix (row label, column prediction).

    Of a class, IoU is TP / (TP + FP + FN) and Acc is TP / (TP + FN); mIoU and mAcc are their means,
    aAcc is the share of all pixels that are right. A class in neither labels nor predictions has
    the IoU None, one in no label the Acc None; the means leave them out.

    Returns:
        {"mIoU": float, "mAcc": float, "aAcc": float, "IoU": {class: float or None}, "Acc": {...}};
        the first three are NaN if not a single pixel was counted.
    """
    right = np.diag(matrix)
    labelled = matrix.sum(axis=1)
    union = labelled + matrix.sum(axis=0) - right
    iou = [_percent(r, u) for r, u in zip(right, union, strict=True)]
    acc = [_percent(r, n) for r, n in zip(right, labelled, strict=True)]
    overall = _percent(right.sum(), matrix.sum())
    return {
        "mIoU": _mean(iou),
        "mAcc": _mean(acc),
        "aAcc": math.nan if overall is None else overall,
        "IoU": dict(zip(classes, iou, strict=True)),
        "Acc": dict(zip(classes, acc, strict=True)),
    }


def format_table(result: dict) -> str:
    """The result of `scores` as aligned text, a line per class, the means below; "-" for absent."""
    rows = [("class", "IoU", "Acc")]
    rows += [(name, _cell(iou), _cell(result["Acc"][name])) for name, iou in result["IoU"].items()]
    rows += [("mean", _cell(result["mIoU"]), _cell(result["mAcc"]))]
    rows += [("all pixels", "", _cell(result["aAcc"]))]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {iou:>6}  {acc:>6}" for name, iou, acc in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-2], rule, *lines[-2:]])


def write_json(result: dict, path: str | Path) -> None:
    """Write the result of `scores` as JSON; whoever reads `path` finds the old file or the new.

    NaN, which JSON lacks, becomes null.
    """
    path = Path(path)
    result = {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in result.items()
    }
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * float(part) / float(whole) if whole else None


def _mean(values: Sequence[float | None]) -> float:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else math.nan


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"
