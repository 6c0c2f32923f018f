"""Labels as people have them, to label maps: pictures of masks, LabelMe's and COCO's JSON.

A source is a list of `Labelled` images and the classes of all of them; which form the labels have
is seen from the files alone.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from projects.SegFormer.dataset.folder import distinct_palette
from projects.SegFormer.dataset.folders import walk
from projects.SegFormer.dataset.image_files import (
    IMAGE_SUFFIXES,
    channel_count,
    image_size,
    read_image,
    read_label,
)
from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.modeling.bounds import JSON_BYTES
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes, read_json, reason

IMAGE_FOLDERS = {"images", "image", "imgs", "img", "jpegimages", "photos", "rgb", "data"}
LABEL_FOLDERS = {
    *("annotations", "annotation", "labels", "label", "masks", "mask", "gt", "groundtruth"),
    *("segmentationclass", "segmentations", "seg", "targets"),
}
LABEL_SUFFIX = re.compile(r"[-_. ](masks?|labels?|seg|gt|annotations?|groundtruth|L)$", re.I)
TABLE_LINE = re.compile(r"(\d{1,3})[\s,;:]+(\d{1,3})[\s,;:]+(\d{1,3})")
MOST_COLOURS = 254
BACKGROUND = "background"

Colour = tuple[int, int, int]


class Labelled(NamedTuple):
    """An image file, its name in the data set, and what reads its label map (H, W), uint8."""

    name: str
    image: Path
    label: Callable[[], np.ndarray]


class Source(NamedTuple):
    """Images with labels of one kind.

    Attributes:
        kind: what the labels are, in words.
        notes: what has to be known of how they are read, a line each.
    """

    kind: str
    images: list[Labelled]
    classes: list[str]
    palette: list[Colour]
    notes: list[str]


def find_source(folder: str | Path, ignored: Sequence[str] = ()) -> Source:
    """What is labelled in a folder, and how.

    Args:
        ignored: pixels that count nowhere, besides 255: values as "0", colours as "#000000".
    Raises InputError: there are no labels, or they are read in no way that is known.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    files = [Path(file) for file in walk(folder, IMAGE_SUFFIXES)]
    documents = [Path(file) for file in walk(folder, (".json",))]
    contents = [(file, content) for file in documents if (content := _json(file)) is not None]
    coco = [it for it in contents if {"images", "annotations", "categories"} <= it[1].keys()]
    if coco:
        return _told("COCO", coco[0][0], lambda: _from_coco(coco, files, folder))
    labelme = [it for it in contents if isinstance(it[1].get("shapes"), list)]
    if labelme:
        return _told("LabelMe", labelme[0][0], lambda: _from_labelme(labelme, folder))
    return _from_masks(files, folder, set(ignored))


def _palette(classes: list[str]) -> list[Colour]:
    """Colours that are far apart; grey for the background."""
    if classes[0] != BACKGROUND:
        return distinct_palette(len(classes))
    return [(96, 96, 96), *distinct_palette(len(classes) - 1)]


def _json(file: Path) -> dict | None:
    """The object in a file; None for other JSON, which may lie beside any data.

    Raises InputError: the file is too large.
    """
    if file.stat().st_size > JSON_BYTES:
        read_bytes(file, JSON_BYTES)  # which tells it
    try:
        return read_json(file)
    except InputError:
        return None


def _told(whose: str, file: Path, function: Callable):
    """What the function returns. Raises InputError where the JSON is other than it expects."""
    try:
        return function()
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, cv2.error) as error:
        raise InputError(
            f"{file}: not as {whose} writes it ({type(error).__name__}: {reason(error)})"
        ) from error


def _within(folder: Path, *places: Path) -> Path | None:
    """The first of the places that is a file in the folder: JSON of strangers names files."""
    root = folder.resolve()
    return next((it for it in places if it.is_file() and root in it.resolve().parents), None)


# ---- Pictures of masks --------------------------------------------------------------------------


