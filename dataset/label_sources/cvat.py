"""CVAT's XML, "CVAT for images 1.1": polygons, boxes, ellipses and masks."""

from collections import Counter
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from projects.SegFormer.dataset.label_sources.mask_files import split_name
from projects.SegFormer.dataset.label_sources.shapes import (
    Drawing,
    Shape,
    drawn_source,
    ellipse,
    of_runs,
    placed,
    polygon,
    rectangle,
    turned,
)
from projects.SegFormer.dataset.label_sources.source import Files, Source, read_as
from projects.SegFormer.modeling.bounds import LABEL_JSON_BYTES
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes, reason

IMAGES = b"<annotations"


def read_tree(file: Path) -> ElementTree.Element | None:
    """The annotations in an XML file; None for others, such as VOC's of boxes.

    Raises InputError: it is damaged, or too large.
    """
    data = read_bytes(file, LABEL_JSON_BYTES)
    if IMAGES not in data[:4096] or b"<!DOCTYPE" in data:  # which would define what it repeats
        return None
    try:
        root = ElementTree.fromstring(data.decode())
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not XML ({reason(error)})") from error
    return root if root.tag == "annotations" and root.find("image") is not None else None


def read_cvat(documents: list, files: Files, ignored: set[str]) -> Source:
    """Shapes are drawn by their z_order, then as they come. Raises InputError: no such image."""
    drawings, names, other = [], [], Counter()
    for document, root in documents:
        with read_as("CVAT", document):
            names += [name.text for name in root.iterfind("meta//label/name") if name.text]
            for entry in root.iterfind("image"):
                image = files.find(entry.get("name"), document.parent)
                if image is None:
                    raise InputError(f"{document}: no image {entry.get('name')} in {files.folder}")
                shapes = []
                for it in sorted(entry, key=lambda it: int(it.get("z_order", 0))):
                    if it.tag in SHAPES:
                        shapes.append(SHAPES[it.tag](it))
                    else:
                        other[it.tag] += 1
                size = int(entry.get("height")), int(entry.get("width"))
                _, name = split_name(image.relative_to(files.folder))
                drawings.append(Drawing(name, image, document, shapes, size))
    names += sorted({shape.label for drawing in drawings for shape in drawing.shapes} - {*names})
    notes = [f"{count} shapes of the type {kind}: left out" for kind, count in other.items()]
    return drawn_source("CVAT", "CVAT's XML", drawings, notes, ignored, names)


def _numbers(element, *names: str) -> list[float]:
    return [float(element.get(name)) for name in names]


def _turned(element, corners: np.ndarray) -> Shape:
    """About the centre of its corners, (N, 2), by its `rotation`."""
    centre = (corners.min(0) + corners.max(0)) / 2
    return Shape(element.get("label"), [turned(corners, centre, float(element.get("rotation", 0)))])


def _mask(element) -> Shape:
    runs = [int(run) for run in element.get("rle").split(",")]
    left, top, width, height = (int(element.get(it)) for it in ("left", "top", "width", "height"))
    part = partial(of_runs, runs, height, width)
    return Shape(element.get("label"), mask=partial(placed, part, left, top, height, width))


SHAPES = {
    "polygon": lambda it: Shape(
        it.get("label"), [polygon([pair.split(",") for pair in it.get("points").split(";")])]
    ),
    "box": lambda it: _turned(it, rectangle(*_numbers(it, "xtl", "ytl", "xbr", "ybr"))),
    "ellipse": lambda it: _turned(it, ellipse(*_numbers(it, "cx", "cy", "rx", "ry"))),
    "mask": _mask,
}
