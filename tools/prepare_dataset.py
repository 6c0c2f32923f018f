"""A folder of labelled images to the layout that this project trains on.

    python tools/prepare_dataset.py SOURCE data/mine
    bash tools/train.sh configs/segformer_own.py 1 data.root=data/mine

It sees what SOURCE holds: masks of class indices or of colours, with a table of them in a text file
or without; masks of one class, or one for each class; JSON of LabelMe, COCO (instances and
panoptic) or Label Studio, and CVAT's XML. Masks lie in a folder beside that of the images, as
images/ and masks/, or beside each image, as name.jpg and name_mask.png. Splits are those of folders
or list files, as train.txt and val.txt. It says what it takes SOURCE for and how many pixels each
class has. Look at samples.png before you train.

It writes images/{train,val} (links, or copies with --copy), annotations/{train,val} (class indices
as PNG, 255 for none) and dataset.json with classes, colours and where all came from.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from projects.SegFormer.dataset.description import Description
from projects.SegFormer.dataset.image_files import as_rgb, channel_count, read_image
from projects.SegFormer.dataset.label_sources import Labelled, Source, find_source
from projects.SegFormer.dataset.label_sources.source import fitted
from projects.SegFormer.dataset.label_sources.splits import split
from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.engine import command_line
from projects.SegFormer.evaluation.pictures import write_png
from projects.SegFormer.evaluation.sample_sheet import sample_sheet, scaled
from projects.SegFormer.modeling.errors import InputError

SAMPLES = 6


def main(arguments: list[str]) -> None:
    """Raises InputError: see `find_source`; TARGET is there or in SOURCE; or too few images."""
    args = _parser().parse_args(arguments)
    target = Path(args.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there already: choose another folder, or remove it")
    if Path(args.source).resolve() in target.resolve().parents:
        raise InputError(f"{target} lies in {args.source}: choose a folder outside of it")
    if not 0 < args.val < 1:
        raise InputError(f"--val {args.val}: expected a share between 0 and 1, as 0.2")
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: expected 0 or more")
    source = find_source(args.source, args.ignore, args.classes)
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
    ).write(
        target,
        source=os.path.abspath(args.source),
        kind=source.kind,
        notes=source.notes,
        ignored=[str(IGNORE_INDEX), *args.ignore],
        seed=args.seed,
    )
    print(class_table(source, counts))
    print(
        f"look at {target / 'samples.png'}, then train:\n"
        f"  bash tools/train.sh configs/segformer_own.py 1 data.root={target}"
    )


def write(source: Source, splits: dict[str, list[Labelled]], target: Path, copy: bool):
    """Write all; pixels of each class and of none, (classes + 1,), and (height, width) of each."""
    counts, sizes, samples = np.zeros(len(source.classes) + 1, np.int64), [], []
    everything = [(name, image) for name, images in splits.items() for image in images]
    for name, image in tqdm(everything, unit="image", disable=None, file=sys.stderr):
        label = fitted(image.label(), image.image)
        own = np.where(label == IGNORE_INDEX, len(source.classes), label)
        counts += np.bincount(own.ravel(), minlength=len(counts))
        sizes.append(label.shape)
        picture = target / "images" / name / f"{image.name}{image.image.suffix.lower()}"
        mask = target / "annotations" / name / f"{image.name}.png"
        if os.path.lexists(mask):
            raise InputError(f"{image.image}: another image is called {name}/{image.name}, too")
        for file in (picture, mask):
            file.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copyfile(image.image, picture)
        else:
            picture.symlink_to(image.image.resolve())
        write_png(mask, label)
        if len(samples) < SAMPLES:
            try:
                shown = read_image(image.image)
            except InputError:  # of other bands than three
                shown = as_rgb(read_image(image.image, channel_count(image.image)))
            samples.append((image.name, scaled(shown), scaled(label)))
    write_png(target / "samples.png", sample_sheet(samples, source.classes, source.palette))
    return counts, sizes


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
        help="what counts nowhere, besides 255: values as 0, colours as '#000000', classes",
    )
    parser.add_argument(
        "--classes", nargs="+", default=(), metavar="NAME", help="names, in the order of the table"
    )
    parser.add_argument("--copy", action="store_true", help="copy the images; else they are linked")
    return parser


if __name__ == "__main__":
    command_line.run(main)
