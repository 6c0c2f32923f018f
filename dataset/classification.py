"""Images in one folder a class, read and transformed; ImageNet-1K among them."""

import os
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path

import numpy as np

from projects.SegFormer.dataset import remarks
from projects.SegFormer.dataset.folders import is_visible, walk
from projects.SegFormer.dataset.image_files import IMAGE_SUFFIXES, read_stored
from projects.SegFormer.dataset.list_files import read_lines, read_rows
from projects.SegFormer.dataset.sampler import Draw
from projects.SegFormer.dataset.transforms import Compose, Transform
from projects.SegFormer.modeling.errors import InputError

NO_CLASS = -1  # the label of a sample that counts nowhere


class ClassificationFolder:
    """Images of one split, `{root}/{split}/{class}/any/path/name.jpg` (or another IMAGE_SUFFIXES).

    The classes are the folders in `{root}/train`, sorted by name, whatever the split: so an index
    means the same in all of them.

    Attributes:
        classes: names in the order of their indices.
        images: file names, plain text: a million `Path`s would take half a gigabyte.
        labels: int64 (len(images),), the class index of each image.

    Args:
        root: the folder that holds the splits.
        split: "train", "val" or the name of another folder in `root`.
        transforms: applied one after the other; see `classification_transforms.py`.
        seed: of the augmentation. With the position in the stream of samples it decides all random
            choices: not the worker, the rank or an interruption.
        num_channels: the model's; 3.

    Images are taken as their pixels are stored, as where the published accuracies come from: an
    EXIF orientation is not applied.

    Raises:
        InputError: nothing in the expected layout, a class without images, or one that is not in
            the split train.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        transforms: Sequence[Transform],
        seed: int = 0,
        num_channels: int = 3,
    ):
        if num_channels != 3:
            raise InputError(
                f"cfg.num_channels={num_channels}: images of classes are augmented by Pillow, in 3 "
                "channels; set cfg.num_channels=3"
            )
        self.num_channels = num_channels
        root = Path(root)
        self.transforms = Compose(transforms)
        self.seed = seed
        folders = _folders(root / "train")
        self.classes = self.class_names(root)
        if not folders:
            raise InputError(
                f"{root / 'train'}: no folder of a class in it; expected <class>/<name>.jpg (or "
                f"{', '.join(IMAGE_SUFFIXES[1:])}), and the other splits beside train"
            )
        samples = self.find(root, split)
        indices = {name: index for index, name in enumerate(folders)}
        unknown = sorted({name for _, name in samples} - indices.keys())
        if unknown:
            remarks.fault(
                f"{root / split}: class {unknown[0]!r} ({len(unknown)} such) is not among the "
                f"{len(folders)} of {root / 'train'}; put it there too or take it out"
            )
            samples = [sample for sample in samples if sample[1] in indices]
        self.images = [image for image, _ in samples]
        self.labels = np.array([indices[name] for _, name in samples], np.int64)

    @classmethod
    def class_names(cls, root: str | Path) -> list[str]:
        """In the order of their indices; none where there is no data."""
        return _folders(Path(root) / "train")

    def find(self, root: Path, split: str) -> list[tuple[str, str]]:
        """File and class name of every image of the split, sorted."""
        samples = []
        for name in _folders(root / split):
            images = _images(root / split / name)
            if not images:
                remarks.fault(
                    f"{root / split / name}: no image in the folder of this class; expected "
                    f"<name>.jpg (or {', '.join(IMAGE_SUFFIXES[1:])}), or take the folder out"
                )
            samples += zip(images, repeat(name))
        if not samples:
            raise InputError(
                f"{root / split}: no folder of a class in it; expected <class>/<name>.jpg as in "
                f"{root / 'train'}"
            )
        return samples

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Draw | int) -> tuple[np.ndarray, int]:
        """A transformed sample: image float32 (3, H, W), class index.

        A plain index stands for the draw of that index at that position. The label of a draw that
        is not valid is NO_CLASS, so that it counts nowhere. Threads may call this at once.

        Raises:
            InputError: the file cannot be decoded.
        """
        draw = key if isinstance(key, Draw) else Draw(key, key)
        image, label = self.load(draw.index)
        label = label if draw.valid else NO_CLASS
        rng = np.random.default_rng((self.seed, draw.position))
        image, _ = self.transforms(image, None, rng)  # None: there is no label map to transform
        return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32), label

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Image (H, W, 3) uint8, untransformed, and class index.

        Raises:
            InputError: the file cannot be decoded.
        """
        return read_stored(self.images[index])[0], int(self.labels[index])


class ImageNet(ClassificationFolder):
    """ImageNet-1K (Russakovsky et al. 2015, image-net.org): a folder a WordNet id.

    Sorted ids are the order of the classes in all published weights. The images of the split val
    may be in folders as those of train are, or all in one, as they are downloaded: then
    LOC_val_solution.csv, which comes with Kaggle's download, tells their classes. With its
    LOC_synset_mapping.txt `classes` are readable, "n01440764 tench". Both files may be in `root` or
    in a folder above it, as in that download, where `root` is ILSVRC/Data/CLS-LOC.

    Args, Raises: see ClassificationFolder.
    """

    SOLUTION = "LOC_val_solution.csv"
    NAMES = "LOC_synset_mapping.txt"

    @classmethod
    def class_names(cls, root: str | Path) -> list[str]:
        ids = super().class_names(root)
        path = _at_or_above(Path(root), cls.NAMES) if ids else None
        if path is None:
            return ids
        # "n01440764 tench, Tinca tinca": the first of several names is enough.
        lines = read_lines(path, "<WordNet id> <name>, ... in each line")
        names = {line.partition(" ")[0]: line.partition(",")[0] for line in lines}
        return [names.get(name, name) for name in ids]

    def find(self, root: Path, split: str) -> list[tuple[str, str]]:
        folder = root / split
        images = [] if _folders(folder) else _images(folder)
        if not images:
            return super().find(root, split)
        path = _at_or_above(root, self.SOLUTION)
        if path is None:
            raise InputError(
                f"{folder}: {len(images)} images without folders of their classes; put Kaggle's "
                f"{self.SOLUTION} into {root}, or move each image to {split}/<WordNet id>/"
            )
        # "ILSVRC2012_val_00048981,n03995372 85 1 499 272": the id, then boxes.
        expected = "<name without suffix>,<WordNet id> ..."
        rows = [row for row in read_rows(path, expected) if len(row) == 2]
        classes = {name: prediction.partition(" ")[0] for name, prediction in rows}
        unknown = [image for image in images if Path(image).stem not in classes]
        if unknown:
            remarks.fault(
                f"{path}: no line for {Path(unknown[0]).name} ({len(unknown)} of {len(images)} "
                f"images in {folder}); expected {expected}"
            )
            images = [image for image in images if Path(image).stem in classes]
        return [(image, classes[Path(image).stem]) for image in images]


def _folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted; none if it is not there."""
    try:
        with os.scandir(folder) as entries:
            found = (e.name for e in entries if e.is_dir() and is_visible(e.name))
            return sorted(found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _images(folder: Path) -> list[str]:
    """Image files at any depth, sorted."""
    return sorted(walk(folder, IMAGE_SUFFIXES))


def _at_or_above(root: Path, name: str) -> Path | None:
    """The file `name` in `root` or in one of the three folders above it."""
    folder = root.absolute()
    candidates = (above / name for above in (folder, *folder.parents[:3]))
    return next((path for path in candidates if path.is_file()), None)
