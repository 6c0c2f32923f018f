"""Images with label and prediction, drawn small, for the report and for TensorBoard."""

import base64
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.evaluation.fonts import font_for
from projects.SegFormer.evaluation.mean_iou import count, mean_iou
from projects.SegFormer.evaluation.pictures import encoded
from projects.SegFormer.evaluation.report.record import VIEWS, Evaluated, Picture
from projects.SegFormer.evaluation.visualize import LEAST_SHARE, drawable, overlay
from projects.SegFormer.evaluation.worst_images import of_one_size, wrong_pixels

SHOWN = 5  # images of a kind
TILE = (360, 480)  # height, width that each picture is made to fit in
RIGHT, ORANGE = np.array((0, 114, 178)), np.array((213, 94, 0))  # as in the page


def draw_picture(dataset, index: int, prediction: np.ndarray) -> Picture:
    """The views of image `index` of a SegmentationDataset and of what was predicted, (H, W)."""
    image, label, prediction = of_one_size(dataset, index, prediction)
    size = len(dataset.classes)
    shares = np.maximum(*(_shares(labels, size) for labels in (label, prediction)))
    scale = min(TILE[0] / label.shape[0], TILE[1] / label.shape[1], 1)
    height, width = (max(1, round(side * scale)) for side in label.shape)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    maps = [
        cv2.resize(labels.astype(np.uint16), (width, height), interpolation=cv2.INTER_NEAREST)
        for labels in (label, prediction)
    ]
    drawn = [overlay(small, it, dataset.classes, dataset.palette, 1, legend=False) for it in maps]
    views = zip(VIEWS.items(), (small, *drawn, wrong_pixels(small, *maps, dataset.palette)))
    score = mean_iou(count(prediction, label, size, IGNORE_INDEX))
    return Picture(
        str(dataset.images[index]).rpartition("/")[2],
        score,
        [(int(n), 100 * float(shares[n])) for n in np.argsort(-shares) if shares[n] > LEAST_SHARE],
        {
            name: base64.b64encode(encoded(picture, kind)).decode()
            for (name, kind), picture in views
        },
    )


def _shares(labels: np.ndarray, classes: int) -> np.ndarray:
    """Of the pixels, each class's and, last, that of no class."""
    counts = np.bincount(np.minimum(labels, classes).ravel(), minlength=classes + 1)
    return counts / max(1, labels.size)


def sample_pictures(evaluated: Evaluated) -> dict[str, np.ndarray]:
    """Image, label and prediction side by side, half as wide as in the report: by name, RGB."""
    found = {}
    for picture in evaluated.pictures["samples"]:
        views = [_decoded(picture.views[view]) for view in ("image", "label", "prediction")]
        row = np.concatenate(views, axis=1)
        size = max(row.shape[1] // 2, 1), max(row.shape[0] // 2, 1)
        row = cv2.resize(row, size, interpolation=cv2.INTER_AREA)
        found[f"samples/{picture.name}"] = row
    return found


def matrix_picture(evaluated: Evaluated) -> np.ndarray:
    """The confusion matrix, each row of 100%: RGB, blue for right and orange for wrong."""
    names = evaluated.classes
    shares = evaluated.counts[:, :-1] / np.maximum(evaluated.counts.sum(1, keepdims=True), 1)
    colours = np.where(np.eye(len(names), dtype=bool)[..., None], RIGHT, ORANGE)
    cells = np.rint(255 + (colours - 255) * shares[..., None]).astype(np.uint8)
    cell = int(np.clip(640 // len(names), 10, 32))
    cells = cells.repeat(cell, 0).repeat(cell, 1)
    cells[::cell] = cells[:, ::cell] = 225
    left = _names(names, cell)
    top = np.rot90(_names(names[::-1], cell), -1)
    corner = np.full((len(top), left.shape[1], 3), 255, np.uint8)
    upper, lower = np.concatenate([corner, top], 1), np.concatenate([left, cells], 1)
    return np.concatenate([upper, lower])


def _names(names: Sequence[str], step: int) -> np.ndarray:
    """Names below each other, one every `step` pixels, to the right."""
    names = [drawable(name)[:24] for name in names]
    font = font_for("".join(names), min(step, 14))
    width = 8 + max(int(font.getlength(name)) for name in names)
    picture = Image.new("RGB", (width, step * len(names)), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    for line, name in enumerate(names):
        draw.text((width - 4, step * (line + 0.5)), name, (24, 24, 24), font, anchor="rm")
    return np.asarray(picture)


def _decoded(view: str) -> np.ndarray:
    encoded = np.frombuffer(base64.b64decode(view), np.uint8)
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
