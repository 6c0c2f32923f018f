"""Label maps of images, drawn for people.

    python tools/predict.py --config configs/segformer_city.py --weights output/model_best \
        --output predictions IMAGE_OR_FOLDER ... [key=value ...]

For each image NAME it writes NAME_labels.png (class indices), NAME_colors.png and NAME_overlay.png,
the image under the colours with a legend. Of a folder all images are taken, subfolders included.
Images go through the network as the config's `inference` says. With `--engine onnx` the weights are
a file of tools/export.py, which ONNX Runtime runs on the CPU.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import oneflow as flow
from libai.config import instantiate
from libai.utils import distributed as dist
from tqdm import tqdm

from projects.SegFormer.dataset.folder import distinct_palette
from projects.SegFormer.dataset.image_files import IMAGE_SUFFIXES, read_image
from projects.SegFormer.dataset.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Compose,
    Normalize,
)
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.evaluation.inference import Inference, build_inference
from projects.SegFormer.evaluation.onnx_model import OnnxModel
from projects.SegFormer.evaluation.pictures import write_png
from projects.SegFormer.evaluation.visualize import colorize, overlay
from projects.SegFormer.model_utils.segf_loader import load_weights
from projects.SegFormer.modeling.errors import InputError, printable
from projects.SegFormer.modeling.files import reason


def main(arguments: list[str]) -> int:
    """The exit code: 1 if an image could not be read or its result not be written, else 0."""
    args = _parser().parse_args(arguments)
    overrides = [word for word in args.images if "=" in word and not os.path.exists(word)]
    cfg = load_config(args.config, overrides)
    mend_libai()
    dist.setup_dist_util(cfg.train.dist)
    files = find_images([Path(path) for path in args.images if path not in overrides])
    dataset = cfg.dataloader.test[0].dataset
    classes, palette = classes_and_palette(dataset)
    transform = Compose(instantiate(dataset.transforms))
    inference = build_inference(cfg)
    model = load_model(args.engine, args.weights, cfg.model.cfg, len(classes))

    failed = 0
    for name, file in tqdm(files.items(), unit="image", disable=None, file=sys.stderr):
        try:
            image = read_image(file)
            labels = predict(model, inference, transform, image)
            target = Path(args.output) / name
            os.makedirs(target.parent, exist_ok=True)
            write_png(f"{target}_labels.png", labels)
            write_png(f"{target}_colors.png", colorize(labels, palette))
            write_png(f"{target}_overlay.png", overlay(image, labels, classes, palette))
        except Exception as error:  # whatever it is, the other images are done
            failed += 1
            told = isinstance(error, InputError)
            text = str(error) if told else f"{file}: {type(error).__name__}: {reason(error)}"
            tqdm.write(f"error: {text}", file=sys.stderr)
    print(f"{len(files) - failed} of {len(files)} images segmented: see {printable(args.output)}")
    return 1 if failed else 0


def load_model(engine: str, weights: str, libai_cfg, classes: int):
    """The model that `engine` runs.

    Raises InputError for weights of the other engine, and for those that do not fit the config.
    """
    if (engine == "onnx") != weights.endswith(".onnx"):
        raise InputError(
            f"--engine {engine} does not take {weights}: "
            "a .onnx file of tools/export.py belongs to --engine onnx, all other weights to oneflow"
        )
    if engine == "oneflow":
        return load_weights(libai_cfg, weights)
    model = OnnxModel(weights)
    if model.num_classes != classes:
        raise InputError(
            f"{weights} has {model.num_classes} classes, the data of the config {classes}: "
            "give the config that it was exported with"
        )
    return model


def predict(model, inference: Inference, transform: Compose, image: np.ndarray) -> np.ndarray:
    """The class index of each pixel of an RGB image: (H, W, 3) uint8 -> (H, W) uint8."""
    transformed, _ = transform(image, None, np.random.default_rng(0))
    images = np.ascontiguousarray(transformed.transpose(2, 0, 1)[None])
    with flow.no_grad():
        return inference(model, images, image.shape[:2])[0].astype(np.uint8)


def find_images(paths: list[Path]) -> dict[str, Path]:
    """Image files by the name that their results get. Raises InputError if there is none."""
    found = {}
    for path in paths:
        if path.is_dir():
            found_here = (f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
            files = sorted(file for file in found_here if not file.is_dir())
            if not files:
                raise InputError(f"no images in {path}: expected {', '.join(IMAGE_SUFFIXES)}")
        else:
            files = [path]
        for file in files:
            name = file.relative_to(path).with_suffix("") if path.is_dir() else Path(file.stem)
            if str(name) in found:
                raise InputError(
                    f"{found[str(name)]} and {file} would both be written as {name}: "
                    "give them in two runs with another --output"
                )
            found[str(name)] = file
    return found


def classes_and_palette(dataset) -> tuple[list[str], list]:
    """Class names and colours of a data set in a config, without the data itself."""
    if "classes" in dataset:
        classes = list(dataset.classes)
        palette = dataset.get("palette") or distinct_palette(len(classes))
        return classes, [tuple(colour) for colour in palette]
    target = dataset["_target_"]
    if not hasattr(target, "PALETTE"):
        raise InputError(
            f"the data set of the config, {target.__name__}, has no colours for classes: "
            "expected a config of segmentation"
        )
    return list(target.CLASSES), list(target.PALETTE)


def mean_and_std(dataset) -> tuple[list[float], list[float]] | None:
    """What the data set in a config normalises its images with; None if it does not."""
    for transform in dataset.transforms:
        if transform["_target_"] is Normalize:
            mean, std = transform.get("mean", IMAGENET_MEAN), transform.get("std", IMAGENET_STD)
            return list(mean), list(std)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="config file, or config.yaml of a training")
    parser.add_argument(
        "--weights",
        required=True,
        help="checkpoint folder of a training, or of Hugging Face; a model.onnx for --engine onnx",
    )
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument(
        "--engine", choices=("oneflow", "onnx"), default="oneflow", help="what runs the model"
    )
    parser.add_argument(
        "images",
        nargs="+",
        help="images or folders of images; also overrides of the config, as inference.flip=True",
    )
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
