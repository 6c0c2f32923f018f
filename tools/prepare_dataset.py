"""A folder of labelled images to the layout that this project trains on.

    python tools/prepare_dataset.py SOURCE data/mine
    bash tools/train.sh configs/segformer_own.py 1 data.root=data/mine

It sees what SOURCE holds: masks of class indices in one channel; masks of one class, 0 and 255;
masks of colours, with a table of them in a text file or without; LabelMe's JSON; COCO's JSON of
instances.
Masks lie in a folder beside that of the images, as images/ and masks/, or beside each image, as
name.jpg and name_mask.png. It says what it takes them for and how many pixels each class has. Look
at samples.png before you train.

It writes images/{train,val} (links, or copies with --copy), annotations/{train,val} (class indices
as PNG, 255 for none) and dataset.json with classes, colours and where all came from.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from projects.SegFormer.dataset.description import Description
from projects.SegFormer.dataset.image_files import read_image
from projects.SegFormer.dataset.label_sources import Labelled, Source, find_source
from projects.SegFormer.dataset.transforms import IGNORE_INDEX, Resize
from projects.SegFormer.engine import command_line
from projects.SegFormer.evaluation.pictures import write_png
from projects.SegFormer.evaluation.visualize import contact_sheet, overlay
from projects.SegFormer.modeling.errors import InputError

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SAMPLES, SAMPLE_SIZE = 6, (240, 320)


def main(arguments: list[str]) -> None:
    """Raises InputError: see `find_source`; or TARGET is there, or too few images."""
    args = _parser().parse_args(arguments)
    target = Path(args.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there already: choose another folder, or remove it")
    if not 0 < args.val < 1:
        raise InputError(f"--val {args.val}: expected a share between 0 and 1, as 0.2")
    source = find_source(args.source, args.ignore)
    splits = split(source.images, args.val, args.seed, args.group)
    told = ", ".join(f"{len(images)} {name}" for name, images in splits.items())
    print(f"{args.source}: {source.kind}; {told}; {len(source.classes)} classes")
    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
    try:
        counts, sizes = write(source, splits, target, args.copy)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    Description(
        source.classes,
        [list(colour) for colour in source.palette],
        [int(side) for side in np.median(sizes, axis=0)],
        {name: len(images) for name, images in splits.items()},
    ).write(target, source=os.path.abspath(args.source), kind=source.kind, seed=args.seed)
    print(class_table(source, counts))
    print(
        f"look at {target / 'samples.png'}, then train:\n"
        f"  bash tools/train.sh configs/segformer_own.py 1 data.root={target}"
    )


def split(
    images: list[Labelled], share: float, seed: int, group: str | None = None
) -> dict[str, list[Labelled]]:
    """By the folders train and val, where both are there; else a share of all for validation.

    Args:
        group: a regular expression; what its first group, or all of it, finds in a name keeps
            images together, as those of one video.
    Raises InputError: there are not two images, or groups, to share out.
    """
    found = {}
    for image in images:
        parts = image.name.split("/")
        own = [SPLITS[part.lower()] for part in parts[:-1] if part.lower() in SPLITS]
        kept = "/".join(part for part in parts if part.lower() not in SPLITS)
        found.setdefault(own[0] if own else "all", []).append(
            image._replace(name=kept or parts[-1])
        )
    if {"train", "val"} <= found.keys():
        return {name: found[name] for name in ("train", "val", "test") if name in found}
    groups = {}
    for image in images:
        match = re.search(group, image.name) if group else None
        key = match[match.lastindex and 1 or 0] if match else image.name
        groups.setdefault(key, []).append(image)
    if len(groups) < 2:
        raise InputError(f"{len(images)} images in {len(groups)} groups: expected two at least")
    keys = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(keys))
    count = min(max(round(share * len(keys)), 1), len(keys) - 1)
    chosen = {keys[index] for index in order[:count]}
    return {
        name: [it for key in keys if (key in chosen) == is_val for it in groups[key]]
        for name, is_val in (("train", False), ("val", True))
    }


def write(source: Source, splits: dict, target: Path, copy: bool):
    """Write all; pixels of each class and of none, (classes + 1,), and (height, width) of each."""
    counts, sizes, samples = np.zeros(len(source.classes) + 1, np.int64), [], []
    everything = [(name, image) for name, images in splits.items() for image in images]
    for name, image in tqdm(everything, unit="image", disable=None, file=sys.stderr):
        label = image.label()
        own = np.where(label == IGNORE_INDEX, len(source.classes), label)
        counts += np.bincount(own.ravel(), minlength=len(counts))
        sizes.append(label.shape)
        picture = target / "images" / name / f"{image.name}{image.image.suffix.lower()}"
        if os.path.lexists(picture):
            raise InputError(f"{image.image}: another image is called {name}/{image.name}, too")
        mask = target / "annotations" / name / f"{image.name}.png"
        for file in (picture, mask):
            file.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copyfile(image.image, picture)
        else:
            picture.symlink_to(image.image.resolve())
        write_png(mask, label)
        if len(samples) < SAMPLES:
            samples.append(_sample(source, read_image(image.image), label))
    write_png(target / "samples.png", contact_sheet(_rows(samples), ["image", "labels"] * 2))
    return counts, sizes


def _sample(source: Source, image: np.ndarray, label: np.ndarray) -> list[np.ndarray]:
    if image.shape[:2] != label.shape:
        raise InputError(f"an image of {image.shape[:2]} pixels has labels of {label.shape}")
    image, label = Resize(SAMPLE_SIZE, keep_ratio=False)(image, label, None)
    image = np.asarray(image, np.uint8)
    return [image, overlay(image, label, source.classes, source.palette, 0.7, legend=False)]


def _rows(samples: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """Two samples a row."""
    blank = [np.full((*SAMPLE_SIZE, 3), 255, np.uint8)] * 2
    samples = samples + [blank] * (len(samples) % 2)
    return [first + second for first, second in zip(samples[::2], samples[1::2])]


def class_table(source: Source, counts: np.ndarray) -> str:
    """Index, name, colour and share of the pixels of each class."""
    shares = 100 * counts / counts.sum()
    width = max(len(name) for name in [*source.classes, "(none)"])
    lines = [
        f"{index:>5}  {name:<{width}}  #{bytes(source.palette[index]).hex()}  {shares[index]:6.2f}%"
        for index, name in enumerate(source.classes)
    ]
    return "\n".join(
        [*lines, f"{IGNORE_INDEX:>5}  {'(none)':<{width}}  {'':7}  {shares[-1]:6.2f}%"]
    )


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(__doc__)
    parser.add_argument("source", metavar="SOURCE", help="folder with images and their labels")
    parser.add_argument("target", metavar="TARGET", help="folder to write, which is not there yet")
    parser.add_argument("--val", type=float, default=0.2, help="share for validation; 0.2")
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    parser.add_argument(
        "--group", metavar="REGEX", help="images for which it finds the same stay in one split"
    )
    parser.add_argument(
        "--ignore",
        nargs="+",
        default=(),
        metavar="VALUE",
        help="pixels that count nowhere, besides 255: values as 0, colours as '#000000'",
    )
    parser.add_argument("--copy", action="store_true", help="copy the images; else they are linked")
    return parser


if __name__ == "__main__":
    command_line.run(main)
