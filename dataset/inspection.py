"""What the files of a data set hold: every file is read, checked and counted."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from tqdm import tqdm

from projects.SegFormer.dataset.classification import ClassificationFolder
from projects.SegFormer.dataset.image_files import read_image
from projects.SegFormer.dataset.segmentation import SegmentationDataset
from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.modeling.errors import InputError

Dataset = SegmentationDataset | ClassificationFolder
# Of one file: its index, (height, width), digest of its pixels and pixels of each of the 256 label
# values (class index -> 1 for a class label, None without labels); or index and error.
Look = tuple[int, tuple[int, int], bytes, np.ndarray | None] | tuple[int, str]

COMMON_SIZES = 20  # that are listed
BLOCK = 64  # files that are handed to the threads at once, so that an interruption is quick


class Inspection:
    """Counts of a data set.

    Attributes:
        classes: names.
        kind: what a class is counted in beside images: "pixels", or "images" if an image has one
            class.
        images: number of image files.
        labels: number of images that have a label.
        sizes: number of images of each (height, width).
        class_images: int64 (classes,), images in which each class occurs.
        class_pixels: int64 (classes,), zeros for classification.
        ignored_pixels: pixels of label maps that are IGNORE_INDEX.
        errors: a line for each file that cannot be used; it counts in `images` alone.
        digests: a file for each digest of pixels.
    """

    def __init__(self, dataset: Dataset):
        self.classes = list(dataset.classes)
        self.kind = "images" if isinstance(dataset, ClassificationFolder) else "pixels"
        self.images = len(dataset)
        self.labels = 0
        self.sizes = Counter()
        self.class_images = np.zeros(len(self.classes), np.int64)
        self.class_pixels = np.zeros(len(self.classes), np.int64)
        self.ignored_pixels = 0
        self.errors = []
        self.digests = {}

    def absent_classes(self) -> list[str]:
        """Classes that occur nowhere; none where there are no labels at all."""
        if not self.labels:
            return []
        return [name for name, count in zip(self.classes, self.class_images) if not count]

    def shares(self) -> np.ndarray:
        """Of each class, its share of the labelled pixels, or of the images: (classes,)."""
        counts = self.class_pixels if self.kind == "pixels" else self.class_images
        return counts / max(1, counts.sum())

    def ignored_share(self) -> float:
        """Share of the pixels of label maps that is ignored."""
        return self.ignored_pixels / max(1, self.ignored_pixels + int(self.class_pixels.sum()))

    def size_range(self) -> dict[str, list[int]]:
        """Smallest, median and largest height and width."""
        sizes = np.repeat(np.array([*self.sizes]).reshape(-1, 2), [*self.sizes.values()], axis=0)
        if not len(sizes):
            return {}
        middle = np.sort(sizes, axis=0)[len(sizes) // 2]
        ranges = zip(sizes.min(0).tolist(), middle.tolist(), sizes.max(0).tolist())
        return dict(zip(("height", "width"), map(list, ranges)))

    def to_dict(self) -> dict:
        """All of it but the digests, for JSON."""
        counts = zip(self.classes, self.class_images, self.class_pixels, self.shares())
        classes = [
            {"name": name, "images": int(images), "share": float(share)}
            | ({"pixels": int(pixels)} if self.kind == "pixels" else {})
            for name, images, pixels, share in counts
        ]
        ignored = {"ignored_pixels": self.ignored_pixels, "ignored_share": self.ignored_share()}
        return {
            "images": self.images,
            "labels": self.labels,
            "size_min_median_max": self.size_range(),
            "most_common_sizes": {
                f"{height}x{width}": count
                for (height, width), count in self.sizes.most_common(COMMON_SIZES)
            },
            "share_of": self.kind,
            "classes": classes,
            "absent_classes": self.absent_classes(),
            **(ignored if self.kind == "pixels" else {}),
            "errors": self.errors,
        }

    def _add(self, look: Look, file: str) -> None:
        if isinstance(look[1], str):
            self.errors.append(look[1])
            return
        _, size, digest, counts = look
        self.sizes[size] += 1
        self.digests.setdefault(digest, file)
        if counts is None:
            return
        self.labels += 1
        self.class_images += counts[: len(self.classes)] > 0
        if self.kind == "pixels":
            self.class_pixels += counts[: len(self.classes)]
            self.ignored_pixels += int(counts[IGNORE_INDEX])


def inspect(dataset: Dataset, name: str) -> Inspection:
    """Read all files of the data set in as many threads as there are processors.

    Args:
        name: stands before the progress bar, which goes to standard error.
    """
    found = Inspection(dataset)
    bar = tqdm(
        _looks(dataset), total=len(dataset), desc=name, unit="image", disable=None, file=sys.stderr
    )
    for look in bar:
        found._add(look, str(dataset.images[look[0]]))
    return found


def images_in_both(first: Inspection, second: Inspection) -> list[tuple[str, str]]:
    """Pairs of files, one of each data set, whose images are equal in every pixel."""
    common = first.digests.keys() & second.digests.keys()
    return sorted((first.digests[digest], second.digests[digest]) for digest in common)


def _looks(dataset: Dataset) -> Iterator[Look]:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(dataset), BLOCK):
            block = range(start, min(start + BLOCK, len(dataset)))
            yield from pool.map(partial(_look, dataset), block)


def _look(dataset: Dataset, index: int) -> Look:
    try:
        if isinstance(dataset, ClassificationFolder):
            image, label = read_image(dataset.images[index]), dataset.labels[index]
            counts = np.bincount([label], minlength=len(dataset.classes))
        else:
            image, label = dataset.load(index)
            counts = None if label is None else np.bincount(label.ravel(), minlength=256)
    except InputError as error:
        return index, str(error)
    digest = hashlib.sha1(image, usedforsecurity=False).digest()
    return index, image.shape[:2], digest, counts