def _from_masks(files: list[Path], folder: Path, ignored: set[str]) -> Source:
    images, labels = {}, {}
    for file in files:
        place = file.relative_to(folder)
        parts = [part for part in place.parent.parts if part.lower() not in IMAGE_FOLDERS]
        kept = [part for part in parts if part.lower() not in LABEL_FOLDERS]
        stem = LABEL_SUFFIX.sub("", place.stem)
        is_label = len(kept) < len(parts) or stem != place.stem
        found = labels if is_label else images
        name = "/".join([*kept, stem if is_label else place.stem])
        if name in found:
            raise InputError(f"{found[name]} and {file} would both be {name}: rename one")
        found[name] = file
    names = sorted(images.keys() & labels.keys())
    if not names:
        raise InputError(
            f"{folder}: {len(images)} images, {len(labels)} pictures of masks and no pair of both. "
            "Expected two folders side by side, as images/ and masks/, with the same names in "
            "them; masks beside the images, as name.jpg and name_mask.png; or LabelMe's or COCO's "
            "JSON"
        )
    notes = [
        f"{len(those) - len(names)} {what}: left out"
        for those, what in ((images, "images without a mask"), (labels, "masks without an image"))
        if len(those) > len(names)
    ]
    masks = {name: labels[name] for name in names}
    if all(channel_count(file) == 1 for file in masks.values()):
        kind, table, read = _indices(masks.values(), ignored)
    else:
        kind, table, read = _colours(masks.values(), _colour_table(folder), ignored)
    classes, palette = [entry[0] for entry in table], [entry[1] for entry in table]
    found = [Labelled(name, images[name], lambda file=masks[name]: read(file)) for name in names]
    return Source(kind, found, classes, palette, notes)


def _indices(files, ignored: set[str]):
    """Of one channel: values of pixels."""
    counts = np.zeros(256, np.int64)
    for file in files:
        counts += np.bincount(read_label(file).ravel(), minlength=256)
    values = [int(value) for value in np.flatnonzero(counts)]
    if values in ([0, 255], [255]) and "255" not in ignored:
        names, kind = {0: BACKGROUND, 255: "foreground"}, "masks of one class, 0 and 255"
    else:
        values = [v for v in values if v != IGNORE_INDEX and str(v) not in ignored]
        kind = "class indices"
        is_dense = values and values[-1] < 2 * len(values) + 8
        every = range(values[-1] + 1) if is_dense and not ignored else values
        names = {value: f"class {value}" for value in every}
    if len(names) < 2:
        raise InputError(f"the masks hold one value, {values}: expected two classes or more")
    lookup = np.full(256, IGNORE_INDEX, np.uint8)
    lookup[list(names)] = range(len(names))
    table = list(zip(names.values(), _palette([*names.values()])))
    return kind, table, lambda file: lookup[read_label(file)]


def _colours(files, table: dict[Colour, str], ignored: set[str]):
    """Of three channels: colours of pixels, by a table or as they come."""
    counts = Counter()
    for file in files:
        codes, number = np.unique(_codes(file), return_counts=True)
        if len(codes) > MOST_COLOURS:
            raise InputError(
                f"{file}: {len(codes)} colours; masks have one for each class. JPEG and resized "
                "masks have more: save them as PNG, without smoothing"
            )
        counts.update(dict(zip(codes.tolist(), number.tolist())))
    kind = "colours, by a table" if table else "colours"
    found = (_colour(code) for code, _ in counts.most_common())
    names = table or {colour: _hex(colour) for colour in found}
    names = {colour: name for colour, name in names.items() if _hex(colour) not in ignored}
    if not 2 <= len(names) <= MOST_COLOURS:
        raise InputError(f"the masks have {len(names)} colours: expected 2 to {MOST_COLOURS}")
    index = {colour: place for place, colour in enumerate(names)}

    def read(file: Path) -> np.ndarray:
        pixels = _codes(file)
        codes, inverse = np.unique(pixels, return_inverse=True)
        own = [index.get(_colour(code), IGNORE_INDEX) for code in codes.tolist()]
        return np.array(own, np.uint8)[inverse].reshape(pixels.shape)

    return kind, [(name, colour) for colour, name in names.items()], read


