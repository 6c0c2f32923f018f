"""Labels as people have them, to label maps: pictures of masks, and the JSON and XML of programs.

A source is a list of `Labelled` images and the classes of all of them; which form the labels have
is seen from the files alone.
"""

from collections.abc import Sequence
from pathlib import Path

from projects.SegFormer.dataset.folders import walk
from projects.SegFormer.dataset.image_files import IMAGE_SUFFIXES
from projects.SegFormer.dataset.label_sources.coco import is_coco, read_coco
from projects.SegFormer.dataset.label_sources.cvat import read_cvat, read_tree
from projects.SegFormer.dataset.label_sources.label_studio import (
    is_label_studio,
    read_label_studio,
)
from projects.SegFormer.dataset.label_sources.labelme import is_labelme, read_labelme
from projects.SegFormer.dataset.label_sources.masks import read_masks
from projects.SegFormer.dataset.label_sources.shapes import decode_rle
from projects.SegFormer.dataset.label_sources.source import Files, Labelled, Source
from projects.SegFormer.dataset.label_sources.splits import split_by_lists
from projects.SegFormer.modeling.bounds import JSON_BYTES
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes, read_json_value

__all__ = ["Labelled", "Source", "decode_rle", "find_source"]


def find_source(
    folder: str | Path, ignored: Sequence[str] = (), names: Sequence[str] = ()
) -> Source:
    """What is labelled in a folder, and how.

    Args:
        ignored: what counts nowhere, besides 255: values as "0", colours as "#000000", classes.
        names: of the classes, in the order that they have without.
    Raises InputError: there are no labels, or they are read in no way that is known.
    """
    folder, ignored = Path(folder), set(ignored)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    files = [Path(file) for file in walk(folder, IMAGE_SUFFIXES)]
    source = _of_documents(Files(files, folder), ignored) or read_masks(
        files, folder, ignored, names
    )
    if names and len(names) != len(source.classes):
        raise InputError(
            f"--classes has {len(names)} names for {len(source.classes)} classes: "
            f"{', '.join(source.classes[:20])}"
        )
    images = split_by_lists(source.images, folder, source.notes)
    return source._replace(images=images, classes=list(names) or source.classes)


def _of_documents(files: Files, ignored: set[str]) -> Source | None:
    """What JSON or XML says; None where there is none that says what is labelled."""
    contents = [(file, _json(file)) for file in map(Path, walk(files.folder, (".json",)))]
    for is_of, read in (
        (is_coco, read_coco),
        (is_labelme, read_labelme),
        (is_label_studio, read_label_studio),
    ):
        if found := [(file, content) for file, content in contents if is_of(content)]:
            return read(found, files, ignored)
    trees = [(file, read_tree(file)) for file in map(Path, walk(files.folder, (".xml",)))]
    if found := [(file, tree) for file, tree in trees if tree is not None]:
        return read_cvat(found, files, ignored)
    return None


def _json(file: Path):
    """What is in a file; None for what is no JSON, which may lie beside any data.

    Raises InputError: the file is too large.
    """
    if file.stat().st_size > JSON_BYTES:
        read_bytes(file, JSON_BYTES)  # which tells it
    try:
        return read_json_value(file)
    except InputError:
        return None
