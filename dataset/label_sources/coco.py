"""COCO's JSON: instances as polygons and run-length masks, or panoptic with a PNG an image."""

from functools import partial
from pathlib import Path

import numpy as np

from projects.SegFormer.dataset.image_files import read_image
from projects.SegFormer.dataset.label_sources.mask_files import split_name
from projects.SegFormer.dataset.label_sources.shapes import (
    Drawing,
    Shape,
    Size,
    decode_rle,
    drawn_source,
    polygon,
)
from projects.SegFormer.dataset.label_sources.source import (
    Files,
    Labelled,
    Source,
    class_indices,
    palette_of,
    read_as,
)
from projects.SegFormer.dataset.label_sources.splits import split_called, split_in
from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.modeling.errors import InputError

FIELDS = ("images", "annotations", "categories")


def is_coco(content) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(it), list) for it in FIELDS)


def read_coco(documents: list[tuple[Path, dict]], files: Files, ignored: set[str]) -> Source:
    """Of both kinds the panoptic one counts, and of others those without keypoints, which label a
    person once more. Raises InputError: see `_image`."""
    instances = [it for it in documents if "keypoints" not in str(it[1]["categories"])]
    documents = instances or documents
    panoptic = [it for it in documents if "segments_info" in str(it[1]["annotations"][:1])]
    return (_panoptic if panoptic else _instances)(panoptic or documents, files, ignored)


def _instances(documents: list[tuple[Path, dict]], files: Files, ignored: set[str]) -> Source:
    """Large ones are drawn first; crowds count nowhere, the rest is background."""
    drawings, without, are_splits = [], 0, _are_splits(documents)
    for document, content in documents:
        with read_as("COCO", document):
            names = _categories(content)
            objects = {}
            for it in content["annotations"]:
                without += not it.get("segmentation")
                objects.setdefault(it["image_id"], []).append(it)
            for entry in content["images"]:
                image, name = _image(entry, document, files, are_splits)
                own = sorted(objects.get(entry["id"], []), key=_area, reverse=True)
                size = entry.get("height"), entry.get("width")
                shapes = [_shape(it, names) for it in own if it.get("segmentation")]
                drawings.append(Drawing(name, image, document, shapes, size if all(size) else None))
    notes = [f"{without} annotations without a segmentation: left out"] if without else []
    kind = "COCO's JSON of instances"
    return drawn_source("COCO", kind, drawings, notes, ignored, _all_names(documents))


def _area(annotation: dict) -> float:
    """As it is written, or of its box."""
    *_, width, height = annotation.get("bbox") or (0, 0)
    return float(annotation.get("area") or width * height)


def _shape(it: dict, names: dict[int, str]) -> Shape:
    label = None if it.get("iscrowd") else names[int(it["category_id"])]
    shape = it["segmentation"]
    if isinstance(shape, dict):
        return Shape(label, mask=partial(_mask, shape["counts"], tuple(shape["size"])))
    return Shape(label, [polygon(numbers) for numbers in shape if len(numbers) >= 6])


def _mask(counts, own: Size, size: Size) -> np.ndarray:
    if own != size:
        raise InputError(f"a run-length mask of {own}, not {size}")
    return decode_rle(counts, *size)


def _panoptic(documents: list[tuple[Path, dict]], files: Files, ignored: set[str]) -> Source:
    """Pixels of no segment count nowhere. A segment's number is R + 256 G + 65536 B of a colour."""
    with read_as("COCO", documents[0][0]):
        names = _all_names(documents)
    kind = "COCO's panoptic JSON"
    classes, index = class_indices(names, ignored, kind)
    images, are_splits = [], _are_splits(documents)
    for document, content in documents:
        with read_as("COCO", document):
            names = _categories(content)
            entries = {entry["id"]: entry for entry in content["images"]}
            for it in content["annotations"]:
                image, name = _image(entries[it["image_id"]], document, files, are_splits)
                written = str(it.get("file_name") or f"{Path(image).stem}.png")
                near = (document.with_suffix(""), document.parent)
                mask = files.find(written, *near, prefer=lambda it: _is_panoptic(it, files))
                if mask is None or mask == image:
                    raise InputError(f"{document}: no {written} of segments in {files.folder}")
                segments = {
                    int(segment["id"]): index[names[int(segment["category_id"])]]
                    for segment in it["segments_info"]
                }
                images.append(Labelled(name, image, partial(_of_segments, mask, segments), mask))
    return Source(kind, images, classes, palette_of(classes), [])


def _of_segments(mask: Path, segments: dict[int, int]) -> np.ndarray:
    numbers = read_image(mask).astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    found, inverse = np.unique(numbers, return_inverse=True)
    own = [segments.get(number, IGNORE_INDEX) for number in found.tolist()]
    return np.array(own, np.uint8)[inverse].reshape(numbers.shape)


def _is_panoptic(file: Path, files: Files) -> bool:
    return "panoptic" in str(file.relative_to(files.folder)).lower()


def _categories(content: dict) -> dict[int, str]:
    """Names by id: there may be gaps, and categories that nothing is of."""
    return {
        int(it["id"]): str(it.get("name") or f"class {it['id']}") for it in content["categories"]
    }


def _all_names(documents: list[tuple[Path, dict]]) -> list[str]:
    """In the order of their ids."""
    names = [pair for _, content in documents for pair in _categories(content).items()]
    return list(dict.fromkeys(name for _, name in sorted(names)))


def _split_of(document: Path) -> str | None:
    return split_in(document.stem) or split_in(document.parent.name)


def _are_splits(documents: list[tuple[Path, dict]]) -> bool:
    """Whether the documents tell training from validation: then the folders of images do not."""
    return len({_split_of(document) for document, _ in documents} - {None}) > 1


def _image(entry: dict, document: Path, files: Files, are_splits: bool) -> tuple[Path, str]:
    """The file of an image and its name in the data set.

    Raises InputError: the file is not there.
    """
    written, split = str(entry["file_name"]), _split_of(document)

    def is_likely(file: Path) -> bool:
        role, name = split_name(file.relative_to(files.folder))
        splits = {split_called(part) for part in name.split("/")[:-1]} - {None}
        is_image = role != "label" and not _is_panoptic(file, files)
        return is_image and (not splits or not split or split in splits)

    image = files.find(written, document.parent, prefer=is_likely)
    if image is None:
        raise InputError(f"{document}: no image {written} in {files.folder}")
    _, name = split_name(image.relative_to(files.folder))
    is_told = split and (are_splits or not split_called(name.split("/")[0]))
    return image, f"{split}/{name}" if is_told else name
