"""Images and label maps of a small data set, for tests to write down in one form or another."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import COLOURS
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.tools import prepare_dataset

NAMES = [f"{index:02d}" for index in range(6)]
SIZE = (48, 64)


def truth(name: str) -> np.ndarray:
    """Sky 2 above field 1, and a box 0 somewhere."""
    rng = np.random.default_rng(int(name))
    label = np.full(SIZE, 2, np.uint8)
    label[20:] = 1
    top, left = rng.integers(0, 30, 2)
    label[top : top + 12, left : left + 16] = 0
    return label


def box(label: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the last pixels of class 0."""
    rows, columns = np.nonzero(label == 0)
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture[..., ::-1] if picture.ndim == 3 else picture)


def save_images(folder: Path, suffix: str = ".jpg") -> None:
    for name in NAMES:
        save(folder / f"{name}{suffix}", COLOURS[truth(name)])


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's counts, written out: column by column, from a run of 0."""
    runs, last = [0], False
    for value in mask.T.ravel():
        if value != last:
            runs.append(0)
        runs[-1] += 1
        last = value
    return runs


def compressed(runs: list[int]) -> str:
    """As cocoapi's rleToString: base 32, lowest digit first, differences from the fourth on."""
    text = ""
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            digit, value = value & 31, value >> 5
            is_last = value == (-1 if digit & 16 else 0)
            text += chr(48 + (digit if is_last else digit | 32))
            if is_last:
                break
    return text


def assert_refused(make: Callable[[Path], object], words: str, folder: Path) -> None:
    """prepare_dataset ends on what `make` writes with one line that has these words."""
    make(folder / "source")
    with pytest.raises(InputError) as caught:
        prepare_dataset.main([str(folder / "source"), str(folder / "target")])
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "target").exists()
