"""Label maps of images and videos, drawn for people; of a classifier the likeliest classes.

    python tools/predict.py --weights output/segformer_own FILE_OR_FOLDER ...
    python tools/predict.py --config configs/segformer_city.py --weights WEIGHTS \\
        --output predictions FILE_OR_FOLDER ... [key=value ...]

For each image NAME it writes what --save says:
    labels         NAME_labels.png, class indices, of 16 bits for more than 255 classes
    colors         NAME_colors.png
    overlay        NAME_overlay.png, the image under the colours with a legend
    probabilities  NAME_probabilities.png, of each pixel's class; 16 bits, 65535 for 1
    polygons       NAME.geojson, in pixels, and NAME_rle.json, COCO's run lengths
A video gives NAME_colors.mp4 and NAME_overlay.mp4, without sound and legend; of the other kinds a
file for each frame, in a folder NAME_labels and so on. Of a folder all images and videos are taken,
subfolders included, but nothing hidden and no results of an earlier prediction. A classifier writes
no files: its best five classes are printed.

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

from projects.SegFormer.engine import command_line
from projects.SegFormer.evaluation.classifier import Classifier, predictor_of
from projects.SegFormer.evaluation.input_files import SUFFIXES, find_images, is_video
from projects.SegFormer.evaluation.result_files import check_folder
from projects.SegFormer.evaluation.segmenter import (
    OPACITY,
    RESULTS,
    checked_kinds,
    checked_opacity,
    class_indices,
)
from projects.SegFormer.evaluation.videos import segment_video
from projects.SegFormer.modeling.errors import InputError, printable
from projects.SegFormer.modeling.files import reason

BEST = 5  # classes that a classifier prints


def main(arguments: list[str]) -> int:
    """The exit code: 1 if a file could not be read or its result not be written, else 0."""
    args = _parser().parse_args(arguments)
    wanted = {
        "kinds": checked_kinds(args.save.replace(" ", "").split(",")),
        "opacity": checked_opacity(args.opacity),
        "classes": None if args.classes is None else args.classes.split(","),
    }
    if "" in args.images:
        raise InputError("an image's name is empty: is a variable of the shell empty?")
    check_folder(args.output)
    overrides = [word for word in args.images if is_override(word)]
    files = find_images([Path(it) for it in args.images if it not in overrides], args.output)
    predictor = predictor_of(args.weights, args.config, overrides, args.engine)
    class_indices(wanted["classes"] or (), predictor.classes)  # before it takes long
    kind = "image"
    if any(map(is_video, files.values())):
        kind = "file"
        print("note: videos are written without sound", file=sys.stderr)
    failed = 0
    for name, file in tqdm(files.items(), unit=kind, disable=None, file=sys.stderr):
        target = Path(args.output) / name
        try:
            if isinstance(predictor, Classifier):
                best = (f"{share:.1%} {printable(it)}" for it, share in predictor(file).top(BEST))
                tqdm.write(f"{printable(file)}: {', '.join(best)}")
            elif is_video(file):
                segment_video(predictor, file, target.with_suffix(""), **wanted)
            else:
                predictor(file).save(target.parent, target.name, **wanted)
        except Exception as error:  # whatever it is, the other files are done
            failed += 1
            told = isinstance(error, InputError)
            text = str(error) if told else f"{type(error).__name__}: {reason(error)}"
            text = text if str(InputError(str(file))) in text else f"{file}: {text}"
            tqdm.write(f"error: {InputError(text)}", file=sys.stderr)
    done = f"{len(files) - failed} of {len(files)} {kind}s"
    if isinstance(predictor, Classifier):
        print(f"{done} classified")
    else:
        print(f"{done} segmented: see {printable(args.output)}")
    return 1 if failed else 0


def is_override(word: str) -> bool:
    """Whether a word is a setting of the config and no file, there or missing."""
    return (
        re.match(r"[^/]*=", word) is not None
        and not os.path.lexists(word)
        and not word.lower().endswith(SUFFIXES)
    )


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
    parser.add_argument(
        "--output", default="predictions", help="folder for the results, by default %(default)s"
    )
    parser.add_argument(
        "--save", default=",".join(RESULTS), help="kinds of results, by default %(default)s"
    )
    parser.add_argument(
        "--opacity",
        type=float,
        default=OPACITY,
        help="of the colours over the image, from 0 to 1; by default %(default)s",
    )
    parser.add_argument(
        "--classes", help="names of those to be drawn, as road,car; label files have all"
    )
    parser.add_argument(
        "--engine",
        choices=("oneflow", "onnx"),
        help="what runs the model; by default onnx for a .onnx file, else oneflow",
    )
    parser.add_argument(
        "images",
        nargs="+",
        help="images, videos or folders; also overrides of the config, as inference.flip=True",
    )
    return parser


if __name__ == "__main__":
    command_line.run(main)
