"""Predictions as the files that a benchmark's server takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from projects.SegFormer.evaluation.pictures import write_png
from projects.SegFormer.modeling.errors import InputError


class ResultFiles:
    """Writes a PNG for each image of a data set, with the values that stand for its classes there.

    Cityscapes' server wants label ids, ADE20K's counts classes from 1: see `result_values` of the
    data sets. A file has the name of its image.

    Args:
        folder: is made if it is not there.
        images: the image files of the data set.
        values: uint8 (classes,), the value of each class.

    Raises:
        InputError: two images have one name.
    """

    def __init__(self, folder: str | Path, images: Sequence[Path], values: np.ndarray):
        self.folder, self.values = Path(folder), values
        self.names = [Path(image).stem for image in images]
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise InputError(f"two images are called {twice}: their results would be one file")
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, index: int, prediction: np.ndarray) -> None:
        """Write the prediction, (H, W) class indices, for image `index`.

        Raises:
            InputError: the disk does not take it.
        """
        write_png(self.folder / f"{self.names[index]}.png", self.values[prediction])
