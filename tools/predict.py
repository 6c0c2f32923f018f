"""Label maps of images, drawn for people.

    python tools/predict.py --weights output/model_best --output predictions IMAGE_OR_FOLDER ...
    python tools/predict.py --config configs/segformer_city.py --weights WEIGHTS \\
        --output predictions IMAGE_OR_FOLDER ... [key=value ...]

For each image NAME it writes NAME_labels.png (class indices; of 16 bits for more than 256 classes),
NAME_colors.png and NAME_overlay.png, the image under the colours with a legend. Of a folder all
images are taken, subfolders included, but nothing hidden and no results of an earlier prediction.

WEIGHTS are an output folder of a training or a checkpoint in it, a folder of Hugging Face or of
tools/convert_weights.py, a .onnx file of tools/export.py, which ONNX Runtime runs on the CPU, or
others with the config that they belong to. Without --config counts what lies beside the weights:
config.yaml, config.json and preprocessor_config.json, segformer.json, the metadata of the .onnx
file. With it the config counts, and what disagrees is told.

Images go through the network as the config's `inference` says: whole, unless
`inference.resize=[512,2048]` scales them first or `inference.crop_size=[512,512]` cuts them into
windows.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import os
import re
import sys
from pathlib import Path

from tqdm import tqdm

from projects.SegFormer.dataset.folders import walk
from projects.SegFormer.dataset.image_files import IMAGE_SUFFIXES
from projects.SegFormer.engine import command_line
from projects.SegFormer.evaluation.result_files import check_folder
from projects.SegFormer.evaluation.segmenter import RESULTS, Segmenter
from projects.SegFormer.modeling.errors import InputError, printable
from projects.SegFormer.modeling.files import reason


def main(arguments: list[str]) -> int:
    """The exit code: 1 if an image could not be read or its result not be written, else 0."""
    args = _parser().parse_args(arguments)
    check_folder(args.output)
    overrides = [word for word in args.images if is_override(word)]
    files = find_images([Path(it) for it in args.images if it not in overrides], args.output)
    segmenter = Segmenter(args.weights, args.config, overrides, args.engine)
    progress = tqdm(files.items(), unit="image", disable=None, file=sys.stderr)
    failed = 0
    for name, file in progress:
        try:
            target = Path(args.output) / name
            segmenter(file).save(target.parent, target.name)
        except Exception as error:  # whatever it is, the other images are done
            failed += 1
            told = isinstance(error, InputError)
            text = str(error) if told else f"{type(error).__name__}: {reason(error)}"
            text = text if str(InputError(str(file))) in text else f"{file}: {text}"
            tqdm.write(f"error: {InputError(text)}", file=sys.stderr)
    print(f"{len(files) - failed} of {len(files)} images segmented: see {printable(args.output)}")
    return 1 if failed else 0


def is_override(word: str) -> bool:
    """Whether a word is a setting of the config and no image, there or missing."""
    return (
        re.match(r"[^/]*=", word) is not None
        and not os.path.lexists(word)
        and not word.lower().endswith(IMAGE_SUFFIXES)
    )


def find_images(paths: list[Path], output: str = "") -> dict[str, Path]:
    """Image files by the name that their results get.

    Of a folder without results of an earlier prediction: those in a folder `output` within it, and
    the pictures of an image that stand side by side. Raises InputError if there is no image.
    """
    found, left_out = {}, 0
    own = os.path.realpath(output) + os.sep
    for path in paths:
        is_folder = os.path.isdir(path)
        files = [path]
        if is_folder:
            all_here = sorted(map(Path, walk(path, IMAGE_SUFFIXES)))
            results, root = _results(all_here), os.path.realpath(path) + os.sep
            if output and own != root:  # it may be within
                results |= {it for it in all_here if os.path.realpath(it).startswith(own)}
            files = [file for file in all_here if file not in results]
            left_out += len(all_here) - len(files)
            if not files:
                raise InputError(f"no images in {path}: expected {', '.join(IMAGE_SUFFIXES)}")
        for file in files:
            name = file.relative_to(path).with_suffix("") if is_folder else Path(file.stem)
            if str(name) in found:
                raise InputError(
                    f"{found[str(name)]} and {file} would both be written as {name}: "
                    "give them in two runs with another --output"
                )
            found[str(name)] = file
    if not found:
        raise InputError("no image was given: expected images or folders of images")
    if left_out:
        print(f"note: {left_out} results of an earlier prediction are left out", file=sys.stderr)
    return found


def _results(files: list[Path]) -> set[Path]:
    """Those of some files that are the pictures of one image, all that this tool writes of it."""
    there, results = set(map(str, files)), set()
    first = f"_{RESULTS[0]}.png"
    for file in filter(lambda name: name.endswith(first), there):
        pictures = {f"{file.removesuffix(first)}_{kind}.png" for kind in RESULTS}
        if pictures <= there:
            results |= set(map(Path, pictures))
    return results


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--config",
        help="config file, or config.yaml of a training; without it what lies beside the weights",
    )
    parser.add_argument(
        "--weights",
        required=True,
        help="checkpoint or output folder of a training, folder of Hugging Face, or a .onnx file",
    )
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument(
        "--engine",
        choices=("oneflow", "onnx"),
        help="what runs the model; by default onnx for a .onnx file, else oneflow",
    )
    parser.add_argument(
        "images",
        nargs="+",
        help="images or folders of images; also overrides of the config, as inference.flip=True",
    )
    return parser


if __name__ == "__main__":
    command_line.run(main)
