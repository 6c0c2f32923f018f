"""What the last evaluation leaves for the report beside evaluation.json, as a file.

The confusion matrix, and pictures of some images: the report can be made anew without the data.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from projects.SegFormer.evaluation.result_files import make_folder
from projects.SegFormer.modeling import files
from projects.SegFormer.modeling.errors import InputError

RECORD = "report/evaluated.json"
KINDS = ("samples", "worst")  # images drawn by lot, and those of lowest mIoU
REMEDY = "remove it, and the next evaluation writes it"
VIEWS = {"image": "jpeg", "label": "png", "prediction": "png", "wrong pixels": "jpeg"}
MOST_CLASSES = 256  # a label map has bytes


class Picture(NamedTuple):
    """One image of the data set, and what was made of it.

    Attributes:
        name: of its file.
        score: its mIoU in percent, or None.
        shares: of the pixels, in label or prediction, the larger; class index and share in percent,
            the largest first. The index len(classes) is for what is of no class.
        views: a file of base64 in the format of VIEWS, by name.
    """

    name: str
    score: float | None
    shares: list[tuple[int, float]]
    views: dict[str, str]


class Evaluated(NamedTuple):
    """The record of an evaluation; `counts` as those of a MeanIoUEvaluator."""

    classes: list[str]
    palette: list[tuple[int, int, int]]
    counts: np.ndarray
    pictures: dict[str, list[Picture]]


def write_record(folder: str | Path, evaluated: Evaluated) -> None:
    """Write RECORD in an output folder. Raises InputError when the disk does not take it."""
    path = Path(folder, RECORD)
    make_folder(path.parent)
    content = {
        "classes": list(evaluated.classes),
        "palette": np.array(evaluated.palette).tolist(),
        "counts": evaluated.counts.tolist(),
        "pictures": {
            kind: [picture._asdict() for picture in found]
            for kind, found in evaluated.pictures.items()
        },
    }
    files.write_json(path, content)


def read_record(folder: str | Path) -> Evaluated | None:
    """RECORD of an output folder, None where there is none. Raises InputError for another file."""
    path = Path(folder, RECORD)
    if not path.exists():
        return None
    content = files.read_json(path, *Evaluated._fields, remedy=REMEDY)
    try:
        classes = [str(name) for name in content["classes"]]
        palette = [tuple(int(c) % 256 for c in colour) for colour in content["palette"]]
        counts = np.array(content["counts"], np.int64)
        shape = len(classes), len(classes) + 1
        if len(classes) > MOST_CLASSES or counts.shape != shape or counts.min(initial=0) < 0:
            raise ValueError(f"counts of shape {counts.shape} for {len(classes)} classes")
        if len(palette) != len(classes) or any(len(colour) != 3 for colour in palette):
            raise ValueError("another number of colours than of classes")
        pictures = {
            kind: [_read_picture(it, len(classes)) for it in content["pictures"].get(kind, [])]
            for kind in KINDS
        }
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise InputError(
            f"{path} is no record of an evaluation ({files.reason(error)}): {REMEDY}"
        ) from error
    return Evaluated(classes, palette, counts, pictures)


def _read_picture(content: dict, classes: int) -> Picture:
    score, shares = content["score"], []
    for index, share in content["shares"]:
        if not 0 <= int(index) <= classes:
            raise ValueError(f"class {index} of {classes}")
        shares.append((int(index), float(share)))
    return Picture(
        str(content["name"]),
        None if score is None else float(score),
        shares,
        {name: str(content["views"][name]) for name in VIEWS if name in content["views"]},
    )
