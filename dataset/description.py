"""dataset.json: what tools/prepare_dataset.py writes beside the data, and training reads."""

from pathlib import Path
from typing import NamedTuple

from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_json, write_json

FILE = "dataset.json"


class Description(NamedTuple):
    """
    Attributes:
        classes, palette: name and RGB of each class.
        size: (height, width) that half of the images have, or less.
        images: their number in each split.
    """

    classes: list[str]
    palette: list[list[int]]
    size: list[int]
    images: dict[str, int]

    def write(self, root: str | Path, **more) -> None:
        """As FILE in `root`, with what else is to be known of where the data came from."""
        write_json(Path(root) / FILE, self._asdict() | more)


def read_description(root: str | Path) -> Description:
    """Raises InputError: there is none, or its values are not of their kind."""
    path = Path(root) / FILE
    if not path.is_file():
        raise InputError(
            f"no {path}: python tools/prepare_dataset.py SOURCE {root} makes the data that this "
            "config trains on"
        )
    content = read_json(path, *Description._fields)
    found = Description(*(content[name] for name in Description._fields))
    classes, palette, size, images = found
    is_right = (
        (
            isinstance(classes, list)
            and len(classes) > 1
            and all(isinstance(c, str) for c in classes)
        )
        and (isinstance(palette, list) and len(palette) == len(classes))
        and all(_are_whole(colour, 3, 0, 255) for colour in palette)
        and _are_whole(size, 2, 1, 2**16)
        and isinstance(images, dict)
        and _are_whole([images.get("train"), images.get("val")], 2, 1, 2**31)
    )
    if not is_right:
        raise InputError(
            f"{path}: expected classes (2 or more names), palette (RGB of each), size ([height, "
            "width]) and images (the number in train and val)"
        )
    return found


def _are_whole(values, count: int, least: int, most: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) is int and least <= value <= most for value in values)
    )
