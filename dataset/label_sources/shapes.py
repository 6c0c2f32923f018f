"""Polygons and masks of single objects, drawn one after the other to a label map."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from projects.SegFormer.dataset.image_files import turn
from projects.SegFormer.dataset.label_sources.source import (
    BACKGROUND,
    Labelled,
    Source,
    canvas,
    class_indices,
    palette_of,
    read_as,
)
from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.modeling.errors import InputError

FARTHEST = 2**17  # pixels that a corner may lie outside of an image
EDGES = 256  # of a polygon at once: each may cross all rows

Size = tuple[int, int]  # height, width


class Shape(NamedTuple):
    """What is drawn on an image.

    Attributes:
        label: its class; None for pixels that count nowhere.
        polygons: (N, 2) each, x and y of the corners, where (0, 0) is the outer corner of the first
            pixel; all of them are the shape.
        mask: gives the shape as (height, width) bool, of an image of this size.
    """

    label: str | None
    polygons: Sequence[np.ndarray] = ()
    mask: Callable[[Size], np.ndarray] | None = None


class Drawing(NamedTuple):
    """The shapes of an image in the order in which they are drawn.

    Attributes:
        name: of the image in the data set.
        document: the file that says all this.
        size: (height, width) that the shapes are meant for; None for the image's.
    """

    name: str
    image: Path
    document: Path
    shapes: list[Shape]
    size: Size | None


def drawn_source(
    whose: str,
    kind: str,
    drawings: list[Drawing],
    notes: list[str],
    ignored: set[str],
    names: Sequence[str] = (),
) -> Source:
    """The source of what a program, `whose`, has written; what no shape covers is background.

    Args:
        ignored: classes that count nowhere.
        names: the classes in their order; those of the shapes, sorted, without.
    Raises InputError: too many classes, or none; nothing is drawn; two documents have an image.
    """
    names = names or sorted({it.label for drawing in drawings for it in drawing.shapes if it.label})
    if not any(it.polygons or it.mask for drawing in drawings for it in drawing.shapes):
        told = "; ".join([f"nothing is drawn on any of {len(drawings)} images", *notes])
        raise InputError(f"{kind}: {told}")
    documents = {}
    for it in drawings:
        if (other := documents.setdefault(it.image, it.document)) != it.document:
            raise InputError(f"{it.image} is in {other} and in {it.document}: leave one of them")
    classes, index = class_indices([BACKGROUND, *names], ignored, kind)
    images = [
        Labelled(drawing.name, drawing.image, partial(draw, drawing, index, whose))
        for drawing in drawings
    ]
    return Source(kind, images, classes, palette_of(classes), notes)


def draw(drawing: Drawing, index: dict[str, int], whose: str) -> np.ndarray:
    """The label map of an image, (H, W) uint8, as the image is shown."""
    size, orientation = canvas(drawing.image, drawing.size)
    label = np.full(size, index[BACKGROUND], np.uint8)
    with read_as(whose, drawing.document):
        for shape in drawing.shapes:
            value = IGNORE_INDEX if shape.label is None else index[shape.label]
            if shape.mask:
                label[_mask_of(shape, size, drawing)] = value
            for polygon in shape.polygons:
                label[filled(polygon, size)] = value
    return turn(label, orientation)


def _mask_of(shape: Shape, size: Size, drawing: Drawing) -> np.ndarray:
    """Raises InputError: what encodes it is of another size."""
    try:
        return shape.mask(size)
    except InputError as error:
        raise InputError(f"{drawing.document}: {drawing.image.name}: {error}") from error


def filled(corners: np.ndarray, size: Size) -> np.ndarray:
    """The pixels, (H, W) bool, whose centres lie in a polygon, (N, 2), by the even-odd rule."""
    height, width = size
    toggles = np.zeros((height, width + 1), bool)
    corners = corners.clip(-FARTHEST, FARTHEST)
    edges = np.stack([corners, np.roll(corners, -1, axis=0)], 1)  # (N, 2 ends, x and y)
    for part in np.array_split(edges, -(-len(edges) // EDGES)):
        (x, y), (to_x, to_y) = part.transpose(1, 2, 0)
        ends = np.sort([y, to_y], axis=0).clip(0, height)
        first, last = np.ceil(ends - 0.5).astype(int)  # rows with a centre between them
        edge = np.repeat(np.arange(len(part)), last - first)
        rows = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
        slope = (to_x - x)[edge] / (to_y - y)[edge]
        columns = np.ceil(x[edge] + (rows + 0.5 - y[edge]) * slope - 0.5).clip(0, width)
        np.logical_xor.at(toggles, (rows, columns.astype(int)), True)
    top, bottom = np.ceil([corners[:, 1].min(), corners[:, 1].max()]).clip(0, height).astype(int)
    own = toggles[max(top - 1, 0) : bottom]
    np.logical_xor.accumulate(own, axis=1, out=own)
    return toggles[:, :-1]


def outlined(corners: np.ndarray, size: Size) -> np.ndarray:
    """The pixels, (H, W) bool, of a polygon, (N, 2), whose corners are pixels that are in it."""
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [np.rint(corners).clip(-FARTHEST, FARTHEST).astype(np.int32)], 1)
    return mask > 0


def polygon(numbers) -> np.ndarray:
    """(N, 2) of x, y, x, y or pairs of them. Raises ValueError: no number, or no corners."""
    corners = np.array(numbers, np.float64).reshape(-1, 2)
    if not len(corners) or not np.isfinite(corners).all():
        raise ValueError("no corners")
    return corners


def rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """The corners of a rectangle."""
    return polygon([left, top, right, top, right, bottom, left, bottom])


def ellipse(x: float, y: float, width: float, height: float) -> np.ndarray:
    """64 corners of an ellipse with these half axes."""
    turns = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return polygon(np.stack([x + width * np.cos(turns), y + height * np.sin(turns)], 1))


def turned(corners: np.ndarray, centre: Sequence[float], degrees: float) -> np.ndarray:
    """Corners, (N, 2), turned clockwise about a point."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return (corners - centre) @ [[cosine, sine], [-sine, cosine]] + np.array(centre)


