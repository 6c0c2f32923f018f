"""Draw a small road-scene dataset in the official Cityscapes layout.

    python tools/draw_street_scenes.py OUTPUT [--train 160] [--val 24] [--height 256] [--width 512]

dataset/street_scenes/ has what a scene is of.
"""

import json
import shutil
from pathlib import Path

from tqdm import tqdm

from projects.SegFormer.dataset.street_scenes.scene import CITIES, draw_scene
from projects.SegFormer.engine import command_line
from projects.SegFormer.evaluation.pictures import write_png
from projects.SegFormer.modeling.bounds import JSON_BYTES
from projects.SegFormer.modeling.errors import InputError, printable
from projects.SegFormer.modeling.files import read_bytes, write_whole

MARKER = "street_scenes.json"
VERSION = 1  # raise it when the pictures change: an older dataset is then drawn again


def files_of(output: Path, split: str, index: int) -> tuple[Path, Path]:
    """Paths of an image and of its labels as Cityscapes names them; 19 is its labelled frame."""
    cities = CITIES[split]
    city = cities[index % len(cities)]
    name = f"{city}_{index // len(cities):06d}_000019"
    image = output / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    return image, output / "gtFine" / split / city / f"{name}_gtFine_labelIds.png"


def draw_dataset(output: Path, train: int, val: int, height: int, width: int, seed: int) -> None:
    """Draw `train` and `val` scenes of (height,width) pixels into `output`, unless they are there.

    Raises:
        InputError: a number out of range, or `output` holds something that was not drawn here.
    """
    if min(train, val) < 1 or min(height, width) < 64 or seed < 0:
        raise InputError(
            f"{train} and {val} scenes of {height}x{width} pixels, seed {seed}: expected at least "
            "1 scene of each split, sides of 64 pixels or more and a seed of 0 or more"
        )
    marker = output / MARKER
    settings = {
        "version": VERSION,
        "train": train,
        "val": val,
        "size": [height, width],
        "seed": seed,
    }
    finished = json.dumps(settings).encode()
    scenes = [("train", i) for i in range(train)] + [("val", i) for i in range(val)]
    if marker.is_file():
        paths = [path for scene in scenes for path in files_of(output, *scene)]
        drawn = read_bytes(marker, JSON_BYTES) == finished
        if drawn and all(path.is_file() for path in paths):
            print(f"{printable(output)}: the {len(scenes)} street scenes are there already")
            return
    elif output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(
            f"{output} exists and was not drawn by this tool: expected an empty or a new folder"
        )
    output.mkdir(parents=True, exist_ok=True)
    write_whole(marker, b"unfinished")
    for folder in ("leftImg8bit", "gtFine"):
        shutil.rmtree(output / folder, ignore_errors=True)
    for split, index in tqdm(scenes, "drawing street scenes", disable=None):
        image, labels = draw_scene(seed, split, index, height, width)
        for path, picture in zip(files_of(output, split, index), (image, labels), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, picture)
    write_whole(marker, finished)
    print(f"{printable(output)}: {train} street scenes for training, {val} for evaluation")


def main(arguments: list[str]) -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("output", type=Path, help="a new or empty folder, or one drawn before")
    parser.add_argument("--train", type=int, default=160, help="number of training scenes")
    parser.add_argument("--val", type=int, default=24, help="number of evaluation scenes")
    parser.add_argument("--height", type=int, default=256, help="pixels")
    parser.add_argument("--width", type=int, default=512, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    draw_dataset(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    command_line.run(main)
