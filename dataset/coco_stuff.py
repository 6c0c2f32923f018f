"""COCO-Stuff (Caesar et al. 2018): all of COCO 2017, and the 10k images that came first.

Both have the same 171 classes: 80 things and 91 stuffs with ids from 1 to 182. Eleven ids in
between, things that COCO never outlined, stand in no label.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from projects.SegFormer.dataset.class_tables import read_class_table
from projects.SegFormer.dataset.list_files import read_names
from projects.SegFormer.dataset.matlab_files import read_matrix
from projects.SegFormer.dataset.segmentation import (
    SegmentationDataset,
    find_files,
    index_table,
    pair_files,
    pick_files,
)
from projects.SegFormer.dataset.transforms import IGNORE_INDEX, Transform
from projects.SegFormer.modeling.errors import InputError

LABEL_IDS, CLASSES, PALETTE = read_class_table("coco_stuff")
PIXEL_VALUES = tuple(label_id - 1 for label_id in LABEL_IDS)  # in the PNGs of COCO-Stuff
CONVERTED = "_labelTrainIds.png"  # what mmsegmentation's converters write beside the original

PIXEL_MAP_INDICES = index_table(PIXEL_VALUES, ignored=[IGNORE_INDEX])
MAT_INDICES = index_table(LABEL_IDS, ignored=[0])
CONVERTED_10K_INDICES = index_table(range(1, len(CLASSES) + 1), ignored=[0])


class COCOStuff(SegmentationDataset):
    """COCO-Stuff 164k: 118,287 images for training, 5,000 for validation.

    `images/{split}/*.jpg` are the images, the pixel maps `annotations/{split}/*.png` their labels:
    id - 1, and 255 where there is none. What mmsegmentation's converter makes of them,
    `*_labelTrainIds.png` with the indices of the classes, goes before them.

    Args:
        root: the folder that holds `images` and `annotations`.
        split: "train2017" or "val2017".
        transforms, settings: see `SegmentationDataset`.

    Raises:
        InputError: nothing in the expected layout, or an image or a label stands alone.
    """

    SPLITS = ("train2017", "val2017")
    CLASSES, PALETTE = CLASSES, PALETTE  # also known without the data
    RESULT_VALUES = np.array(PIXEL_VALUES, np.uint8)

    def __init__(self, root: str | Path, split: str, transforms: Sequence[Transform], **settings):
        self.check_split(split)
        root = Path(root)
        images = find_files(root / "images" / split, ".jpg")
        maps = find_files(root / "annotations" / split, ".png")
        converted = find_files(root / "annotations" / split, CONVERTED)
        labels = {key: path for key, path in maps.items() if not path.name.endswith(CONVERTED)}
        labels |= converted
        if not images or not labels:
            raise InputError(
                f"{root}: {len(images)} COCO-Stuff images and {len(labels)} label maps found; "
                f"expected images/{split}/*.jpg and annotations/{split}/*.png (of "
                "stuffthingmaps_trainval2017) in this folder"
            )
        super().__init__(
            *pair_files(images, labels, root), CLASSES, PALETTE, transforms, **settings
        )

    def label_table(self, path: Path) -> np.ndarray | None:
        return None if path.name.endswith(CONVERTED) else PIXEL_MAP_INDICES


class COCOStuff10k(SegmentationDataset):
    """COCO-Stuff 10k, version 1.1: 9,000 images for training, 1,000 for testing.

    `imageLists/{split}.txt` names the images of a split: `images/{name}.jpg`. Their labels are
    `annotations/{name}.mat`: `S` holds ids, 0 is unlabelled. What mmsegmentation's converter makes
    of them, `{name}_labelTrainIds.png` with 0 for unlabelled and 1 to 171, goes before the .mat.
    It may lie in `annotations` or, as the converter puts labels and images, one folder deeper in
    `{split}2014`.

    Args:
        root: the folder that holds `images`, `annotations` and `imageLists`.
        split: "train" or "test".
        transforms, settings: see `SegmentationDataset`.

    Raises:
        InputError: no list of the split, or a name in it without an image or a label.
    """

    SPLITS = ("train", "test")
    CLASSES, PALETTE = CLASSES, PALETTE  # also known without the data
    RESULT_VALUES = np.array(LABEL_IDS, np.uint8)

    def __init__(self, root: str | Path, split: str, transforms: Sequence[Transform], **settings):
        self.check_split(split)
        root = Path(root)
        image_list = root / "imageLists" / f"{split}.txt"
        if not image_list.is_file():
            raise InputError(
                f"{root}: no imageLists/{split}.txt; expected COCO-Stuff 10k in this folder: "
                "imageLists/*.txt, images/*.jpg and annotations/*.mat"
            )
        images, labels = {}, find_files(root / "annotations", ".mat")
        for folder in ("", f"{split}2014"):
            images |= find_files(root / "images" / folder, ".jpg")
            labels |= find_files(root / "annotations" / folder, CONVERTED)
        names = sorted(set(read_names(image_list, images)))
        pairs = pick_files(
            names,
            image_list,
            (images, "images/<name>.jpg"),
            (labels, "annotations/<name>.mat"),
        )
        super().__init__(*pairs, CLASSES, PALETTE, transforms, **settings)

    def read_label_file(self, path: Path) -> np.ndarray:
        return _read_mat(path) if path.suffix == ".mat" else super().read_label_file(path)

    def label_table(self, path: Path) -> np.ndarray:
        return MAT_INDICES if path.suffix == ".mat" else CONVERTED_10K_INDICES


def _read_mat(path: Path) -> np.ndarray:
    """The matrix `S` of a MATLAB file, uint8 (H, W).

    Raises:
        InputError: the file is missing, damaged, or has no `S` of whole numbers from 0 to 255.
    """
    values = read_matrix(path, "S")
    if values is None or values.ndim != 2:
        raise InputError(f"{path}: no matrix S of numbers in it; expected the label ids there")
    label = values.astype(np.uint8)
    if (label != values).any():
        raise InputError(
            f"{path}: values from {values.min()} to {values.max()} in S; expected whole numbers "
            "from 0 to 255"
        )
    return label
