"""Cityscapes in its official folder layout (Cordts et al. 2016, www.cityscapes-dataset.com)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from projects.SegFormer.dataset.segmentation import SegmentationDataset, pair_files
from projects.SegFormer.dataset.transforms import IGNORE_INDEX, Transform
from projects.SegFormer.modeling.errors import InputError

# Facts of the label table in cityscapesScripts: label id, name and colour of the 19 classes that
# are trained and evaluated, in the order of their training ids.
_TABLE = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
CLASSES = tuple(name for _, name, _ in _TABLE)
PALETTE = tuple(colour for _, _, colour in _TABLE)
LAST_LABEL_ID = 33
UNKNOWN = 254  # neither a class nor ignored: `SegmentationDataset` refuses it


def _train_ids() -> np.ndarray:
    """Training id of each label id, uint8 (256,).

    The ids of no class are ignored. So is the license plate: its id, -1, is 255 in a PNG.
    """
    table = np.full(256, UNKNOWN, np.uint8)
    table[: LAST_LABEL_ID + 1] = IGNORE_INDEX
    table[255] = IGNORE_INDEX
    table[[label_id for label_id, _, _ in _TABLE]] = np.arange(len(_TABLE))
    return table


TRAIN_IDS = _train_ids()


class Cityscapes(SegmentationDataset):
    """The finely annotated images, 1024x2048, with the 19 training classes.

    `leftImg8bit/{split}/{city}/*_leftImg8bit.png` are the images. Their labels are
    `gtFine/{split}/{city}/*_gtFine_labelTrainIds.png` where that file is there, else
    `*_gtFine_labelIds.png`, whose 34 ids are mapped. The split "test" has no labels: those on the
    server are secret, and what lies in `gtFine/test` is blank.

    Args:
        root: the folder that holds `leftImg8bit` and `gtFine`.
        split: "train", "val" or "test".
        transforms, seed: see `SegmentationDataset`.

    Raises:
        InputError: nothing in the expected layout, or an image or a label stands alone.
    """

    SPLITS = ("train", "val", "test")
    CLASSES, PALETTE = CLASSES, PALETTE  # also known without the data

    def __init__(
        self, root: str | Path, split: str, transforms: Sequence[Transform], seed: int = 0
    ):
        if split not in self.SPLITS:
            raise InputError(
                f"Cityscapes split {split!r}: expected one of {', '.join(self.SPLITS)}"
            )
        root = Path(root)
        images = _find(root / "leftImg8bit" / split, "_leftImg8bit.png")
        labels = _find(root / "gtFine" / split, "_gtFine_labelIds.png")
        labels |= _find(root / "gtFine" / split, "_gtFine_labelTrainIds.png")
        if not images or not (labels or split == "test"):
            raise InputError(
                f"{root}: {len(images)} Cityscapes images and {len(labels)} label maps found; "
                f"expected leftImg8bit/{split}/<city>/*_leftImg8bit.png and, but for the split "
                f"test, gtFine/{split}/<city>/*_gtFine_labelIds.png in this folder"
            )
        if split == "test":
            pairs = [images[key] for key in sorted(images)], None
        else:
            pairs = pair_files(images, labels, root)
        super().__init__(*pairs, CLASSES, PALETTE, transforms, seed)

    def label_table(self, path: Path) -> np.ndarray | None:
        return TRAIN_IDS if path.name.endswith("_labelIds.png") else None


def _find(folder: Path, suffix: str) -> dict[str, Path]:
    """Files of all cities by "city/name", where the name goes without the suffix."""
    return {
        f"{path.parent.name}/{path.name.removesuffix(suffix)}": path
        for path in folder.glob(f"*/[!.]*{suffix}")
    }
