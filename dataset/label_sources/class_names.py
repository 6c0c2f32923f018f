"""Names and colours of classes from the text files that lie beside masks."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from projects.SegFormer.dataset.description import FILE, read_description
from projects.SegFormer.dataset.folders import walk
from projects.SegFormer.dataset.label_sources.source import BACKGROUND, MOST_CLASSES, Colour
from projects.SegFormer.modeling.bounds import MIB
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes

# Three numbers, wherever they begin: others may stand beside them.
COLOUR = re.compile(r"\b(?=((\d{1,3})[\s,;:]+(\d{1,3})[\s,;:]+(\d{1,3}))\b)")
NAMES_FILE = re.compile(r"(class(es)?|labels?|obj|codes|names|categories)([-_ ]?names)?", re.I)
NUMBERED = re.compile(r"(\d+)\s*[:,;\s]\s*(?=\S)")
BORDER = " \t,;:\"'"


def colour_tables(folder: Path) -> Iterator[tuple[dict[Colour, str], Path]]:
    """Of text files whose lines have a colour and a name, as CamVid's and CVAT's.

    Lines with more numbers, as ids and alpha, give several: the colour stands last, before the
    last number, or first.
    """
    for file in map(Path, walk(folder, (".txt", ".csv"))):
        lines = [line for line in _lines(file) if not line.startswith("#")]
        for place in (-1, -2, 0):
            table = {}
            for line in lines:
                if found := [*COLOUR.finditer(line)]:
                    match = found[max(place, -len(found))]
                    start, end = match.span(1)
                    colour = tuple(map(int, match.groups()[1:]))
                    if max(colour) < 256 and (name := _name(line[:start], line[end:])):
                        table.setdefault(colour, name)
            if len(table) > 1:
                yield table, file


def _name(*texts: str) -> str:
    """The first of the texts around a colour that has letters, without an id before it."""
    texts = [NUMBERED.sub("", text.strip(BORDER), count=1) for text in texts]
    return next((text for text in texts if re.search(r"[^\W\d]", text)), "".join(texts))


def class_names(folder: Path) -> tuple[list[str] | dict[int, str], list[Colour], Path | None]:
    """Names, a line each, by file names as class_names.txt or obj.names; of a folder that
    tools/prepare_dataset.py has written, those of its dataset.json with their colours.

    Names with a number before each, as "5: car" or Roboflow's _classes.csv, keep it: a dict.
    Of labelme2voc's names `__ignore__` stands for 255 and is none.
    """
    with suppress(InputError):  # others have files of this name, too
        found = read_description(folder)
        return found.classes, [tuple(colour) for colour in found.palette], folder / FILE
    for file in map(Path, walk(folder, (".txt", ".names", ".csv"))):
        if not NAMES_FILE.fullmatch(file.stem.strip("_")):
            continue
        lines = [line.strip() for line in _lines(file) if line.strip()]
        if file.suffix == ".csv":
            lines = [",".join(line.split(",")[:2]) for line in lines[1:]]  # without the header
        numbered = [NUMBERED.match(line) for line in lines]
        if all(numbered):
            names = {int(it[1]): it.string[it.end() :] for it in numbered}
            if 1 <= len({*names.values()}) == len(lines) <= MOST_CLASSES:
                return names, [], file
        if file.suffix == ".csv":
            continue
        names = [line for line in lines if line != "__ignore__"]
        names = [BACKGROUND if name == "_background_" else name for name in names]
        if 1 <= len(names) <= MOST_CLASSES and len({*names}) == len(names):
            return names, [], file
    return [], [], None


def _lines(file: Path) -> list[str]:
    """No table of classes is as large as a megabyte."""
    if file.stat().st_size > MIB:
        return []
    return read_bytes(file, MIB).decode("utf-8-sig", errors="replace").splitlines()
