"""Pascal VOC 2012 segmentation (Everingham et al.), also with the labels of SBD ("trainaug")."""

from collections.abc import Sequence
from pathlib import Path

from projects.SegFormer.dataset.list_files import read_names
from projects.SegFormer.dataset.segmentation import (
    SegmentationDataset,
    find_files,
    pick_files,
)
from projects.SegFormer.dataset.transforms import Transform
from projects.SegFormer.modeling.errors import InputError

# Facts of the VOC development kit: class names and the first colours of its colour map.
_TABLE = (
    ("background", (0, 0, 0)),
    ("aeroplane", (128, 0, 0)),
    ("bicycle", (0, 128, 0)),
    ("bird", (128, 128, 0)),
    ("boat", (0, 0, 128)),
    ("bottle", (128, 0, 128)),
    ("bus", (0, 128, 128)),
    ("car", (128, 128, 128)),
    ("cat", (64, 0, 0)),
    ("chair", (192, 0, 0)),
    ("cow", (64, 128, 0)),
    ("diningtable", (192, 128, 0)),
    ("dog", (64, 0, 128)),
    ("horse", (192, 0, 128)),
    ("motorbike", (64, 128, 128)),
    ("person", (192, 128, 128)),
    ("pottedplant", (0, 64, 0)),
    ("sheep", (128, 64, 0)),
    ("sofa", (0, 192, 0)),
    ("train", (128, 192, 0)),
    ("tvmonitor", (0, 64, 128)),
)
CLASSES, PALETTE = zip(*_TABLE)
LISTS = "ImageSets/Segmentation"


class PascalVOC(SegmentationDataset):
    """1,464 images for training, 1,449 for validation; 10,582 for training in "trainaug".

    `ImageSets/Segmentation/{split}.txt` names the images of a split: `JPEGImages/{name}.jpg`. Their
    labels are `SegmentationClass/{name}.png`, of which a palette image counts by its indices: 0 to
    20, background first, 255 for the border of an object. In "trainaug" the labels of
    `SegmentationClassAug` go before them, and where there is no trainaug.txt, its names are those
    of train.txt and aug.txt. "test" has no labels.

    Args:
        root: the folder VOCdevkit/VOC2012.
        split: "train", "val", "trainval", "trainaug" or "test".
        transforms, settings: see `SegmentationDataset`.

    Raises:
        InputError: no list of the split, or a name in it without an image or a label.
    """

    SPLITS = ("train", "val", "trainval", "trainaug", "test")
    CLASSES, PALETTE = CLASSES, PALETTE  # also known without the data

    def __init__(self, root: str | Path, split: str, transforms: Sequence[Transform], **settings):
        self.check_split(split)
        root = Path(root)
        lists = _lists(root, split)
        images = find_files(root / "JPEGImages", ".jpg")
        names = sorted({name for path in lists for name in read_names(path, images)})
        source = " and ".join(str(path) for path in lists)
        kinds = [(images, "JPEGImages/<name>.jpg")]
        if split != "test":
            labels = find_files(root / "SegmentationClass", ".png")
            expected = "SegmentationClass/<name>.png"
            if split == "trainaug":
                labels |= find_files(root / "SegmentationClassAug", ".png")
                expected += " or SegmentationClassAug/<name>.png"
            kinds.append((labels, expected))
        images, *labels = pick_files(names, source, *kinds)
        labels = labels[0] if labels else None
        super().__init__(images, labels, CLASSES, PALETTE, transforms, **settings)


def _lists(root: Path, split: str) -> list[Path]:
    """The list files of the names of a split."""
    lists = [root / LISTS / f"{split}.txt"]
    if split == "trainaug" and not lists[0].is_file():
        lists = [root / LISTS / "train.txt", root / LISTS / "aug.txt"]
    for path in lists:
        if not path.is_file():
            either = " (or train.txt and aug.txt)" if split == "trainaug" else ""
            raise InputError(
                f"{root}: no {LISTS}/{path.name}; expected the folder VOCdevkit/VOC2012 with "
                f"{LISTS}/{split}.txt{either}, JPEGImages and SegmentationClass"
            )
    return lists
