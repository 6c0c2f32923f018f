"""Which picture is an image, which is a mask, and which belong together: by folders and names."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from projects.SegFormer.dataset.image_files import IMAGE_SUFFIXES
from projects.SegFormer.modeling.errors import InputError

# Folders, alone or beside the name of a split or the like: train_labels, masks_train, trainannot.
IMAGE_FOLDER = re.compile(
    r"(|.*[-_ ])(jpeg)?(images?|imgs?|photos?|pictures?|rgb|data)|(images?|imgs?)[-_ ](?P<rest>.*)",
    re.I,
)
LABEL_FOLDER = re.compile(
    r"(|.*[-_ ]|train|val|test)(annotations?|annots?|labels?|masks?|gt|ground[-_ ]?truth"
    r"|segmentations?|segmentationclass(png)?|seg|targets?)"
    r"|(annotations?|labels?|masks?|gt)[-_ ](?P<rest>.*)",
    re.I,
)
# Pictures that are no labels of classes: VOC's and labelme2voc's objects, previews.
OTHER_FOLDER = re.compile(r"segmentationobject|visuali[sz]ation|segmentationclassnpy|preview", re.I)
_WORDS = "masks?|labels?|seg|segmentation|gt|annotations?|groundtruth"
LABEL_WORD = re.compile(rf"^({_WORDS})([-_. ]|$)|[-_. ]({_WORDS}|[LP])$", re.I)
IMAGE_WORD = re.compile(
    r"^(images?|img|photo|rgb|orig)([-_. ]|$)|[-_. ](images?|img|photo|rgb)$", re.I
)
# Label Studio's export of brushes: task, annotation, who, control, class, number.
BRUSH = re.compile(r"^task-(\d+)-annotation-\d+-by-[^-]*-[^-]+-(.+)-\d+$")
TASK = re.compile(r"^(task[-_])?(\d+)$")
LOSSY = (".jpg", ".jpeg", ".webp")


class Pair(NamedTuple):
    """An image, its name, and its one mask; or its masks, each of a class: (class, file)."""

    name: str
    image: Path
    mask: Path | None
    parts: list[tuple[str, Path]]


def split_name(place: Path) -> tuple[str | None, str]:
    """What the path of a file, within the source, says of it: "image", "label", "other" or None;
    and its name, the path without the words that say so and without suffix.

    The innermost folder counts that says anything.
    """
    role, kept = None, []
    for part in place.parent.parts[::-1]:
        is_label, is_image = LABEL_FOLDER.fullmatch(part), IMAGE_FOLDER.fullmatch(part)
        if OTHER_FOLDER.search(part):
            role = "other"
        elif is_label or is_image:
            role = role or ("label" if is_label else "image")
            match = is_label or is_image
            part = (match[1] or match["rest"] or "").rstrip("-_ ")
        kept = [part, *kept] if part else kept
    stem = place.stem
    word = LABEL_WORD.search(stem)
    suffix = place.suffix.lower()
    # Of images, left ones may end in _L.
    is_side = word and len(word[0]) == 2 and (role == "image" or suffix in LOSSY)
    if word and role != "other" and not is_side and suffix != ".json":
        role, stem = "label", LABEL_WORD.sub("", stem)
    if stem.lower().endswith(IMAGE_SUFFIXES):  # name.jpg.png
        stem = stem.rpartition(".")[0]
    role = "label" if BRUSH.match(stem) else role
    return role, unicodedata.normalize("NFC", "/".join([*kept, stem]))


def pair_masks(files: list[Path], folder: Path) -> tuple[list[Pair], list[str]]:
    """Images with their masks, by name, and notes on those that stand alone.

    The first reading of the names that finds a place for most masks counts: the same names; the
    same but for words as "img_"; masks of a class each, with the class as a folder or in the name;
    the same file names in other folders.

    Raises InputError: there is no pair, or two files of one name.
    """
    images, labels = _sorted_out(files, folder)
    readings = [
        _matched(images, labels, lambda name: name),
        _matched(images, labels, _plain),
        _by_class(images, labels),
        _matched(images, labels, lambda name: _plain(name).rpartition("/")[2]),
    ]
    pairs = max(readings, key=lambda it: sum(1 if pair.mask else len(pair.parts) for pair in it))
    if not pairs:
        raise InputError(
            f"{folder}: {len(images)} images, {len(labels)} pictures of masks and no pair of both. "
            "Expected two folders side by side, as images/ and masks/, with the same names in "
            "them; masks beside the images, as name.jpg and name_mask.png; a folder of masks for "
            "each class; or the JSON or XML of LabelMe, COCO, Label Studio or CVAT"
        )
    used = sum(1 if pair.mask else len(pair.parts) for pair in pairs)
    alone = (
        (len(images) - len(pairs), "images without a mask"),
        (len(labels) - used, "masks without an image"),
    )
    return pairs, [f"{count} {what}: left out" for count, what in alone if count]


def _sorted_out(files: list[Path], folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and labels by name. Of name.jpg and name.png side by side the second is the mask."""
    images, labels = {}, {}
    for file in files:
        role, name = split_name(file.relative_to(folder))
        if role == "other" or role == "label" and file.suffix.lower() == ".npy":
            continue
        found = labels if role == "label" else images
        if name in found and role is None and name not in labels:
            both = sorted((file, found[name]), key=lambda it: it.suffix.lower() not in LOSSY)
            if [it.suffix.lower() in LOSSY for it in both] == [True, False]:
                images[name], labels[name] = both
                continue
        if name in found:
            raise InputError(f"{found[name]} and {file} would both be {name}: rename one")
        found[name] = file
    return images, labels


