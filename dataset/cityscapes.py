"""Cityscapes in its official folder layout (Cordts et al. 2016, www.cityscapes-dataset.com)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from projects.SegFormer.dataset.segmentation import (
    SegmentationDataset,
    find_files,
    index_table,
    pair_files,
)
from projects.SegFormer.dataset.transforms import Transform
from projects.SegFormer.modeling.errors import InputError

# Facts of the label table in cityscapesScripts: label id, name, category and colour of the 19
# classes that are trained and evaluated, in the order of their training ids.
_TABLE = (
    (7, "road", "flat", (128, 64, 128)),
    (8, "sidewalk", "flat", (244, 35, 232)),
    (11, "building", "construction", (70, 70, 70)),
    (12, "wall", "construction", (102, 102, 156)),
    (13, "fence", "construction", (190, 153, 153)),
    (17, "pole", "object", (153, 153, 153)),
    (19, "traffic light", "object", (250, 170, 30)),
    (20, "traffic sign", "object", (220, 220, 0)),
    (21, "vegetation", "nature", (107, 142, 35)),
    (22, "terrain", "nature", (152, 251, 152)),
    (23, "sky", "sky", (70, 130, 180)),
    (24, "person", "human", (220, 20, 60)),
    (25, "rider", "human", (255, 0, 0)),
    (26, "car", "vehicle", (0, 0, 142)),
    (27, "truck", "vehicle", (0, 0, 70)),
    (28, "bus", "vehicle", (0, 60, 100)),
    (31, "train", "vehicle", (0, 80, 100)),
    (32, "motorcycle", "vehicle", (0, 0, 230)),
    (33, "bicycle", "vehicle", (119, 11, 32)),
)
LABEL_IDS, CLASSES, CATEGORIES, PALETTE = zip(*_TABLE)

# Training id of each value in a file of label ids. The ids 0 to 33 of no class are ignored. So is
# the license plate: its id, -1, is 255 in a PNG.
TRAIN_IDS = index_table(LABEL_IDS, ignored=[*range(34), 255])


class Cityscapes(SegmentationDataset):
    """The images, 1024x2048, with the 19 training classes.

    `leftImg8bit/{split}/{city}/*_leftImg8bit.png` are the images. Their labels are
    `{labels}/{split}/{city}/*_{labels}_labelTrainIds.png` where that file is there, else
    `*_{labels}_labelIds.png`, whose 34 ids are mapped. "train_extra", 20k images more, has coarse
    labels only. "test" has none: those on the server are secret, and what lies in `gtFine/test` is
    blank.

    Args:
        root: the folder that holds `leftImg8bit` and `gtFine`, for coarse labels `gtCoarse`.
        split: "train", "val", "test" or "train_extra".
        transforms, settings: see `SegmentationDataset`.
        labels: "gtFine", or "gtCoarse" for the coarse labels of "train" and "val".

    Raises:
        InputError: nothing in the expected layout, or an image or a label stands alone.
    """

    SPLITS = ("train", "val", "test", "train_extra")
    CLASSES, PALETTE = CLASSES, PALETTE  # also known without the data
    RESULT_VALUES = np.array(LABEL_IDS, np.uint8)
    categories = CATEGORIES

    def __init__(
        self,
        root: str | Path,
        split: str,
        transforms: Sequence[Transform],
        labels: str = "gtFine",
        **settings,
    ):
        self.check_split(split)
        if labels not in ("gtFine", "gtCoarse"):
            raise InputError(f"Cityscapes labels {labels!r}: expected gtFine or gtCoarse")
        if split == "train_extra":
            labels = "gtCoarse"
        root = Path(root)
        images = find_files(root / "leftImg8bit" / split, "_leftImg8bit.png", depth=1)
        maps = find_files(root / labels / split, f"_{labels}_labelIds.png", depth=1)
        maps |= find_files(root / labels / split, f"_{labels}_labelTrainIds.png", depth=1)
        if not images or not (maps or split == "test"):
            raise InputError(
                f"{root}: {len(images)} Cityscapes images and {len(maps)} label maps found; "
                f"expected leftImg8bit/{split}/<city>/*_leftImg8bit.png and, but for the split "
                f"test, {labels}/{split}/<city>/*_{labels}_labelIds.png in this folder"
            )
        if split == "test":
            pairs = [images[key] for key in sorted(images)], None
        else:
            pairs = pair_files(images, maps, root)
        super().__init__(*pairs, CLASSES, PALETTE, transforms, **settings)

    def label_table(self, path: Path) -> np.ndarray | None:
        return TRAIN_IDS if path.name.endswith("_labelIds.png") else None
