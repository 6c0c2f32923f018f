"""Whether the data of a config is whole, what is in it, and what training sees of it.

    python tools/check_dataset.py CONFIG [--sample N] [--output FOLDER] [key=value ...]

It reads every file of the training and the test data, counts the classes, draws augmented training
samples with their labels, and measures how fast they come. FOLDER gets report.json with all counts,
and samples.png. The exit code is 1 if a file, one that is missing, or the number of classes would
stop a training; the report has all there is all the same.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import os
import time
from itertools import islice
from pathlib import Path

import numpy as np
from libai.config import instantiate
from omegaconf import DictConfig

from projects.SegFormer.dataset.build import Loader
from projects.SegFormer.dataset.classification import ClassificationFolder
from projects.SegFormer.dataset.image_files import as_rgb
from projects.SegFormer.dataset.inspection import Dataset, Inspection, images_in_both, inspect
from projects.SegFormer.dataset.remarks import listening
from projects.SegFormer.dataset.sampler import InfiniteSampler
from projects.SegFormer.dataset.transforms import Normalize
from projects.SegFormer.engine import command_line
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.trainer import check_data
from projects.SegFormer.evaluation.pictures import write_png
from projects.SegFormer.evaluation.sample_sheet import grid, sample_sheet, scaled
from projects.SegFormer.evaluation.visualize import (
    contact_sheet,
    drawable,
    titled,
)
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import write_json

TRAINING, TEST = "training data", "test data"
LISTED = 20  # errors; classes at either end of a long table
# The loader is measured over so much at most, in batches of so many.
MEASURED_SAMPLES, MEASURED_SECONDS, MEASURED_BATCH = 200, 10, 8


def main(arguments: list[str]) -> None:
    """Raises InputError: at the end if the data has errors, before if the config has."""
    args = _parser().parse_intermixed_args(arguments)
    if args.sample < 0:
        raise InputError(f"--sample {args.sample}: expected a number of samples, 0 for no sheet")
    cfg = load_config(args.config, args.overrides)
    datasets, errors = build_datasets(cfg)
    folder = Path(args.output or Path("output/check_dataset", Path(args.config).stem))
    os.makedirs(folder, exist_ok=True)

    found = {name: inspect(dataset, name) for name, dataset in datasets.items()}
    errors += [error for inspection in found.values() for error in inspection.errors]
    report = {
        "config": args.config,
        "overrides": args.overrides,
        "data": {name: inspection.to_dict() for name, inspection in found.items()},
        "notes": notes(found),
    }
    if found:
        print(format_counts(found), format_classes(found), sep="\n\n", end="\n\n")
    for note in report["notes"]:
        print("note:", note)

    if TRAINING in found:
        broken = len(found[TRAINING].errors)
        samples = take_samples(datasets[TRAINING], cfg.train.seed, args.sample + broken)
        if samples := samples[: args.sample]:
            file = folder / "samples.png"
            write_png(file, draw_sheet(datasets[TRAINING], samples))
            print(f"{len(samples)} augmented training samples: {file}")
        try:
            if not broken:
                report["training_loader"] = measure(cfg, datasets[TRAINING])
                print("training loader:", format_speed(report["training_loader"]))
        except InputError as error:  # the transforms, or samples that do not make a batch
            errors += [str(error)] if str(error) not in errors else []

    file = folder / "report.json"
    write_json(file, {**report, "errors": errors})
    print(f"all counts: {file}")
    if not errors:
        print("no errors")
        return
    print("", *errors[:LISTED], sep="\n")
    more = f", the first {LISTED} of them above" if len(errors) > LISTED else ""
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    raise InputError(f"{count} in the data{more}; all are in {file}")


def build_datasets(cfg: DictConfig) -> tuple[dict[str, Dataset], list[str]]:
    """The data sets of the config by name, the training data first; and what is wrong with them.

    Images and labels that stand alone are left out of a data set, one that cannot be made at all is
    not there: the others are.
    """
    cfg.dataloader.train.dataset.seed = cfg.train.seed  # as the trainer does
    tests = cfg.dataloader.test
    settings = {TRAINING: cfg.dataloader.train.dataset}
    for number, loader in enumerate(tests):
        settings[TEST if len(tests) == 1 else f"{TEST} {number}"] = loader.dataset
    datasets, errors = {}, []
    for name, setting in settings.items():
        with listening() as heard:
            try:
                dataset = instantiate(setting)
                datasets[name] = dataset
                check_data(cfg, dataset)
                if dataset.classes != datasets.get(TRAINING, dataset).classes:
                    raise InputError(
                        f"dataloader.test: the {name} has other classes than "
                        f"dataloader.train.dataset: {dataset.classes[:3]} ... and "
                        f"{datasets[TRAINING].classes[:3]} ...; give both the same, in the same "
                        "order"
                    )
            except InputError as error:
                heard.faults.append(str(error))
        errors += [fault for fault in heard.faults if fault not in errors]
    return datasets, errors


def notes(found: dict[str, Inspection]) -> list[str]:
    """What may be as it should, but is worth a look."""
    lines = []
    for name, inspection in found.items():
        absent = inspection.absent_classes()
        if absent:
            more = ", ..." if len(absent) > LISTED else ""
            lines.append(
                f"{len(absent)} of {len(inspection.classes)} classes occur nowhere in the {name}: "
                f"{', '.join(absent[:LISTED])}{more}"
            )
        if ignored := inspection.ignored_class():
            lines.append(f"{name}: {ignored}")
        copies = inspection.copies
        if copies:
            lines.append(
                f"{len(copies)} of {inspection.images} images of the {name} are copies of others "
                f"in it, pixel for pixel: {copies[0][1]} = {copies[0][0]}"
                f"{', ...' if len(copies) > 1 else ''}"
            )
        if TRAINING in found and name != TRAINING:
            both = images_in_both(found[TRAINING], inspection)
        else:
            both = []
        if both:
            lines.append(
                f"{len(both)} of {inspection.images} images of the {name} also in the {TRAINING}, "
                f"pixel for pixel: {both[0][1]} = {both[0][0]}{', ...' if len(both) > 1 else ''}"
            )
        for remark, files in inspection.remarks.items():
            more = ", ..." if len(files) > 3 else ""
            lines.append(
                f"{len(files)} files of the {name}: {remark}: {', '.join(files[:3])}{more}"
            )
    return lines


# ---- Counts as text ---------------------------------------------------------------------------


def format_counts(found: dict[str, Inspection]) -> str:
    """Of each data set, how many files, of what sizes, and what part is ignored."""
    lines = []
    for name, inspection in found.items():
        counts = f"{inspection.images:,} images"
        if inspection.kind == "pixels":
            counts += f", {inspection.labels:,} labels"
        if inspection.errors:
            counts += f" read, {len(inspection.errors):,} with errors"
        lines.append(f"{name:<15}{counts}")
        lines.append(f"{'  sizes':<15}{_format_sizes(inspection)}")
        if inspection.kind == "pixels" and inspection.labels:
            share = inspection.ignored_share()
            lines.append(f"{'  ignored':<15}{share:.1%} of the pixels of the labels")
    return "\n".join(lines)


def _format_sizes(inspection: Inspection) -> str:
    """Sizes as height x width."""
    if len(inspection.sizes) == 1:
        return "all {}x{}".format(*next(iter(inspection.sizes)))
    common = ", ".join(
        f"{height}x{width} ({count:,})"
        for (height, width), count in inspection.sizes.most_common(3)
    )
    if len(inspection.sizes) <= 3:
        return common or "-"
    ranges = (
        f"{side} {smallest} to {largest}, median {median}"
        for side, (smallest, median, largest) in inspection.size_range().items()
    )
    return f"{'; '.join(ranges)}; most often {common}"


def format_classes(found: dict[str, Inspection]) -> str:
    """A table with a line a class; of many the most frequent and the rarest that occur at all."""
    figures = {
        name: dict(zip(inspection.classes, zip(inspection.class_images, inspection.shares())))
        for name, inspection in found.items()
    }
    order = [*dict.fromkeys(name for classes in figures.values() for name in classes)]
    left_out = 0
    if len(order) > 2 * LISTED:
        first = next(iter(figures.values()))
        order.sort(key=lambda name: -first.get(name, (0, 0))[1])
        order = [
            name
            for name in order
            if any(classes.get(name, (0,))[0] for classes in figures.values())
        ]
        left_out = max(0, len(order) - 2 * LISTED)
        order = [*order[:LISTED], *order[LISTED + left_out :]]
    width = max(len(name) for name in ("class", *map(drawable, order)))
    share_head = "pixels" if next(iter(found.values())).kind == "pixels" else "share"
    lines = [
        " " * width + "".join(f"{name:>21}" for name in found),
        f"{'class':<{width}}" + f"{'images':>12}{share_head:>9}" * len(found),
    ]
    for name in order:
        line = f"{drawable(name):<{width}}"
        for data, inspection in found.items():
            cells = ("-", "-")
            if inspection.labels and name in figures[data]:
                images, share = figures[data][name]
                cells = (f"{images:,}", f"{share:.2%}")
            line += f"{cells[0]:>12}{cells[1]:>9}"
        lines.append(line)
    if left_out:
        lines.insert(2 + LISTED, f"... {left_out} classes more, in report.json ...")
    return "\n".join(lines)


# ---- The training loader ----------------------------------------------------------------------


def measure(cfg: DictConfig, dataset: Dataset) -> dict:
    """How many augmented samples a second the training loader gives when nobody makes it wait.

    Raises InputError if the samples do not make batches.
    """
    settings = cfg.dataloader.train
    batch_size = min(cfg.train.global_batch_size, MEASURED_BATCH)
    sampler = InfiniteSampler(len(dataset), batch_size, seed=cfg.train.seed)
    mixing = instantiate(settings.mixing) if settings.get("mixing") else None
    batches = iter(Loader(dataset, sampler, settings.num_workers, mixing=mixing))
    try:
        size = next(batches).images.tensor.shape[2:]  # until here the threads were filling up
        start, samples, seconds = time.perf_counter(), 0, 0.0
        while samples < MEASURED_SAMPLES and seconds < MEASURED_SECONDS:
            samples += len(next(batches).images.tensor)
            seconds = time.perf_counter() - start
    finally:
        batches.close()
    return {
        "images_per_second": samples / seconds,
        "num_workers": settings.num_workers,
        "batch_size": batch_size,
        "size": list(size),
    }


def format_speed(speed: dict) -> str:
    """As "31.2 images/s with 2 workers at 1024x1024"."""
    workers, (height, width) = speed["num_workers"], speed["size"]
    return (
        f"{speed['images_per_second']:.1f} images/s with {workers} worker{'s' * (workers != 1)} at "
        f"{height}x{width}"
    )


# ---- The sheet of samples ---------------------------------------------------------------------


def take_samples(dataset: Dataset, seed: int, draws: int) -> list[tuple[int, np.ndarray, object]]:
    """Index, image and label of the first `draws` samples of a training, without broken files."""
    samples = []
    for (draw,) in islice(InfiniteSampler(len(dataset), 1, seed=seed), draws):
        try:
            samples.append((draw.index, *dataset[draw]))
        except InputError:  # `inspect` or `measure` tells of it
            continue
    return samples


def draw_sheet(dataset: Dataset, samples: list[tuple[int, np.ndarray, object]]) -> np.ndarray:
    """The samples as pictures, those of label maps also under the colours of their classes."""
    if isinstance(dataset, ClassificationFolder):
        tiles = [
            [titled(scaled(_shown(dataset, image)), dataset.classes[label])]
            for _, image, label in samples
        ]
        return contact_sheet(grid(tiles, 4), ["augmented image"] * min(4, len(tiles)))

    named = (
        (Path(dataset.images[index]).stem, _shown(dataset, image), label)
        for index, image, label in samples
    )
    titles = "augmented image", "its label"
    return sample_sheet(list(named), dataset.classes, dataset.palette, titles)


def _shown(dataset: Dataset, image: np.ndarray) -> np.ndarray:
    """A transformed image, (C, H, W) float32, in colours again: (H, W, 3) uint8."""
    image = image.transpose(1, 2, 0)
    for transform in dataset.transforms.transforms:
        if isinstance(transform, Normalize):
            black, white = transform.table[0, 0], transform.table[0, 255]
            image = (image - black) / (white - black) * 255
    return as_rgb(np.rint(image).clip(0, 255).astype(np.uint8))


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(__doc__)
    parser.add_argument("config", metavar="CONFIG", help="config file")
    parser.add_argument(
        "--sample", type=int, default=8, metavar="N", help="samples in the sheet, 8 without"
    )
    parser.add_argument("--output", metavar="FOLDER", help="output/check_dataset/NAME without")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    return parser


if __name__ == "__main__":
    command_line.run(main)
