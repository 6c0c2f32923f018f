"""ADE20K in the form of the scene parsing benchmark, SceneParse150 (Zhou et al. 2017)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from projects.SegFormer.dataset.class_tables import read_class_table
from projects.SegFormer.dataset.segmentation import (
    SegmentationDataset,
    find_files,
    index_table,
    pair_files,
)
from projects.SegFormer.dataset.transforms import Transform
from projects.SegFormer.modeling.errors import InputError

LABEL_IDS, CLASSES, PALETTE = read_class_table("ade20k")
CLASS_INDICES = index_table(LABEL_IDS, ignored=[0])


class ADE20K(SegmentationDataset):
    """20,210 images for training, 2,000 for validation, with 150 classes.

    `images/{split}/*.jpg` are the images, `annotations/{split}/*.png` their labels: 1 to 150 for
    the classes, 0 for everything else, which is ignored. The split "testing" has no labels; its
    download `release_test/testing` belongs in `images/testing`.

    Args:
        root: the folder ADEChallengeData2016, which holds `images` and `annotations`.
        split: "training", "validation" or "testing".
        transforms, settings: see `SegmentationDataset`.

    Raises:
        InputError: nothing in the expected layout, or an image or a label stands alone.
    """

    SPLITS = ("training", "validation", "testing")
    CLASSES, PALETTE = CLASSES, PALETTE  # also known without the data
    RESULT_VALUES = np.array(LABEL_IDS, np.uint8)

    def __init__(self, root: str | Path, split: str, transforms: Sequence[Transform], **settings):
        self.check_split(split)
        root = Path(root)
        images = find_files(root / "images" / split, ".jpg")
        labels = find_files(root / "annotations" / split, ".png")
        if not images or not (labels or split == "testing"):
            raise InputError(
                f"{root}: {len(images)} ADE20K images and {len(labels)} label maps found; expected "
                f"images/{split}/*.jpg and, but for the split testing, annotations/{split}/*.png "
                "in this folder, ADEChallengeData2016"
            )
        if split == "testing":
            pairs = [images[key] for key in sorted(images)], None
        else:
            pairs = pair_files(images, labels, root)
        super().__init__(*pairs, CLASSES, PALETTE, transforms, **settings)

    def label_table(self, path: Path) -> np.ndarray:
        return CLASS_INDICES
