"""Predictions as the files that a benchmark's server takes."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from projects.SegFormer.evaluation.pictures import write_png
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason


class ResultFiles:
    """Writes a PNG for each image of a data set, with the values that stand for its classes there.

    Cityscapes' server wants label ids, ADE20K's counts classes from 1: see `result_values` of the
    data sets. A file has the name of its image.

    Args:
        folder: is made if it is not there.
        images: the image files of the data set.
        values: uint8 (classes,), the value of each class.

    Raises:
        InputError: two images have one name, or `folder` cannot be one.
    """

    def __init__(self, folder: str | Path, images: Sequence[Path], values: np.ndarray):
        self.folder, self.values = Path(folder), values
        self.names = [Path(image).stem for image in images]
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise InputError(f"two images are called {twice}: their results would be one file")
        make_folder(self.folder)

    def write(self, index: int, prediction: np.ndarray) -> None:
        """Write the prediction, (H, W) class indices, for image `index`.

        Raises:
            InputError: the disk does not take it.
        """
        write_png(self.folder / f"{self.names[index]}.png", self.values[prediction])


def check_folder(path: str | Path) -> None:
    """Raises InputError if `path`, or what leads to it, is a file. Nothing is made."""
    for place in (Path(path), *Path(path).parents):
        if os.path.lexists(place):
            if not os.path.isdir(place):
                raise InputError(
                    f"cannot write {path}: {place} is no folder; choose another --output"
                )
            return


def make_folder(path: str | Path) -> None:
    """Make a folder, unless it is there. Raises InputError if that cannot be."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from error
