"""Names and colours of classes from the text files that lie beside masks."""

import re
from collections.abc import Iterator
from pathlib import Path

from projects.SegFormer.dataset.description import FILE, read_description
from projects.SegFormer.dataset.folders import walk
from projects.SegFormer.dataset.label_sources.source import BACKGROUND, MOST_CLASSES, Colour
from projects.SegFormer.modeling.bounds import MIB
from projects.SegFormer.modeling.files import read_bytes

TABLE_LINE = re.compile(r"(\d{1,3})[\s,;:]+(\d{1,3})[\s,;:]+(\d{1,3})")
NAMES_FILE = re.compile(r"(class(es)?|labels?|obj|codes|names|categories)([-_ ]?names)?", re.I)
NUMBERED = re.compile(r"\d+\s*[:,;\s]\s*")


def colour_tables(folder: Path) -> Iterator[tuple[dict[Colour, str], Path]]:
    """Of text files whose lines have a colour and a name, as CamVid's and CVAT's."""
    for file in map(Path, walk(folder, (".txt", ".csv"))):
        table = {}
        for line in _lines(file):
            match = TABLE_LINE.search(line)
            if not match or max(map(int, match.groups())) > 255:
                continue
            name = (line[: match.start()] + line[match.end() :]).strip(" \t,;:\"'")
            if name and not line.startswith("#"):
                table.setdefault(tuple(map(int, match.groups())), name)
        if len(table) > 1:
            yield table, file


def class_names(folder: Path) -> tuple[list[str], list[Colour], Path | None]:
    """Names, a line each, by file names as class_names.txt or obj.names; of a folder that
    tools/prepare_dataset.py has written, those of its dataset.json with their colours.

    Of labelme2voc's names `__ignore__` stands for 255 and is none.
    """
    if (folder / FILE).is_file():
        found = read_description(folder)
        return found.classes, [tuple(colour) for colour in found.palette], folder / FILE
    for file in map(Path, walk(folder, (".txt", ".names"))):
        if not NAMES_FILE.fullmatch(file.stem):
            continue
        lines = [line.strip() for line in _lines(file) if line.strip()]
        if lines and all(NUMBERED.match(line) for line in lines):
            lines = [NUMBERED.sub("", line, count=1) for line in lines]
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
