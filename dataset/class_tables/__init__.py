"""Tables of the classes of data sets that have many: label id, name and colour of each.

ade20k.csv: ids of SceneParse150 (objectInfo150.txt of its development kit). coco_stuff.csv: ids of
labels.txt in the official COCO-Stuff repository. The short names of ADE20K and the colours of both
are those of mmsegmentation, which most published models and pictures use; of COCO-Stuff some
classes share one.
"""

import csv
from pathlib import Path


def read_class_table(
    name: str,
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Label ids, ascending, names and RGB colours of the classes in {name}.csv."""
    with open(Path(__file__).parent / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return (
        tuple(int(row["id"]) for row in rows),
        tuple(row["name"] for row in rows),
        tuple((int(row["red"]), int(row["green"]), int(row["blue"])) for row in rows),
    )
