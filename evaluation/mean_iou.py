"""Mean intersection over union from a confusion matrix of integers."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from libai.evaluation.evaluator import DatasetEvaluator

from projects.SegFormer.modeling import files
from projects.SegFormer.modeling.errors import InputError


class MeanIoUEvaluator(DatasetEvaluator):
    """Counts predictions against labels as they come.

    Args:
        classes: their names.
        ignore_index: the label of pixels that count nowhere; as a prediction, no class.
        categories: the category of each class, or None; see `scores`.

    Attributes:
        counts: int64 (classes, classes + 1), pixels by label (row) and prediction (column); in the
            last column those that were predicted to be of no class. That of several ranks is the
            sum of theirs.
    """

    def __init__(
        self,
        classes: Sequence[str],
        ignore_index: int = 255,
        categories: Sequence[str] | None = None,
    ):
        self.classes = list(classes)
        self.ignore_index = ignore_index
        self.categories = categories
        self.reset()

    def reset(self) -> None:
        size = len(self.classes)
        self.counts = np.zeros((size, size + 1), np.int64)

    def update(self, prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Count one batch or one image: its own counts. See `count`."""
        found = count(prediction, label, len(self.classes), self.ignore_index)
        self.counts += found
        return found

    def evaluate(self) -> dict:
        """See `scores`."""
        return scores(self.counts, self.classes, self.categories)


def count(prediction: np.ndarray, label: np.ndarray, classes: int, ignore_index: int) -> np.ndarray:
    """The `counts` of a MeanIoUEvaluator of one batch or one image.

    Args:
        prediction, label: integer arrays of equal shape, (N, H, W) or (H, W). Pixels whose label is
            `ignore_index` count nowhere; whose prediction is, as a class missed.

    Raises:
        InputError: the shapes differ, or a pixel that counts is of no class.
    """
    if prediction.shape != label.shape:
        raise InputError(
            f"prediction of shape {prediction.shape} against labels of shape {label.shape}; "
            "they must be equal: bring the logits to label size first"
        )
    counted = label != ignore_index
    label = label[counted].astype(np.int64)
    prediction = prediction[counted].astype(np.int64)
    none = prediction == ignore_index
    for name, values in (("label", label), ("prediction", prediction[~none])):
        if values.size and (values.min() < 0 or values.max() >= classes):
            raise InputError(
                f"{name} values from {values.min()} to {values.max()}; "
                f"expected 0 to {classes - 1} for the {classes} classes"
            )
    prediction[none] = classes
    pairs = np.bincount(label * (classes + 1) + prediction, minlength=classes * (classes + 1))
    return pairs.reshape(classes, classes + 1)


def mean_iou(counts: np.ndarray) -> float:
    """The "mIoU" of `scores`."""
    return mean(_iou(counts))


def scores(
    counts: np.ndarray, classes: Sequence[str], categories: Sequence[str] | None = None
) -> dict:
    """The usual figures in percent from the counts of a MeanIoUEvaluator.

    Of a class, IoU is TP / (TP + FP + FN), Dice 2 TP / (2 TP + FP + FN) and Acc TP / (TP + FN);
    mIoU, mDice and mAcc are their means, fwIoU is the mean IoU weighted by the classes' labelled
    pixels, aAcc the share of all pixels that are right. A class in neither labels nor predictions
    has the IoU and Dice None, one in no label the Acc None; the means leave them out.

    With categories, those of cityscapesScripts say, also the IoU of each: what is taken for another
    class of its own category is right.

    Returns:
        {"mIoU", "mAcc", "aAcc", "fwIoU", "mDice": float, "IoU", "Acc", "Dice": {class: float or
        None}}, with categories "category_mIoU": float and "category_IoU": {category: ...}. The
        first five are NaN if not a single pixel was counted.
    """
    right = np.diag(counts)
    labelled = counts.sum(axis=1)
    predicted = counts.sum(axis=0)[:-1]
    iou = _iou(counts)
    dice = [percent(2 * r, n + p) for r, n, p in zip(right, labelled, predicted, strict=True)]
    acc = [percent(r, n) for r, n in zip(right, labelled, strict=True)]
    total = int(counts.sum())
    weighted = sum(i * int(n) for i, n in zip(iou, labelled, strict=True) if n)
    result = {
        "mIoU": mean(iou),
        "mAcc": mean(acc),
        "aAcc": 100.0 * float(right.sum()) / total if total else math.nan,
        "fwIoU": weighted / total if total else math.nan,
        "mDice": mean(dice),
        "IoU": dict(zip(classes, iou, strict=True)),
        "Acc": dict(zip(classes, acc, strict=True)),
        "Dice": dict(zip(classes, dice, strict=True)),
    }
    if categories:
        names = list(dict.fromkeys(categories))
        member = np.array([[category == name for category in categories] for name in names], int)
        to_columns = np.pad(member, ((0, 1), (0, 1)))
        to_columns[-1, -1] = 1
        category_iou = _iou(member @ counts @ to_columns.T)
        result["category_mIoU"] = mean(category_iou)
        result["category_IoU"] = dict(zip(names, category_iou, strict=True))
    return result


def _iou(counts: np.ndarray) -> list[float | None]:
    right = np.diag(counts)
    union = counts.sum(axis=1) + counts.sum(axis=0)[:-1] - right
    return [percent(r, u) for r, u in zip(right, union, strict=True)]


def format_table(result: dict) -> str:
    """The result of `scores` as aligned text, a line per class, the means below; "-" for absent."""
    rows = [("class", "IoU", "Acc", "Dice")]
    rows += [
        (name, *(_cell(result[figure][name]) for figure in ("IoU", "Acc", "Dice")))
        for name in result["IoU"]
    ]
    means = [("mean", *(_cell(result[name]) for name in ("mIoU", "mAcc", "mDice")))]
    means += [("all pixels", "", _cell(result["aAcc"]), "")]
    means += [("weighted by pixels", _cell(result["fwIoU"]), "", "")]
    groups = [rows[1:], means]
    for kind in ("category", "boundary"):
        if f"{kind}_IoU" in result:
            of_each = {**result[f"{kind}_IoU"], "mean": result[f"{kind}_mIoU"]}
            groups.append([(f"{kind} {name}", _cell(iou), "", "") for name, iou in of_each.items()])
    width = max(len(row[0]) for group in [rows[:1], *groups] for row in group)
    text = [_line(rows[0], width)]
    for group in groups:
        text += ["-" * len(text[0]), *(_line(row, width) for row in group)]
    return "\n".join(text)


def _line(row: Sequence[str], width: int) -> str:
    return "  ".join([f"{row[0]:<{width}}", *(f"{cell:>6}" for cell in row[1:])])


def write_json(result: dict, path: str | Path) -> None:
    """Write the result of `scores` as JSON, see `files.write_json`."""
    files.write_json(path, result)


def percent(part: int, whole: int) -> float | None:
    """A share in percent; None of nothing."""
    return 100.0 * float(part) / float(whole) if whole else None


def mean(values: Iterable[float | None]) -> float:
    """Of those that are not None; NaN if there is none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else math.nan


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"
