"""Labels as people have them, to label maps: pictures of masks, and the JSON and XML of programs.

A source is a list of `Labelled` images and the classes of all of them; which form the labels have
is seen from the files alone.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from projects.SegFormer.dataset.folders import walk
from projects.SegFormer.dataset.image_files import IMAGE_SUFFIXES
from projects.SegFormer.dataset.label_sources.coco import is_coco, read_coco
from projects.SegFormer.dataset.label_sources.cvat import read_cvat, read_tree
from projects.SegFormer.dataset.label_sources.label_studio import (
    is_label_studio,
    read_label_studio,
)
from projects.SegFormer.dataset.label_sources.labelme import is_labelme, read_labelme
from projects.SegFormer.dataset.label_sources.mask_files import split_name
from projects.SegFormer.dataset.label_sources.masks import read_masks
from projects.SegFormer.dataset.label_sources.source import Files, Labelled, Source
from projects.SegFormer.dataset.label_sources.splits import split_by_lists
from projects.SegFormer.modeling.bounds import LABEL_JSON_BYTES
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_json_value

__all__ = ["Labelled", "Source", "find_source"]


def find_source(
    folder: str | Path, ignored: Sequence[str] = (), names: Sequence[str] = ()
) -> Source:
    """What is labelled in a folder, and how.

    Args:
        ignored: what counts nowhere, besides 255: values as "0", colours as "#000000", classes.
        names: of the classes, in the order that they have without.
    Raises InputError: there are no labels, or they are read in no way that is known.
    """
    folder, ignored, notes = Path(os.path.normpath(folder)), set(ignored), []
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    if len(set(names)) < len(names):
        raise InputError(f"--classes {' '.join(names)}: expected each name once")
    files = [Path(file) for file in walk(folder, IMAGE_SUFFIXES)]
    try:
        source = _of_documents(Files(files, folder), ignored, notes) or read_masks(
            files, folder, ignored, names
        )
    except InputError as error:
        raise InputError("; ".join([str(error), *notes])) from error
    if names and len(names) != len(source.classes):
        raise InputError(
            f"--classes has {len(names)} names for {len(source.classes)} classes: "
            f"{', '.join(source.classes[:20])}"
        )
    notes += source.notes
    images = split_by_lists(source.images, folder, notes)
    return source._replace(images=images, classes=list(names) or source.classes, notes=notes)


def _of_documents(files: Files, ignored: set[str], notes: list[str]) -> Source | None:
    """What JSON or XML says; None where there is none that says what is labelled."""
    contents, trees = _read(files, ".json", _json, notes), _read(files, ".xml", read_tree, notes)
    for is_of, read, documents in (
        (is_coco, read_coco, contents),
        (is_labelme, read_labelme, contents),
        (is_label_studio, read_label_studio, contents),
        (lambda tree: tree is not None, read_cvat, trees),
    ):
        if found := [(file, content) for file, content in documents if is_of(content)]:
            source = read(found, files, ignored)
            used = {file for image in source.images for file in (image.image, image.mask)}
            if alone := [it for it in files.files if it not in used and _may_be_image(it, files)]:
                notes.append(f"{len(alone)} images that nothing labels, as {alone[0]}: left out")
            return source
    return None


def _read(files: Files, suffix: str, read: Callable, notes: list[str]) -> list[tuple[Path, Any]]:
    """Files and what is in them; a note tells of those that are damaged or too large."""
    contents, errors = [], []
    for file in map(Path, walk(files.folder, (suffix,))):
        try:
            contents.append((file, read(file)))
        except InputError as error:
            errors.append(str(error))
    if errors:
        notes.append(f"{len(errors)} {suffix} files left out: {errors[0]}")
    return contents


def _may_be_image(file: Path, files: Files) -> bool:
    return split_name(file.relative_to(files.folder))[0] in (None, "image")


def _json(file: Path):
    """What is in a file. Raises InputError: it is no JSON, or too large."""
    content = read_json_value(file, LABEL_JSON_BYTES)
    if isinstance(content, dict):
        content.pop("imageData", None)  # LabelMe's copy of the photo: megabytes a file
    return content
