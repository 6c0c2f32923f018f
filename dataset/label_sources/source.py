"""What a source of labels is, whichever form they have."""

import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from projects.SegFormer.dataset.folder import distinct_palette
from projects.SegFormer.dataset.image_files import image_size, stored_size, turn
from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason

BACKGROUND = "background"
MOST_CLASSES = 254

Colour = tuple[int, int, int]


class Labelled(NamedTuple):
    """An image file, its name in the data set, and what reads its label map (H, W), uint8.

    The folders of the name may be those of splits, as in "train/a". `mask` is the file of the
    label map, where it has one.
    """

    name: str
    image: Path
    label: Callable[[], np.ndarray]
    mask: Path | None = None


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


def palette_of(classes: Sequence[str]) -> list[Colour]:
    """Colours that are far apart; grey for the background."""
    if BACKGROUND not in classes[:1]:
        return distinct_palette(len(classes))
    return [(96, 96, 96), *distinct_palette(len(classes) - 1)]


def find_ignored(ignored: set[str], known: set[str]) -> set[str]:
    """Which of the known words shall count nowhere, in whatever letter case they are written.

    Raises InputError: there is no such word. 255 need not be there.
    """
    wanted = {word.lower() for word in ignored}
    if unknown := sorted(wanted - {word.lower() for word in known} - {"255"}):
        raise InputError(
            f"--ignore {unknown[0]}: nothing is called so; expected some of "
            f"{', '.join(sorted(known)[:20])}"
        )
    return {word for word in known if word.lower() in wanted}


def class_indices(
    names: Sequence[str], ignored: set[str], whose: str
) -> tuple[list[str], dict[str, int]]:
    """The classes among some names, and the index of every name: 255 of the ignored.

    Raises InputError: see `find_ignored`; or too few classes, or too many.
    """
    ignored = find_ignored(ignored, set(names))
    classes = [name for name in dict.fromkeys(names) if name not in ignored]
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise InputError(f"{whose}: {len(classes)} classes; expected 2 to {MOST_CLASSES}")
    index = {name: place for place, name in enumerate(classes)}
    return classes, index | dict.fromkeys(ignored, IGNORE_INDEX)


def canvas(image: Path, size: tuple[int, int] | None) -> tuple[tuple[int, int], int]:
    """(height, width) that the labels of an image have, and how they are turned to fit it.

    Args:
        size: of the labels, where they say it. Tools that do not know EXIF's orientation label a
            photo as it is stored and not as it is shown.
    Returns: the size, and the orientation for `turn`: 1 for labels that fit as they are.
    Raises InputError: the image has another size.
    """
    shown = image_size(image)
    if size is None or size == shown:
        return shown, 1
    stored, orientation = stored_size(image)
    if size == stored:
        return stored, orientation
    raise InputError(
        f"{image}: an image of {shown} pixels has labels of {size}: expected one (height, width)"
    )


def fitted(label: np.ndarray, image: Path) -> np.ndarray:
    """A label map, (H, W), as its image is shown. Raises InputError: see `canvas`."""
    return turn(label, canvas(image, label.shape)[1])


@contextmanager
def read_as(whose: str, file: Path):
    """Raises InputError where a file is other than what writes it is known for."""
    try:
        yield
    except InputError:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        cv2.error,
    ) as error:
        raise InputError(
            f"{file}: not as {whose} writes it ({type(error).__name__}: {reason(error)})"
        ) from error


class Files:
    """The image files of a folder, to be found by what a document calls them."""

    def __init__(self, files: Sequence[Path], folder: Path):
        self.files, self.folder, self.by_name = files, folder, {}
        for file in files:
            self.by_name.setdefault(file.name.lower(), []).append(file)
            self.by_name.setdefault(file.stem.lower(), []).append(file)

    def find(self, written: str, *near: Path, prefer: Callable = lambda file: True) -> Path | None:
        """The file at a path that begins in one of the folders `near`, or of that name elsewhere.

        None outside of the folder: files of strangers name any.
        Args: prefer: what of several to prefer. Raises InputError: there are several all the same.
        """
        written = written.replace("\\", "/")
        root = self.folder.resolve()
        for folder in (*near, self.folder) if written else ():
            place = Path(os.path.normpath(folder / written))  # as the walk through it writes it
            real = place.resolve()
            if place.is_file() and root in real.parents:
                is_below = place.is_relative_to(self.folder)
                return place if is_below else self.folder / real.relative_to(root)
        name = written.rpartition("/")[2].lower()
        found = self.by_name.get(name) or self.by_name.get(name.rpartition(".")[0]) or []
        found = [file for file in found if prefer(file)] or found
        # Of those of one name the one in a folder of the same name.
        wanted = ((*near, self.folder)[0] / written).parent.parts[::-1]
        shared = [len(os.path.commonprefix([wanted, file.parent.parts[::-1]])) for file in found]
        found = [file for file, count in zip(found, shared) if count == max(shared)]
        if len(found) > 1:
            raise InputError(f"{written} may be {found[0]} or {found[1]}: leave one of them there")
        return found[0] if found else None
