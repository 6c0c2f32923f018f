"""The images on which a model does worst, as a sheet of pictures."""

import heapq
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from projects.SegFormer.dataset.image_files import as_rgb
from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.evaluation.pictures import write_png
from projects.SegFormer.evaluation.visualize import (
    Palette,
    captioned,
    contact_sheet,
    overlay,
    unused_colour,
)

TILE = (240, 360)  # height, width that each picture is made to fit in

Entry = tuple[float, int, np.ndarray]  # score, index in the data set, prediction (H, W)


class LowestScores:
    """Keeps the predictions of the `count` images of lowest score."""

    def __init__(self, count: int):
        self.count = count
        self._kept = []  # a heap of (-score, -index, prediction), the highest kept on top

    def update(self, score: float, index: int, prediction: np.ndarray) -> None:
        """Look at image `index`; one whose score is NaN is passed over."""
        if np.isnan(score) or not self.count:
            return
        if len(self._kept) < self.count or (-score, -index) > self._kept[0][:2]:
            heapq.heappush(self._kept, (-score, -index, prediction.astype(np.uint16)))
        if len(self._kept) > self.count:
            heapq.heappop(self._kept)

    def entries(self) -> list[Entry]:
        """Of the images kept, the lowest first, of equals the earlier."""
        return [
            (-score, -index, prediction) for score, index, prediction in sorted(self._kept)[::-1]
        ]


def draw_sheet(path: str | Path, dataset, entries: Sequence[Entry]) -> None:
    """Write a sheet with a row for each entry: image, label, prediction, wrong pixels.

    The score of an entry is its mIoU.
    """
    rows = []
    for score, index, prediction in entries:
        image, label, prediction = of_one_size(dataset, index, prediction)
        known = dataset.classes, dataset.palette
        colours = (overlay(image, it, *known, 1, legend=False) for it in (label, prediction))
        row = [image, *colours, wrong_pixels(image, label, prediction, dataset.palette)]
        row = [_fit(picture) for picture in row]
        row[0] = captioned(row[0], f"{score:.1f}%  {Path(dataset.images[index]).stem}")
        rows.append(row)
    sheet = contact_sheet(rows, ("image, its mIoU", "label", "prediction", "wrong pixels"))
    write_png(path, sheet)


def of_one_size(
    dataset, index: int, prediction: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RGB image `index` of a SegmentationDataset, its label, and the prediction (H, W) in its size.

    What counts nowhere is IGNORE_INDEX in both.
    """
    image, label = dataset.load(index)
    image = as_rgb(image)
    if label is None:
        label = np.full(image.shape[:2], IGNORE_INDEX, np.uint8)
    if prediction.shape != label.shape:  # the evaluation's transforms scale
        prediction = cv2.resize(prediction, label.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return image, label, np.where(prediction == dataset.ignore_index, IGNORE_INDEX, prediction)


def wrong_pixels(
    image: np.ndarray, label: np.ndarray, prediction: np.ndarray, palette: Palette
) -> np.ndarray:
    """The image (H, W, 3) darkened, with its wrong pixels in a bright colour that no class has."""
    picture = image // 3
    picture[(label != prediction) & (label != IGNORE_INDEX)] = unused_colour(palette)
    return picture


def _fit(picture: np.ndarray) -> np.ndarray:
    """A picture scaled to fit in TILE, in its upper left corner, on white."""
    scale = min(TILE[0] / picture.shape[0], TILE[1] / picture.shape[1])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    tile = np.full((*TILE, 3), 255, np.uint8)
    tile[:height, :width] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return tile
