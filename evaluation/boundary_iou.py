"""IoU of the boundaries of classes (Cheng et al. 2021, "Boundary IoU")."""

import cv2
import numpy as np
from libai.evaluation.evaluator import DatasetEvaluator

from projects.SegFormer.evaluation.mean_iou import mean, percent

DISTANCE = 0.02  # of the image's diagonal, as in the paper


class BoundaryIoUEvaluator(DatasetEvaluator):
    """Counts, for each class, the pixels near its boundary in label and prediction.

    The boundary of a class are its pixels that are no further from another class or from the
    image's edge than 2% of the image's diagonal, in steps between the eight neighbours. Pixels
    whose label is `ignore_index` are of no class in either map.

    Attributes:
        counts: int64 (classes, 2); of each class, boundary pixels that label and prediction share,
            and those that at least one of them has. That of several ranks is the sum of theirs.
    """

    def __init__(self, classes, ignore_index: int = 255):
        self.classes, self.ignore_index = list(classes), ignore_index
        self.reset()

    def reset(self) -> None:
        self.counts = np.zeros((len(self.classes), 2), np.int64)

    def update(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Count one image: integer maps (H, W)."""
        counted = label != self.ignore_index
        for index in np.union1d(np.unique(prediction[counted]), np.unique(label[counted])):
            if index == self.ignore_index:  # predicted, where it is a class of the network
                continue
            guess = boundary((prediction == index) & counted)
            truth = boundary(label == index)
            self.counts[index] += (guess & truth).sum(), (guess | truth).sum()

    def evaluate(self) -> dict:
        """{"boundary_mIoU": float, "boundary_IoU": {class: float or None}} in percent."""
        iou = {
            name: percent(shared, either)
            for name, (shared, either) in zip(self.classes, self.counts, strict=True)
        }
        return {"boundary_mIoU": mean(iou.values()), "boundary_IoU": iou}


def boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that are near its edge: bool (H, W) -> bool (H, W)."""
    steps = max(1, round(DISTANCE * float(np.hypot(*mask.shape))))
    padded = np.pad(mask.astype(np.uint8), 1)  # outside the image is outside the mask
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=steps)
    return mask & (inner[1:-1, 1:-1] == 0)