def _codes(file: Path) -> np.ndarray:
    """A number for the colour of each pixel."""
    red, green, blue = np.moveaxis(read_image(file).astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _colour(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _colour_table(folder: Path) -> dict[Colour, str]:
    """Of the first text file whose lines have a colour and a name, as CamVid's and CVAT's."""
    for file in map(Path, walk(folder, (".txt", ".csv"))):
        table = {}
        for line in read_bytes(file, JSON_BYTES).decode(errors="replace").splitlines():
            match = TABLE_LINE.search(line)
            if not match or max(map(int, match.groups())) > 255:
                continue
            name = (line[: match.start()] + line[match.end() :]).strip(" \t,;:\"'")
            if name and not line.startswith("#"):
                table.setdefault(tuple(map(int, match.groups())), name)
        if len(table) > 1:
            return table
    return {}


# ---- Polygons -----------------------------------------------------------------------------------


def _from_labelme(documents: list[tuple[Path, dict]], folder: Path) -> Source:
    """Shapes are drawn in their order; what none covers is background."""
    names, other = set(), Counter()
    for _, content in documents:
        for shape in content["shapes"]:
            kind = shape.get("shape_type") or "polygon"
            if kind not in ("polygon", "rectangle", "circle"):
                other[kind] += 1
            elif str(shape["label"]) not in ("_background_", "__ignore__", BACKGROUND):
                names.add(str(shape["label"]))
    classes = [BACKGROUND, *sorted(names)]
    index = {name: place for place, name in enumerate(classes)}
    index |= {"_background_": 0, "__ignore__": IGNORE_INDEX}

    def read(image: Path, shapes: list) -> np.ndarray:
        label = np.zeros(image_size(image), np.uint8)
        for shape in shapes:
            points = np.array(shape["points"], np.float64)
            kind, value = shape.get("shape_type") or "polygon", index.get(str(shape["label"]))
            if value is None or points.ndim != 2 or points.shape[1] != 2:
                continue
            if kind == "rectangle":
                (left, top), (right, bottom) = points.min(0), points.max(0)
                points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
            if kind == "circle":
                centre, radius = points[0], np.linalg.norm(points[1] - points[0])
                turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
                points = centre + radius * np.stack([np.cos(turn), np.sin(turn)], 1)
            if kind in ("polygon", "rectangle", "circle"):
                _fill(label, [points], value)
        return label

    images = []
    for file, content in documents:
        written = file.parent / str(content.get("imagePath", "")).replace("\\", "/")
        suffixes = (*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))
        beside = [file.with_suffix(suffix) for suffix in suffixes]
        image = _within(folder, written, *beside)
        if image is None:
            raise InputError(f"{file}: its image is neither at imagePath nor beside it")
        name = file.relative_to(folder).with_suffix("").as_posix()
        shapes = content["shapes"]
        images.append(
            Labelled(name, image, partial(_told, "LabelMe", file, partial(read, image, shapes)))
        )
    notes = [f"{count} shapes of the type {kind}: left out" for kind, count in other.items()]
    return Source("LabelMe's JSON", images, classes, _palette(classes), notes)


def _from_coco(documents: list[tuple[Path, dict]], files: list[Path], folder: Path) -> Source:
    """Instances: large ones are drawn first; crowds count nowhere, the rest is background."""
    categories = {
        int(it["id"]): str(it["name"]) for _, content in documents for it in content["categories"]
    }
    classes = [BACKGROUND, *(categories[key] for key in sorted(categories))]
    index = {key: place for place, key in enumerate(sorted(categories), 1)}
    by_name = {}
    for file in files:
        by_name.setdefault(file.name, []).append(file)
    images, without = [], 0
    for document, content in documents:
        objects = {}
        for it in content["annotations"]:
            without += not it.get("segmentation")
            objects.setdefault(it["image_id"], []).append(it)
        for entry in content["images"]:
            written = str(entry["file_name"]).replace("\\", "/")
            places = [folder / written, document.parent / written]
            places += by_name.get(Path(written).name, []) if written else []
            image = _within(folder, *places)
            if image is None:
                raise InputError(f"{document}: no image {written} in {folder}")
            own = sorted(objects.get(entry["id"], []), key=lambda it: -float(it.get("area", 0)))
            # Folders of the file keep train and val apart.
            name = "/".join([*document.relative_to(folder).parent.parts, Path(written).stem])
            name = f"{_split_in(document.stem)}{name}"
            images.append(
                Labelled(
                    *(name, image),
                    partial(_told, "COCO", document, partial(_draw_objects, image, own, index)),
                )
            )
    notes = [f"{without} annotations without a segmentation: left out"] if without else []
    kind = "COCO's JSON of instances"
    return Source(kind, images, classes, _palette(classes), notes)


def _split_in(stem: str) -> str:
    """The split that a COCO file's name has in it, as a folder."""
    found = re.search(r"train|val|test", stem.lower())
    return f"{found[0]}/" if found else ""


def _draw_objects(image: Path, objects: list[dict], index: dict[int, int]) -> np.ndarray:
    label = np.zeros(image_size(image), np.uint8)
    for it in objects:
        value = IGNORE_INDEX if it.get("iscrowd") else index[int(it["category_id"])]
        shape = it.get("segmentation")
        if isinstance(shape, dict):
            mask = decode_rle(shape["counts"], *shape["size"])
            if mask.shape != label.shape:
                raise InputError(f"{image}: a run-length mask of {mask.shape}, not {label.shape}")
            label[mask] = value
        elif shape:
            _fill(label, [np.array(it, np.float64).reshape(-1, 2) for it in shape], value)
    return label


def _fill(label: np.ndarray, polygons: list[np.ndarray], value: int) -> None:
    """Of several polygons what is in an odd number of them."""
    rounded = [np.rint(polygon).astype(np.int32) for polygon in polygons if len(polygon) > 2]
    cv2.fillPoly(label, rounded, value)


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
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise InputError(f"a run-length mask of {sum(runs)} pixels, not {height}x{width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