def placed(
    part: Callable[[], np.ndarray], left: int, top: int, height: int, width: int, size: Size
) -> np.ndarray:
    """The mask of an image, (H, W) bool, of one of a rectangle in it.

    Raises InputError: the rectangle is not within the image; `part` is not called then.
    """
    mask = np.zeros(size, bool)
    window = mask[top : top + height, left : left + width]
    if min(left, top) < 0 or window.shape != (height, width):
        raise InputError(f"a mask of {height}x{width} at ({left}, {top}) in an image of {size}")
    window[:] = part()
    return mask


def of_runs(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """Runs of 0 and 1 in turns, row by row: (height, width) bool. Raises InputError: they are not
    so many pixels."""
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise InputError(f"a run-length mask of {sum(runs)} pixels, not {height}x{width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def decode_rle(counts: str | Sequence[int], height: int, width: int) -> np.ndarray:
    """COCO's run-length mask: runs of 0 and 1 in turns, column by column: (height, width) bool.

    A text holds the runs as numbers of base 32 with the lowest digit first; bit 5 says that digits
    follow, bit 4 of the last is the sign; from the fourth on they are differences to the last run
    but one (maskApi.c of cocoapi).
    """
    runs = list(counts) if not isinstance(counts, str) else []
    if isinstance(counts, str):
        value = shift = 0
        for letter in counts:
            digit = ord(letter) - 48
            value |= (digit & 31) << shift
            shift += 5
            if not digit & 32:
                if digit & 16:
                    value -= 1 << shift
                runs.append(value + (runs[-2] if len(runs) > 2 else 0))
                value = shift = 0
    return of_runs(runs, width, height).T
