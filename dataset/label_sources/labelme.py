"""LabelMe: a JSON file beside each image, with the shapes on it."""

import base64
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from projects.SegFormer.dataset.image_files import decode_values
from projects.SegFormer.dataset.label_sources.mask_files import split_name
from projects.SegFormer.dataset.label_sources.shapes import (
    Drawing,
    Shape,
    drawn_source,
    ellipse,
    outlined,
    placed,
    polygon,
    rectangle,
)
from projects.SegFormer.dataset.label_sources.source import BACKGROUND, Files, Source, read_as
from projects.SegFormer.modeling.errors import InputError

MEANT = {"_background_": BACKGROUND, "__ignore__": None}


def _circle(corners: np.ndarray) -> np.ndarray:
    """Of its centre and a point on it."""
    radius = np.linalg.norm(corners[1] - corners[0])
    return ellipse(*corners[0], radius, radius)


def _mask(shape: dict, document: Path) -> partial:
    """A PNG in base 64, of the rectangle between two points; their pixels are in it."""
    (left, top), (right, bottom) = np.rint(polygon(shape["points"])).astype(int).tolist()
    data = base64.b64decode(shape["mask"], validate=True)

    def part() -> np.ndarray:
        return decode_values(document, data) > 0

    return partial(placed, part, left, top, bottom - top + 1, right - left + 1)


OUTLINES = {
    "polygon": lambda corners: corners,
    "rectangle": lambda corners: rectangle(*corners.min(0), *corners.max(0)),
    "circle": _circle,
}


def is_labelme(content) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def read_labelme(documents: list[tuple[Path, dict]], files: Files, ignored: set[str]) -> Source:
    """Shapes are drawn in their order. Raises InputError: an image is missing."""
    drawings, other = [], Counter()
    for document, content in documents:
        with read_as("LabelMe", document):
            shapes = []
            for it in content["shapes"]:
                kind, label = it.get("shape_type") or "polygon", str(it["label"])
                if kind == "mask":
                    shapes.append(Shape(MEANT.get(label, label), mask=_mask(it, document)))
                elif kind in OUTLINES:
                    outline = OUTLINES[kind](polygon(it["points"]))
                    shapes.append(Shape(MEANT.get(label, label), mask=partial(outlined, outline)))
                else:
                    other[kind] += 1
            written = str(content.get("imagePath") or "")
            size = content.get("imageHeight"), content.get("imageWidth")
        near = document.parent
        beside = partial(files.find, prefer=lambda file, near=near: file.parent == near)
        image = (written and beside(written, near)) or beside(document.stem, near)
        if image is None:
            raise InputError(f"{document}: its image is neither at imagePath nor beside it")
        _, name = split_name(document.relative_to(files.folder))
        drawings.append(Drawing(name, image, document, shapes, size if all(size) else None))
    notes = [f"{count} shapes of the type {kind}: left out" for kind, count in other.items()]
    return drawn_source("LabelMe", "LabelMe's JSON", drawings, notes, ignored)
