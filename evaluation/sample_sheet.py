"""Samples of a data set as one picture: each image beside its label map, with a legend."""

from collections.abc import Sequence

import cv2
import numpy as np

from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.evaluation.visualize import (
    PAPER,
    Palette,
    contact_sheet,
    legend_panel,
    overlay,
    titled,
)

TILE = 384  # pixels: longest side of a tile
PAIRS = 2  # a row


def sample_sheet(
    samples: Sequence[tuple[str, np.ndarray, np.ndarray]],
    classes: Sequence[str],
    palette: Palette,
    titles: Sequence[str] = ("image", "label"),
) -> np.ndarray:
    """The sheet, (height, width, 3) uint8. Ignored pixels are hatched.

    Args:
        samples: name, image (H, W, 3) uint8 RGB and label map (H, W) of each, at least one.
        classes, palette: name and RGB of each class.
        titles: of the columns of images and of labels.
    """
    tiles = []
    for name, image, label in samples:
        drawn = overlay(scaled(image), scaled(label), classes, palette, legend=False)
        share = f"{(label == IGNORE_INDEX).mean():.1%} ignored"
        tiles.append([titled(scaled(image), name), titled(drawn, share)])
    sheet = contact_sheet(grid(tiles, PAIRS), [*titles] * min(PAIRS, len(tiles)))
    everything = np.concatenate([label.ravel() for _, _, label in samples])
    panel = legend_panel(everything, classes, palette, len(sheet))
    height = max(len(sheet), len(panel))
    return np.concatenate([_padded(part, height, part.shape[1]) for part in (sheet, panel)], axis=1)


def scaled(array: np.ndarray) -> np.ndarray:
    """An image or a label map with TILE as its longest side; a small one as often as fits in it."""
    longest = max(array.shape[:2])
    if longest <= TILE:
        return array.repeat(TILE // longest, axis=0).repeat(TILE // longest, axis=1)
    height, width = (max(1, round(TILE * side / longest)) for side in array.shape[:2])
    interpolation = cv2.INTER_AREA if array.ndim == 3 else cv2.INTER_NEAREST_EXACT
    return cv2.resize(array, (width, height), interpolation=interpolation)


def grid(groups: list[list[np.ndarray]], columns: int) -> list[list[np.ndarray]]:
    """Groups of tiles side by side, `columns` of them a row, all tiles brought to one size."""
    tiles = [tile for group in groups for tile in group]
    height, width = (max(tile.shape[side] for tile in tiles) for side in (0, 1))
    tiles = [_padded(tile, height, width) for tile in tiles]
    length = min(columns, len(groups)) * len(groups[0])
    tiles += [np.full((height, width, 3), PAPER, np.uint8)] * (-len(tiles) % length)
    return [tiles[start : start + length] for start in range(0, len(tiles), length)]


def _padded(tile: np.ndarray, height: int, width: int) -> np.ndarray:
    padded = np.full((height, width, 3), PAPER, np.uint8)
    padded[: tile.shape[0], : tile.shape[1]] = tile
    return padded
