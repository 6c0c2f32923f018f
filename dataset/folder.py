"""Anyone's data: a folder of images and a folder of label maps."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

from projects.SegFormer.dataset import remarks
from projects.SegFormer.dataset.folders import named_files
from projects.SegFormer.dataset.image_files import IMAGE_SUFFIXES
from projects.SegFormer.dataset.segmentation import SegmentationDataset, pair_files
from projects.SegFormer.dataset.transforms import Transform
from projects.SegFormer.modeling.errors import InputError


class SegmentationFolder(SegmentationDataset):
    """Images and label PNGs in two parallel trees, matched by relative path without the suffix.

        {root}/{images_dir}/{split}/any/path/name.jpg      (IMAGE_SUFFIXES)
        {root}/{annotations_dir}/{split}/any/path/name.png

    Args:
        palette: an RGB triple per class; `distinct_palette` if None.
        classes, transforms, settings: see `SegmentationDataset`.

    Raises:
        InputError: nothing in the expected layout, an image or a label stands alone, or two images
            have the same name but for the suffix.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: Sequence[str],
        transforms: Sequence[Transform],
        palette: Sequence[Sequence[int]] | None = None,
        images_dir: str = "images",
        annotations_dir: str = "annotations",
        **settings,
    ):
        root = Path(root)
        images = _find(root / images_dir / split, IMAGE_SUFFIXES)
        labels = _find(root / annotations_dir / split, (".png",))
        if not images or not labels:
            raise InputError(
                f"{root}: {len(images)} images and {len(labels)} label maps found; expected "
                f"{images_dir}/{split}/<name>.jpg (or {', '.join(IMAGE_SUFFIXES[1:])}) and "
                f"{annotations_dir}/{split}/<name>.png in this folder"
            )
        super().__init__(
            *pair_files(images, labels, root),
            classes,
            distinct_palette(len(classes)) if palette is None else palette,
            transforms,
            **settings,
        )


def distinct_palette(size: int) -> list[tuple[int, int, int]]:
    """RGB colours that are far apart: hues by the golden ratio, in three levels of brightness."""
    colours = []
    for i in range(size):
        colour = colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.9, 0.5)[i % 2], (1, 0.7, 0.45)[i % 3])
        colours.append(tuple(round(255 * channel) for channel in colour))
    return colours


def _find(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files with one of the suffixes, at any depth, by relative path without the suffix."""
    found = {}
    for key, path in named_files(folder, suffixes):
        if key in found:
            remarks.fault(
                f"{path}: the same name as {found[key].name} but for the suffix; "
                "they would share a label, so rename or remove one"
            )
        found.setdefault(key, path)
    return found
