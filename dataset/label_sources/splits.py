"""Which images are for training, validation and test: by folders, by list files, or by lot."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from projects.SegFormer.dataset.folders import walk
from projects.SegFormer.dataset.image_files import IMAGE_SUFFIXES
from projects.SegFormer.dataset.label_sources.source import Labelled
from projects.SegFormer.dataset.list_files import read_lines
from projects.SegFormer.modeling.errors import InputError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_called(name: str) -> str | None:
    """The split that a folder or a list of this name is of, as "train2017"."""
    return SPLITS.get(name.lower().rstrip("0123456789"))


def split_in(stem: str) -> str | None:
    """The split that a file's name has among its words, as "instances_train2017"."""
    return next(filter(None, map(split_called, re.split(r"[\W_]+", stem))), None)


def split_by_lists(images: list[Labelled], folder: Path, notes: list[str]) -> list[Labelled]:
    """The images with the split in their name that files as train.txt and val.txt put them in.

    A line names an image, by a path or its end, and perhaps its label. Images that no list names
    are left out where one is of training.

    Raises InputError: an image is in two splits, or a line may mean several.
    """
    files = [file for file in map(Path, walk(folder, (".txt",))) if split_called(file.stem)]
    ours = [file for file in files if file.parent.name.lower() == "segmentation"]  # of VOC's
    places = _places(images, folder)
    found = {}
    for file in ours or files:
        for line in read_lines(file, "an image a line"):
            index = _image_of(line, places, file)
            split = split_called(file.stem)
            if index is not None and found.setdefault(index, (split, file))[0] != split:
                raise InputError(
                    f"{images[index].image} is in {found[index][1]} and in {file}: expected one "
                    "split for each image"
                )
    if not found:
        return images
    others = [index for index in range(len(images)) if index not in found]
    if "train" not in {split for split, _ in found.values()}:
        found |= dict.fromkeys(others, (None, None))  # what no list of val or test names trains
    elif others:
        notes.append(f"{len(others)} labelled images that no list names: left out")
    return [
        images[index]._replace(name=f"{split}/{images[index].name}") if split else images[index]
        for index, (split, _) in sorted(found.items())
    ]


def _places(images: list[Labelled], folder: Path) -> dict[str, set[int]]:
    """The images that a path may mean: every end of their own, and of their masks'."""
    places = {}
    for index, image in enumerate(images):
        for file in filter(None, (image.image, image.mask)):
            for end in _ends(file.relative_to(folder).as_posix()):
                places.setdefault(end, set()).add(index)
    return places


def _ends(path: str) -> list[str]:
    """The path without its suffix, and without each of its first folders."""
    path = unicodedata.normalize("NFC", path.replace("\\", "/"))
    place = PurePosixPath(path)
    parts = place.with_suffix("").parts if place.suffix.lower() in IMAGE_SUFFIXES else place.parts
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _image_of(line: str, places: dict[str, set[int]], file: Path) -> int | None:
    readings = (line.strip(), *re.split(r"[\s,;]", line.strip(), maxsplit=1)[:1])
    for end in (end for reading in readings if reading for end in _ends(reading)):
        if end in places:
            if len(places[end]) > 1:
                raise InputError(
                    f"{file}: {line.strip()!r} may be one of {len(places[end])} images"
                )
            return min(places[end])
    return None


def split(
    images: Sequence[Labelled], share: float, seed: int, group: str | None = None
) -> dict[str, list[Labelled]]:
    """By the folders train, val and test in their names; without val, a share of the others is it.

    Args:
        group: a regular expression; what its first group that takes part, or all of it, finds in
            a name keeps images together, as those of one video.
    Raises InputError: there are not two images, or groups, to share out; `group` is no regular
    expression.
    """
    found = {}
    for image in images:
        parts = image.name.split("/")
        own = [name for name in map(split_called, parts[:-1]) if name]
        kept = "/".join(part for part in parts[:-1] if not split_called(part))
        name = f"{kept}/{parts[-1]}" if kept else parts[-1]
        found.setdefault(own[0] if own else "train", []).append(image._replace(name=name))
    if {"train", "val"} <= found.keys():
        return {name: found[name] for name in ("train", "val", "test") if name in found}
    rest = found.pop("train", [])
    if not rest:  # one folder, of whatever name, is no split
        rest, found = [image for images in found.values() for image in images], {}
    groups = {}
    for image in rest:
        try:
            match = re.search(group, image.name) if group else None
        except re.error as error:
            raise InputError(f"--group {group}: no regular expression, {error}") from error
        parts = [part for part in match.groups() if part is not None] if match else [image.name]
        key = parts[0] if parts else match[0]
        groups.setdefault(key, []).append(image)
    if len(groups) < 2:
        raise InputError(f"{len(rest)} images in {len(groups)} groups: expected two at least")
    keys = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(keys))
    count = min(max(round(share * len(keys)), 1), len(keys) - 1)
    chosen = {keys[index] for index in order[:count]}
    return {
        name: [it for key in keys if (key in chosen) == is_val for it in groups[key]]
        for name, is_val in (("train", False), ("val", True))
    } | found
