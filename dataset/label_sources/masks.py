"""Pictures of masks: of class indices, of colours, of one class, or one for each class.

All masks are read once, to see which values or colours there are, and kept, compressed, until they
are written with the classes that these turned out to be.
"""

import sys
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from projects.SegFormer.dataset.image_files import (
    channel_count,
    read_image,
    read_palette,
    read_values,
)
from projects.SegFormer.dataset.label_sources.class_names import class_names, colour_tables
from projects.SegFormer.dataset.label_sources.mask_files import LOSSY, Pair, pair_masks
from projects.SegFormer.dataset.label_sources.source import (
    BACKGROUND,
    MOST_CLASSES,
    Colour,
    Labelled,
    Source,
    class_indices,
    find_ignored,
    palette_of,
)
from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.modeling.errors import InputError

FOREGROUND = "foreground"
VOID = {"void", "ignore", "unlabeled", "unlabelled"}  # what tables call pixels of no class
UNKNOWN = -1  # a colour that is not in the table
DARK, BRIGHT = 32, 224  # what a smoothed or JPEG mask of 0 and 255 holds below, and from there on
CLEAR = 0.9  # share of the pixels of such a mask that are so
LOOKED_AT = 8  # masks, to see whether a table is theirs


class Class(NamedTuple):
    """A value of the masks, how a person writes it, and what it is called."""

    value: int
    written: str
    name: str
    colour: Colour | None = None


class Scan(NamedTuple):
    """The values of all masks: how many pixels each has, and of each mask, in the order of the
    files, its size and the compressed places of its pixels' values among `values`."""

    values: list[int]
    counts: Counter
    kept: list[tuple[tuple[int, int], bytes]]


def read_masks(
    files: list[Path], folder: Path, ignored: set[str], names: Sequence[str] = ()
) -> Source:
    """Args: names: of the classes, in their order. Raises InputError: see `find_source`."""
    pairs, notes = pair_masks(files, folder)
    parts = {what for pair in pairs for what, _ in pair.parts}
    if len(parts) > 1 or any(len(pair.parts) > 1 for pair in pairs):
        return _of_parts(pairs, parts, ignored, notes)
    foreground = next(iter(parts), FOREGROUND)  # the one folder or word that all masks have
    pairs = [pair._replace(mask=pair.mask or pair.parts[0][1]) for pair in pairs]
    masks = [pair.mask for pair in pairs]
    palettes = [read_palette(mask) for mask in masks]
    palette = max(palettes, key=len)  # a file may end its own where its last index is
    is_single = all(channel_count(mask) == 1 for mask in masks)
    tables = colour_tables(folder) if palette or not is_single else ()
    table, file = max(tables, key=lambda it: _share_of(it[0], masks), default=({}, None))
    if _share_of(table, masks):
        kind = f"colours, by a table, {file.name}"
        scan = _scan(masks, partial(_by_table, table=[*table]))
        classes = [Class(i, _hex(colour), table[colour], colour) for i, colour in enumerate(table)]
        if share := scan.counts[UNKNOWN] / scan.counts.total():
            notes.append(f"{share:.2%} of the pixels have no colour of {file}: they count nowhere")
    elif is_single and all(palette[: len(it)] == it for it in palettes):
        scan = _scan(masks, read_values)
        kind, classes = _of_values(scan, folder, ignored, names, foreground, palette, notes)
    else:
        scan = _scan(masks, _codes)
        if all(len({*_colour(code)}) == 1 for code in scan.values):
            scan = _as_grey(scan)
            kind, classes = _of_values(scan, folder, ignored, names, foreground, (), notes)
        else:
            kind, classes = "colours", _of_colours(scan)
    return _finished(kind, classes, pairs, scan, ignored, notes)


def _finished(
    kind: str,
    classes: list[Class],
    pairs: list[Pair],
    scan: Scan,
    ignored: set[str],
    notes: list[str],
) -> Source:
    """Raises InputError: too few classes, or too many."""
    ignored = find_ignored(ignored, {word for it in classes for word in (it.written, it.name)})
    classes = [it for it in classes if not {it.written, it.name} & ignored]
    void = [it for it in classes if it.name.strip("_").lower() in VOID]
    if void and len(classes) - len(void) > 1:
        notes.append(f"{void[0].name} ({void[0].written}) is no class: its pixels count nowhere")
        classes = [it for it in classes if it not in void]
    if len(classes) < 2 and len(scan.values) < 2:
        values = [it for it in scan.values if it != UNKNOWN]
        raise InputError(f"the masks hold one value, {values}: expected two classes or more")
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise InputError(
            f"the masks have {len(classes)} values or colours that count: expected 2 to "
            f"{MOST_CLASSES}. Numbers of single objects are no classes"
        )
    lookup = np.full(max(len(scan.values), 1), IGNORE_INDEX, np.uint8)
    place = {value: index for index, value in enumerate(scan.values)}
    merged = {}  # values of one name are one class
    for it in classes:
        index = merged.setdefault(it.name, len(merged))
        if it.value in place:
            lookup[place[it.value]] = index
    images = [
        Labelled(pair.name, pair.image, partial(_label, lookup, *kept), pair.mask)
        for pair, kept in zip(pairs, scan.kept)
    ]
    found = [*merged]
    own = {it.name: it.colour for it in reversed(classes) if it.colour}
    palette = [own[name] for name in found] if len({*own.values()}) == len(found) else []
    return Source(kind, images, found, palette or palette_of(found), notes)


