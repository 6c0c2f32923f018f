"""Images and label maps of one data set, checked and transformed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from projects.SegFormer.dataset import remarks
from projects.SegFormer.dataset.folders import named_files
from projects.SegFormer.dataset.image_files import (
    read_label,
    read_stored,
    stored_size,
    turn,
)
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
        ignore_index: the model's. A class of this index counts nowhere. In here whatever counts
            nowhere is IGNORE_INDEX; in batches, see `build.Loader`, it is this number.
        num_channels: the model's, bands of each image, see `read_image`.

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
        ignore_index: int = IGNORE_INDEX,
        num_channels: int = 3,
    ):
        self.images = list(images)
        self.labels = None if labels is None else list(labels)
        self.classes = list(classes)
        self.palette = [tuple(colour) for colour in palette]
        self.transforms = Compose(transforms)
        self.seed = seed
        self.ignore_index = ignore_index
        self.num_channels = num_channels
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
        """A transformed sample: image float32 (num_channels, H, W), label uint8 (H, W).

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
        """Image (H, W, num_channels) and label (H, W) or None, both uint8, untransformed.

        An image is turned as its EXIF orientation says, but where its label has the size of the
        image as it is stored, and not that of the turned one: it was drawn on that.

        Raises:
            InputError: a file cannot be decoded, their sizes differ, or the label has a value that
                is neither a class nor IGNORE_INDEX.
        """
        image, orientation = read_stored(self.images[index], self.num_channels)
        label = None if self.labels is None else self.load_label(index)
        if orientation > 1:
            turned = turn(image, orientation)
            if label is None or label.shape != image.shape[:2] or label.shape == turned.shape[:2]:
                remarks.remark(remarks.TURNED, self.images[index])
                image = turned
            else:
                remarks.remark(remarks.AS_STORED, self.images[index])
        if label is not None and label.shape != image.shape[:2]:
            raise InputError(
                f"{self.labels[index]}: the label is {_size(label)} but its image "
                f"{self.images[index]} is {_size(image)} (height x width); they must be equal"
            )
        return image, label

    def load_label(self, index: int) -> np.ndarray:
        """The label alone, see `load`."""
        path = self.labels[index]
        values = self.read_label_file(path)
        table = self.label_table(path)
        classes = np.arange(256, dtype=np.uint8) if table is None else table
        if self.ignore_index != IGNORE_INDEX:
            is_ignored = classes == self.ignore_index
            is_ignored &= (table is None) | (classes < len(self.classes))  # UNKNOWN stays it
            classes = np.where(is_ignored, IGNORE_INDEX, classes).astype(np.uint8)
        # Which values occur, without an array of several bytes a pixel.
        occurs = cv2.calcHist([values], [0], None, [256], [0, 256])[:, 0] > 0
        unknown = occurs & (classes >= len(self.classes)) & (classes != IGNORE_INDEX)
        if unknown.any():
            found = ", ".join(map(str, np.flatnonzero(unknown)))
            ignored = f" and is not {IGNORE_INDEX}, to be ignored" if table is None else ""
            raise InputError(
                f"{path}: label value {found} stands for none of the {len(self.classes)} classes"
                f"{ignored}; correct the label or the classes"
            )
        return values if (classes == np.arange(256))[occurs].all() else cv2.LUT(values, classes)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of the image that `load` gives, from the header of its file.

        Raises:
            InputError: a file is missing or not an image.
        """
        size, orientation = stored_size(self.images[index])
        turned = size[::-1] if orientation > 4 else size
        if turned == size or self.labels is None:
            return turned
        return size if self.read_label_file(self.labels[index]).shape == size else turned

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
    return {
        name: path
        for name, path in named_files(folder, (suffix,))
        if path.name.endswith(suffix) and name.count("/") == depth
    }


def pick_files(
    names: Sequence[str], source: Path | str, *kinds: tuple[Mapping[str, Path], str]
) -> list[list[Path]]:
    """The files of each kind, of each name in the list `source`.

    Args:
        kinds: files by name, and where they should be, of images and labels.

    Raises:
        InputError: a name has no file of a kind.
    """
    for found, expected in kinds:
        missing = [name for name in names if name not in found]
        if missing:
            remarks.fault(
                f"{source}: {len(missing)} of {len(names)} names have no {expected}, the first is "
                f"{missing[0]!r}; add what is missing or take the names out"
            )
    whole = [name for name in names if all(name in found for found, _ in kinds)]
    return [[found[name] for name in whole] for found, _ in kinds]


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
            names = remarks.named([str(found[key].relative_to(root)) for key in alone])
            remarks.fault(
                f"{root}: {len(alone)} of {len(found)} files have no {missing}: {names}; add what "
                "is missing or take them out"
            )
    keys = sorted(images.keys() & labels.keys())
    return [images[key] for key in keys], [labels[key] for key in keys]


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
