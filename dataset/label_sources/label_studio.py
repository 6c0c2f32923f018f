"""Label Studio's JSON, in full or "JSON-MIN": polygons, rectangles, ellipses and brushes."""

import re
from collections import Counter
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from projects.SegFormer.dataset.image_files import IMAGE_SUFFIXES
from projects.SegFormer.dataset.label_sources.mask_files import split_name
from projects.SegFormer.dataset.label_sources.shapes import (
    Drawing,
    Shape,
    Size,
    drawn_source,
    ellipse,
    polygon,
    rectangle,
    turned,
)
from projects.SegFormer.dataset.label_sources.source import Files, Source, read_as
from projects.SegFormer.modeling.errors import InputError

UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what an upload puts before a file's name


def is_label_studio(content) -> bool:
    """A list of tasks: each has an image and, in full or beside it, what is drawn on that."""
    return (
        isinstance(content, list)
        and all(isinstance(task, dict) and _written(task) for task in content)
        and any("annotations" in task or _flat(task) for task in content)
    )


def read_label_studio(documents: list[tuple[Path, list]], files: Files, ignored: set) -> Source:
    """Shapes are drawn in their order. Raises InputError: an image is missing."""
    drawings, notes, other = [], [], Counter()
    several = undone = 0
    for document, tasks in documents:
        with read_as("Label Studio", document):
            for task in tasks:
                written = unquote(_written(task)).rpartition("=")[2]
                name = written.rpartition("/")[2]
                image = files.find(written) or files.find(UPLOADED.sub("", name))
                if image is None:
                    raise InputError(f"{document}: no image {name} in {files.folder}")
                annotations = [it for it in task.get("annotations", []) if not _is_cancelled(it)]
                if "annotations" in task and not annotations:
                    undone += 1
                    continue
                several += len(annotations) > 1
                results = annotations[0]["result"] if annotations else _flat(task)
                sizes = [(it.get("original_height"), it.get("original_width")) for it in results]
                size = next((it for it in sizes if all(it)), None)
                shapes = [shape for it in results for shape in _shapes(it, size, other)]
                _, name = split_name(image.relative_to(files.folder))
                drawings.append(Drawing(name, image, document, shapes, size))
    if undone:
        notes.append(f"{undone} tasks without an annotation: left out")
    if several:
        notes.append(f"{several} tasks have several annotations: the first of each counts")
    notes += [f"{count} results of the type {kind}: left out" for kind, count in other.items()]
    return drawn_source("Label Studio", "Label Studio's JSON", drawings, notes, ignored)


def _written(task: dict) -> str | None:
    """What a task calls its image."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    texts = (value for value in data.values() if isinstance(value, str))
    return next((text for text in texts if text.lower().endswith(IMAGE_SUFFIXES)), None)


def _is_cancelled(annotation: dict) -> bool:
    return bool(annotation.get("was_cancelled"))


def _flat(task: dict) -> list[dict]:
    """The results of a task in JSON-MIN, which are lists beside the image."""
    lists = [value for value in task.values() if isinstance(value, list)]
    results = [it for values in lists for it in values if isinstance(it, dict)]
    return [it for it in results if any(key.endswith("labels") for key in it)]


def _shapes(result: dict, size: Size | None, other: Counter) -> list[Shape]:
    """One for each label that it has. Lengths are percents of the image's sides."""
    value = result.get("value", result)
    labels = next((it for key, it in value.items() if key.endswith("labels")), None)
    if not labels or size is None:
        other[str(result.get("type"))] += 1
        return []
    height, width = size
    scale = np.array([width, height], np.float64) / 100
    if value.get("format") == "rle":
        mask = partial(_brush, value["rle"], size)
        return [Shape(str(label), mask=mask) for label in labels]
    if "points" in value:
        outline = polygon(value["points"]) * scale
    elif "radiusX" in value:
        centre = np.array([value["x"], value["y"]]) * scale
        axes = np.array([value["radiusX"], value["radiusY"]]) * scale
        outline = turned(ellipse(*centre, *axes), centre, value.get("rotation", 0))
    elif "height" in value:
        corner = np.array([value["x"], value["y"]]) * scale
        far = corner + np.array([value["width"], value["height"]]) * scale
        outline = turned(rectangle(*corner, *far), corner, value.get("rotation", 0))
    else:
        other[str(result.get("type"))] += 1
        return []
    return [Shape(str(label), [outline]) for label in labels]


def _brush(data: list[int], own: Size, size: Size) -> np.ndarray:
    """The mask of a brush, (height, width) bool: alpha of an RGBA image in runs of bits.

    Bits: 32 of the number of values, 5 of their length less one, four times 4 of a length of runs
    less one; then of each run whether it is of one value, 2 for which length it has, its length
    less one, and its one value or all its values (rle-pack of thi.ng/umbrella).
    """
    if own != size:
        raise InputError(f"a brush on {own}, not {size}")
    bits = "".join(f"{byte:08b}" for byte in bytes(data))
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, word = take(32), take(5) + 1
    if count != 4 * size[0] * size[1]:
        raise InputError(f"a brush of {count} values, not {size[0]}x{size[1]}x4")
    lengths = [take(4) + 1 for _ in range(4)]
    values, start = np.zeros(count, np.uint8), 0
    while start < count:
        is_one, end = take(1), start + 1
        end += take(lengths[take(2)])
        values[start:end] = take(word) if is_one else [take(word) for _ in range(end - start)]
        start = end
    return values.reshape(*size, 4)[..., 3] > 127