def _label(lookup: np.ndarray, size: tuple[int, int], kept: bytes) -> np.ndarray:
    return lookup[np.frombuffer(zlib.decompress(kept), np.uint8)].reshape(size)


# ---- What there is in them ----------------------------------------------------------------------


def _scan(masks: list[Path], read: Callable[[Path], np.ndarray]) -> Scan:
    """Raises InputError: a mask has more values than there may be classes."""
    places, counts, kept = {}, Counter(), []
    for file in tqdm(masks, "masks", unit="mask", disable=None, delay=2, file=sys.stderr):
        pixels = read(file)
        flat = pixels.ravel()
        starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        values, inverse = np.unique(flat[starts], return_inverse=True)
        if len(values) > 256:
            raise InputError(
                f"{file}: {len(values)} colours; masks have one for each class. JPEG and resized "
                "masks have more: save them as PNG, without smoothing"
                if pixels.max() > 65535
                else f"{file}: {len(values)} values; masks have one for each class, and numbers "
                f"of single objects are none: expected 2 to {MOST_CLASSES}"
            )
        lengths = np.diff(starts, append=flat.size)
        number = np.bincount(inverse, lengths)
        counts.update(dict(zip(values.tolist(), number.astype(int).tolist())))
        for value in values.tolist():
            places.setdefault(value, len(places))
        if len(places) > 256:
            raise InputError(
                f"the masks up to {file} have {len(places)} values or colours: expected 2 to "
                f"{MOST_CLASSES}. Numbers of single objects are no classes"
            )
        own = np.array([places[value] for value in values.tolist()], np.uint8)
        kept.append((pixels.shape, zlib.compress(np.repeat(own[inverse], lengths), 1)))
    return Scan([*places], counts, kept)


