"""The images on which a model does worst, as a sheet of pictures."""

import heapq
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from projects.SegFormer.dataset.image_files import as_rgb
from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.evaluation.mean_iou import MeanIoUEvaluator
from projects.SegFormer.evaluation.pictures import write_png
from projects.SegFormer.evaluation.visualize import captioned, colorize, contact_sheet

TILE = (240, 360)  # height, width that each picture is made to fit in


class WorstImages:
    """Keeps the `count` images of lowest mIoU, each by itself, and draws them.

    Args:
        dataset: a SegmentationDataset.
        count: how many to keep.
    """

    def __init__(self, dataset, count: int):
        self.dataset, self.count = dataset, count
        self._kept = []  # a heap of (-mIoU, -index, prediction), the best of the worst on top

    def update(self, index: int, prediction: np.ndarray, label: np.ndarray) -> None:
        """Look at image `index`, maps (H, W); one without a labelled pixel is passed over."""
        evaluator = MeanIoUEvaluator(self.dataset.classes, self.dataset.ignore_index)
        evaluator.update(prediction, label)
        score = evaluator.evaluate()["mIoU"]
        if np.isnan(score):
            return
        heapq.heappush(self._kept, (-score, -index, prediction.astype(np.uint8)))
        if len(self._kept) > self.count:
            heapq.heappop(self._kept)

    def entries(self) -> list[tuple[float, int, np.ndarray]]:
        """(mIoU, index, prediction) of the images kept, the worst first, of equals the earlier."""
        return [
            (-score, -index, prediction) for score, index, prediction in sorted(self._kept)[::-1]
        ]

    def draw(self, path: str | Path, entries: Sequence[tuple[float, int, np.ndarray]]) -> None:
        """Write a sheet with a row for each entry: image, label, prediction, wrong pixels."""
        rows = []
        for score, index, prediction in entries:
            image, label = self.dataset.load(index)
            image = as_rgb(image)
            wrong = image // 3
            wrong[(label != prediction) & (label != IGNORE_INDEX)] = (255, 60, 60)
            palette = self.dataset.palette
            pictures = (image, colorize(label, palette), colorize(prediction, palette), wrong)
            row = [_fit(picture) for picture in pictures]
            name = f"{score:.1f}%  {Path(self.dataset.images[index]).stem}"
            row[0] = captioned(row[0], name)
            rows.append(row)
        sheet = contact_sheet(rows, ("image, its mIoU", "label", "prediction", "wrong pixels"))
        write_png(path, sheet)


def _fit(picture: np.ndarray) -> np.ndarray:
    """A picture scaled to fit in TILE, in its upper left corner, on white."""
    scale = min(TILE[0] / picture.shape[0], TILE[1] / picture.shape[1])
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    tile = np.full((*TILE, 3), 255, np.uint8)
    tile[:height, :width] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return tile
