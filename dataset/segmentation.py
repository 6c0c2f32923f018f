"""Images and label maps of one data set, checked and transformed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from projects.SegFormer.dataset.image_files import read_image, read_label
from projects.SegFormer.dataset.sampler import Draw
from projects.SegFormer.dataset.transforms import IGNORE_INDEX, Compose, Transform
from projects.SegFormer.modeling.errors import InputError

UNKNOWN = 254  # neither a class nor ignored: `SegmentationDataset.load` refuses it


class SegmentationDataset:
    """Pairs of an image file and a label file.

    A label map is a one-channel image, the class index of each pixel, IGNORE_INDEX where there is
    none.

    Args:
        images: image files.
        labels: the label file of each image, or None for a split without labels: every pixel is
            then IGNORE_INDEX.
        classes: names; their order is that of the indices.
        palette: an RGB triple, 0 to 255, per class.
        transforms: applied one after the other; see `transforms.py`.
        seed: of the augmentation. With the position in the stream of samples it decides all random
            choices: not the worker, the rank or an interruption.

    Class attributes, for data sets of one known set of classes:
        SPLITS: names of the splits.
        RESULT_VALUES: see `result_values`; None where the class indices are what is handed in.
        categories: the category of each class, for a score that only asks for the category.
    """

    SPLITS: tuple[str, ...] = ()
    RESULT_VALUES: np.ndarray | None = None
    categories: tuple[str, ...] | None = None

    def __init__(
        self,
        images: Sequence[Path],
        labels: Sequence[Path] | None,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        transforms: Sequence[Transform],
        seed: int = 0,
    ):
        self.images = list(images)
        self.labels = None if labels is None else list(labels)
        self.classes = list(classes)
        self.palette = [tuple(colour) for colour in palette]
        self.transforms = Compose(transforms)
        self.seed = seed
        if not self.images:
            raise InputError(f"{type(self).__name__}: no images; give at least one")
        if not 1 <= len(self.classes) <= IGNORE_INDEX:
            raise InputError(
                f"classes: {len(self.classes)} names; 1 to {IGNORE_INDEX} can be told apart in an "
                f"8-bit label map, where {IGNORE_INDEX} means no class"
            )
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise InputError(f"classes: {twice!r} is there more than once; every name is one class")
        if len(self.palette) != len(self.classes):
            raise InputError(
                f"palette: {len(self.palette)} colours for {len(self.classes)} classes; "
                "give one RGB triple per class"
            )

    @classmethod
    def check_split(cls, split: str) -> None:
        """Raises InputError for a split that the data set does not have."""
        if split not in cls.SPLITS:
            raise InputError(
                f"{cls.__name__} split {split!r}: expected one of {', '.join(cls.SPLITS)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Draw | int) -> tuple[np.ndarray, np.ndarray]:
        """A transformed sample: image float32 (3, H, W), label uint8 (H, W).

        A plain index stands for the draw of that index at that position. The label of a draw that
        is not valid is all IGNORE_INDEX, so that it counts nowhere. Threads may call this at once.

        Raises:
            InputError: see `load`.
        """
        draw = key if isinstance(key, Draw) else Draw(key, key)
        image, label = self.load(draw.index)
        if label is None or not draw.valid:
            label = np.full(image.shape[:2], IGNORE_INDEX, np.uint8)
        rng = np.random.default_rng((self.seed, draw.position))
        image, label = self.transforms(image, label, rng)
        return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32), label

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Image (H, W, 3) uint8 RGB and label (H, W) uint8, untransformed; None without labels.

        Raises:
            InputError: a file cannot be decoded, their sizes differ, or the label has a value that
                is neither a class nor IGNORE_INDEX.
        """
        image = read_image(self.images[index])
        if self.labels is None:
            return image, None
        path = self.labels[index]
        values = self.read_label_file(path)
        if values.shape != image.shape[:2]:
            raise InputError(
                f"{path}: the label is {_size(values)} but its image {self.images[index]} is "
                f"{_size(image)} (height x width); they must be equal"
            )
        table = self.label_table(path)
        label = values if table is None else cv2.LUT(values, table)
        unknown = (label >= len(self.classes)) & (label != IGNORE_INDEX)
        if unknown.any():
            found = ", ".join(str(value) for value in np.unique(values[unknown]))
            ignored = f" and is not {IGNORE_INDEX}, to be ignored" if table is None else ""
            raise InputError(
                f"{path}: label value {found} stands for none of the {len(self.classes)} classes"
                f"{ignored}; correct the label or the classes"
            )
        return image, label

    @property
    def result_values(self) -> np.ndarray:
        """The value that stands for each class in a result PNG, uint8 (classes,).

        A benchmark's server wants the values of its label files, which need not be the indices.
        """
        if self.RESULT_VALUES is None:
            return np.arange(len(self.classes), dtype=np.uint8)
        return self.RESULT_VALUES

    def read_label_file(self, path: Path) -> np.ndarray:
        """The values of a label file as they are stored, uint8 (H, W).

        For subclasses whose labels are no image files.

        Raises:
            InputError: see `read_label`.
        """
        return read_label(path)

    def label_table(self, path: Path) -> np.ndarray | None:
        """The class index of each of the 256 values that the file may hold, uint8 (256,).

        For subclasses whose files hold something else; None where the values are the indices.
        """
        return None


def index_table(values: Sequence[int], ignored: Sequence[int]) -> np.ndarray:
    """What `SegmentationDataset.label_table` gives, from the value of each class, in their order.

    The values in `ignored` become IGNORE_INDEX, all others UNKNOWN.
    """
    table = np.full(256, UNKNOWN, np.uint8)
    table[list(ignored)] = IGNORE_INDEX
    table[list(values)] = np.arange(len(values))
    return table


def find_files(folder: Path, suffix: str, depth: int = 0) -> dict[str, Path]:
    """Files in the folder, or `depth` folders below, by relative path without the suffix."""
    pattern = "*/" * depth + f"[!.]*{suffix}"  # no dot: macOS leaves ._name.png behind
    return {
        path.relative_to(folder).as_posix().removesuffix(suffix): path
        for path in folder.glob(pattern)
    }


def pick_files(
    names: Sequence[str], found: Mapping[str, Path], source: Path | str, expected: str
) -> list[Path]:
    """The file of each name in the list `source`; `expected` says where they should be.

    Raises:
        InputError: a name has no file.
    """
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"{source}: {len(missing)} of {len(names)} names have no {expected}, the first is "
            f"{missing[0]!r}; add what is missing or take the names out"
        )
    return [found[name] for name in names]


def pair_files(
    images: Mapping[str, Path], labels: Mapping[str, Path], root: Path
) -> tuple[list[Path], list[Path]]:
    """Image and label files of equal key, sorted by key.

    Raises:
        InputError: a key is on one side only.
    """
    for found, other, missing in ((images, labels, "label"), (labels, images, "image")):
        alone = sorted(found.keys() - other.keys())
        if alone:
            names = ", ".join(str(found[key].relative_to(root)) for key in alone[:3])
            raise InputError(
                f"{root}: {len(alone)} of {len(found)} files have no {missing}: {names}"
                f"{', ...' if len(alone) > 3 else ''}; add what is missing or take them out"
            )
    keys = sorted(images)
    return [images[key] for key in keys], [labels[key] for key in keys]


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