def _codes(file: Path) -> np.ndarray:
    """A number for the colour of each pixel."""
    red, green, blue = np.moveaxis(read_image(file).astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def _colour(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _by_table(file: Path, table: list[Colour]) -> np.ndarray:
    """The place of each pixel's colour in the table, or UNKNOWN."""
    codes = np.array([red << 16 | green << 8 | blue for red, green, blue in table])
    order = np.argsort(codes)
    pixels = _codes(file)
    places = order[np.searchsorted(codes[order], pixels).clip(max=len(codes) - 1)]
    return np.where(codes[places] == pixels, places, UNKNOWN).astype(np.int32)


def _share_of(table: dict[Colour, str], masks: list[Path]) -> float:
    """The share of the pixels of some masks whose colours are in the table."""
    some = masks[:: -(-len(masks) // LOOKED_AT)] if table else ()
    return float(np.mean([(_by_table(mask, [*table]) != UNKNOWN).mean() for mask in some] or [0]))


def _as_grey(scan: Scan) -> Scan:
    values = [code & 255 for code in scan.values]
    return Scan(values, Counter({code & 255: n for code, n in scan.counts.items()}), scan.kept)


# ---- What that means ----------------------------------------------------------------------------


def _of_values(
    scan: Scan,
    folder: Path,
    ignored: set[str],
    names: Sequence[str],
    foreground: str,
    palette: Sequence[Colour],
    notes: list[str],
) -> tuple[str, list[Class]]:
    values = sorted(scan.values)
    if values == [0, 255] and "255" not in ignored:
        return "masks of one class, 0 and 255", _two(BACKGROUND, foreground, names)
    if _is_smooth(scan.counts):
        notes.append("masks of 0 and 255 with values between, as of JPEG: below 128 is 0")
        classes = _two(BACKGROUND, foreground, names)
        merged = [classes[value >= 128]._replace(value=value) for value in values]
        return "masks of one class, 0 and 255", merged
    dropped = [Class(value, str(value), str(value)) for value in values if str(value) in ignored]
    values = [value for value in values if str(value) not in ignored]
    if not _is_white_a_class(values, len(names)):
        values = [value for value in values if value != IGNORE_INDEX or values[-1] > 255]
    if not values:
        return "class indices", dropped
    given, colours, file = (names, [], None) if names else class_names(folder)
    found = _named(values, given)
    if given and not found:
        told = f"{file or '--classes'} has {len(given)} names, the masks values up to {values[-1]}"
        if names:
            raise InputError(f"{told}: {', '.join(map(str, values[:20]))}; give a name for each")
        notes.append(f"{told}: not used")
    if found and file:
        notes.append(f"names of the classes: {file}")
    is_dense = values[-1] < 2 * len(values) + 8 and not ignored
    every = range(values[-1] + 1) if is_dense else values
    found = found or {value: f"class {value}" for value in every}
    colours = colours or [*palette]
    is_grey = all(len({*colours[value]}) == 1 for value in found if value < len(colours))
    if is_grey:
        colours = []
    return "class indices", dropped + [
        Class(value, str(value), name, colours[value] if value < len(colours) else None)
        for value, name in found.items()
    ]


def _is_white_a_class(values: Sequence[int], names: int) -> bool:
    """Whether 255 is one: of greys at equal distances, as 0, 128 and 255, or by so many names."""
    if len(values) < 3 or values[-1] != IGNORE_INDEX:
        return False
    return np.ptp(np.diff(values)) <= 1 or names == len(values) <= values[-2]


def _two(background: str, foreground: str, names: Sequence[str]) -> list[Class]:
    """Raises InputError: there are names, but not two."""
    if names and len(names) != 2:
        raise InputError(f"--classes has {len(names)} names, the masks 0 and 255: give two")
    background, foreground = names or (background, foreground)
    return [Class(0, "0", background), Class(255, "255", foreground)]


def _is_smooth(counts: Counter) -> bool:
    """Whether these are 0 and 255 and what smoothing or JPEG makes of them: so values just below
    255, which is no class, are there, and nearly all are close to either."""
    if max(counts) > 255 or sum(BRIGHT <= value < IGNORE_INDEX for value in counts) < 2:
        return False
    dark = sum(number for value, number in counts.items() if value < DARK)
    bright = sum(number for value, number in counts.items() if value >= BRIGHT)
    return min(dark, bright) > 0 and dark + bright > CLEAR * counts.total()


def _named(values: list[int], names: Sequence[str]) -> dict[int, str]:
    """Names by value: one for each from 0, or for each that occurs, perhaps but background."""
    if isinstance(names, dict):  # with numbers of their own
        found = ({0: BACKGROUND} if 0 in values else {}) | names
        return dict(sorted(found.items())) if found.keys() >= {*values} else {}
    if len(names) > values[-1]:
        return dict(enumerate(names))
    if len(names) == len(values):
        return dict(zip(values, names))
    if names and len(names) == len(values) - 1 and values[0] == 0:
        return dict(zip(values, [BACKGROUND, *names]))
    return {}


def _of_colours(scan: Scan) -> list[Class]:
    """The most frequent first."""
    colours = [_colour(code) for code, _ in scan.counts.most_common()]
    codes = [code for code, _ in scan.counts.most_common()]
    return [Class(code, _hex(it), _hex(it), it) for code, it in zip(codes, colours)]


# ---- A mask for each class ----------------------------------------------------------------------


def _of_parts(pairs: list[Pair], parts: set[str], ignored: set[str], notes: list[str]) -> Source:
    """Where two overlap the smaller one counts; what none covers is background."""
    classes, index = class_indices([BACKGROUND, *sorted(parts)], ignored, "masks of a class each")
    images = [
        Labelled(pair.name, pair.image, partial(_composed, pair.parts, index)) for pair in pairs
    ]
    return Source("masks of a class each", images, classes, palette_of(classes), notes)


def _composed(parts: list[tuple[str, Path]], index: dict[str, int]) -> np.ndarray:
    masks = [(_is_inside(file), index[name], file) for name, file in parts]
    masks.sort(key=lambda it: -int(it[0].sum()))
    label = np.full(masks[0][0].shape, index[BACKGROUND], np.uint8)
    for mask, value, file in masks:
        if mask.shape != label.shape:
            raise InputError(f"{file}: a mask of {mask.shape}, not {label.shape} as {masks[0][2]}")
        label[mask] = value
    return label


def _is_inside(file: Path) -> np.ndarray:
    """(H, W) bool. Raises InputError: the mask has more than 0 and another value."""
    pixels = read_values(file) if channel_count(file) == 1 else read_image(file).max(axis=2)
    values = np.unique(pixels)
    if len(values) > 2 or len(values) == 2 and values[0]:
        counts = Counter(dict(zip(values.tolist(), np.bincount(pixels.ravel())[values].tolist())))
        if file.suffix.lower() not in LOSSY and not _is_smooth(counts):
            raise InputError(
                f"{file}: {len(values)} values from {values[0]} to {values[-1]}; a mask of one "
                "class has 0 and another. Leave the masks of one kind in the folder"
            )
        return pixels >= 128
    return pixels > 0