def _plain(name: str) -> str:
    """Without the words that say that it is an image, or might say that it is a label."""
    folder, slash, stem = name.rpartition("/")
    return folder + slash + IMAGE_WORD.sub("", LABEL_WORD.sub("", stem))


def _matched(images: dict, labels: dict, key: Callable[[str], str]) -> list[Pair]:
    """Those for which the key is the same, and of no others."""
    names, places = _unique(images, key), _unique(labels, key)
    return [
        Pair(names[it], images[names[it]], labels[places[it]], [])
        for it in sorted(names.keys() & places.keys())
    ]


def _unique(files: dict, key: Callable[[str], str]) -> dict[str, str]:
    names = {}
    for name in files:
        names.setdefault(key(name), []).append(name)
    return {it: found[0] for it, found in names.items() if len(found) == 1}


def _by_class(images: dict[str, Path], labels: dict[str, Path]) -> list[Pair]:
    """Masks of a class each; where all are of one class, the one mask of each image."""
    names = _unique(images, _plain)
    tasks = {it[2]: name for name in images if (it := TASK.match(name.rpartition("/")[2]))}
    parts = {}
    for label, file in labels.items():
        name, what = next(_readings(label, names, tasks), (None, ""))
        if name:
            parts.setdefault(name, []).append((what, file))
    return [Pair(name, images[name], None, parts[name]) for name in sorted(parts)]


def _readings(label: str, names: dict[str, str], tasks: dict[str, str]):
    """(name of an image, class) that the name of a mask may mean."""
    *folders, stem = label.split("/")
    if brush := BRUSH.match(stem):
        if brush[1] in tasks:
            yield tasks[brush[1]], brush[2]
        return
    if (name := names.get(_plain("/".join(folders)))) is not None:
        yield name, stem
    for place in reversed([it.start() for it in re.finditer(r"[-_. ]", stem)]):
        if (name := names.get(_plain("/".join([*folders, stem[:place]])))) is not None:
            yield name, LABEL_WORD.sub("", stem[place + 1 :])
    for place, what in enumerate(folders):
        rest = "/".join([*folders[:place], *folders[place + 1 :], stem])
        if (name := names.get(_plain(rest))) is not None:
            yield name, what
