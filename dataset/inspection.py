"""What the files of a data set hold: every file is read, checked and counted."""

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from tqdm import tqdm

from projects.SegFormer.dataset.classification import ClassificationFolder
from projects.SegFormer.dataset.remarks import Heard, listening
from projects.SegFormer.dataset.segmentation import SegmentationDataset
from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.modeling.errors import InputError

Dataset = SegmentationDataset | ClassificationFolder
# Of one file: (height, width), digest of its pixels and pixels of each of the 256 label values
# (class index -> 1 for a class label, None without labels).
Counts = tuple[tuple[int, int], bytes, np.ndarray | None]
ABSENT_SHARE = 0.01  # of pixels that are ignored: with more of them an absent class is told with it
QUICK_LABELS, QUICK_SECONDS = 200, 2.0

COMMON_SIZES = 20  # that are listed
BLOCK_PIXELS = 2**20
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
        copies: (file, copy) of images that are equal in every pixel.
        remarks: files of each remark, see `remarks.py`.
    """

    def __init__(self, dataset: Dataset):
        self.classes = list(dataset.classes)
        self.kind = "images" if isinstance(dataset, ClassificationFolder) else "pixels"
        self.ignore_index = getattr(dataset, "ignore_index", None)
        self.images = len(dataset)
        self.labels = 0
        self.sizes = Counter()
        self.class_images = np.zeros(len(self.classes), np.int64)
        self.class_pixels = np.zeros(len(self.classes), np.int64)
        self.ignored_pixels = 0
        self.errors = []
        self.digests = {}
        self.copies = []
        self.remarks = {}

    def absent_classes(self) -> list[str]:
        """Classes that occur nowhere, but for one that is ignored; none without any labels."""
        if not self.labels:
            return []
        return [
            name
            for index, name in enumerate(self.classes)
            if not self.class_images[index] and index != self.ignore_index
        ]

    def ignored_class(self) -> str | None:
        """What is to be said if a class occurs nowhere, but pixels that count nowhere do: that they
        may be the class. None if nothing is."""
        absent = self.absent_classes()
        present = len(self.classes) - len(absent)
        if not absent or not self.ignored_pixels:
            return None
        if present > 1 and self.ignored_share() < ABSENT_SHARE:
            return None
        index = self.classes.index(absent[0])
        code = f"m[m == {IGNORE_INDEX}] = {index}"
        return (
            f"class {absent[0]!r} ({index}) is in none of {self.labels:,} labels, and "
            f"{self.ignored_share():.1%} of the pixels are {IGNORE_INDEX}, which means 'ignored': "
            f"are your labels 0 and {IGNORE_INDEX}? Write the class index, {IGNORE_INDEX} -> "
            f"{index}, of each: python -c 'import sys, numpy; from PIL import Image; "
            "f = sys.argv[1]; m = "
            f"numpy.array(Image.open(f)); {code}; Image.fromarray(m).save(f)' LABEL.png"
        )

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
            "copies": self.copies,
            "remarks": self.remarks,
        }

    def _add(self, file: str, counts: Counts | None, heard: Heard) -> None:
        self.errors += heard.faults
        for remark, path in heard.remarks:
            self.remarks.setdefault(remark, []).append(path)
        if counts is None:
            return
        size, digest, values = counts
        self.sizes[size] += 1
        if self.digests.setdefault(digest, file) != file:
            self.copies.append((self.digests[digest], file))
        self._count(values)

    def _count(self, values: np.ndarray | None) -> None:
        if values is None:
            return
        self.labels += 1
        self.class_images += values[: len(self.classes)] > 0
        if self.kind == "pixels":
            self.class_pixels += values[: len(self.classes)]
            self.ignored_pixels += int(values[IGNORE_INDEX])


def inspect(dataset: Dataset, name: str) -> Inspection:
    """Read all files of the data set in as many threads as there are processors.

    Args:
        name: stands before the progress bar, which goes to standard error.
    """
    found = Inspection(dataset)
    bar = tqdm(
        _looks(dataset), total=len(dataset), desc=name, unit="image", disable=None, file=sys.stderr
    )
    for index, (counts, heard) in enumerate(bar):
        found._add(str(dataset.images[index]), counts, heard)
    return found


def quick_look(dataset: Dataset) -> str | None:
    """What `Inspection.ignored_class` says after up to QUICK_LABELS labels or QUICK_SECONDS.

    Where these are not all labels, only if no more than one class is in them: others may just be
    rare. Labels that cannot be read are left for the training to tell.
    """
    if getattr(dataset, "labels", None) is None or isinstance(dataset, ClassificationFolder):
        return None
    found = Inspection(dataset)
    chosen = np.unique(np.linspace(0, len(dataset) - 1, QUICK_LABELS).astype(int)).tolist()
    end = time.monotonic() + QUICK_SECONDS

    def look(index: int) -> np.ndarray | None:
        try:
            return value_counts(dataset.load_label(index)) if time.monotonic() < end else None
        except InputError:
            return None

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for values in pool.map(look, chosen):
            found._count(values)
    all_seen = found.labels == len(dataset)
    present = len(dataset.classes) - len(found.absent_classes())
    return found.ignored_class() if all_seen or present <= 1 else None


def images_in_both(first: Inspection, second: Inspection) -> list[tuple[str, str]]:
    """Pairs of files, one of each data set, whose images are equal in every pixel."""
    common = first.digests.keys() & second.digests.keys()
    return sorted((first.digests[digest], second.digests[digest]) for digest in common)


def value_counts(label: np.ndarray) -> np.ndarray:
    """How many pixels have each of the 256 values: int64 (256,). By rows, as NumPy needs 8 bytes a
    pixel for it."""
    rows = max(1, BLOCK_PIXELS // label.shape[1])
    parts = (label[top : top + rows].ravel() for top in range(0, len(label), rows))
    return sum(np.bincount(part, minlength=256) for part in parts)


def _looks(dataset: Dataset) -> Iterator[tuple[Counts | None, Heard]]:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(dataset), BLOCK):
            block = range(start, min(start + BLOCK, len(dataset)))
            yield from pool.map(partial(_look, dataset), block)


def _look(dataset: Dataset, index: int) -> tuple[Counts | None, Heard]:
    with listening() as heard:
        try:
            image, label = dataset.load(index)
        except InputError as error:
            heard.faults.append(str(error))
            return None, heard
    if label is not None and isinstance(dataset, ClassificationFolder):
        label = np.bincount([label], minlength=len(dataset.classes))
    elif label is not None:
        label = value_counts(label)
    digest = hashlib.sha1(image, usedforsecurity=False).digest()
    return (image.shape[:2], digest, label), heard
