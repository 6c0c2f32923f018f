"""Weights, and all that belongs to them, to predictions of images."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import oneflow as flow
from libai.config import instantiate
from libai.utils import distributed as dist
from omegaconf import DictConfig, ListConfig
from tqdm import tqdm

from projects.SegFormer.dataset.folder import distinct_palette
from projects.SegFormer.dataset.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Compose,
    Normalize,
    RandomCrop,
)
from projects.SegFormer.engine.checkpoint import AVERAGE, BEST, last_checkpoint
from projects.SegFormer.engine.config import complete, load_config
from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.evaluation.inference import Inference, Views, build_inference
from projects.SegFormer.evaluation.onnx_model import OnnxModel
from projects.SegFormer.model_utils.beside_weights import Beside, Scaled, beside_weights
from projects.SegFormer.model_utils.huggingface_config import ARCHITECTURES
from projects.SegFormer.model_utils.onnx_metadata import beside_onnx
from projects.SegFormer.model_utils.segf_loader import load_weights, open_in_any_format
from projects.SegFormer.model_utils.weight_paths import FILE_NAMES, LIBAI_FOLDER
from projects.SegFormer.model_utils.weight_writers import architecture_of
from projects.SegFormer.modeling.bounds import image_pixels
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerBlock

PLAIN_CONFIG = str(Path(__file__).parents[1] / "configs" / "segformer_camvid.py")  # whole images
USUAL_CROP = (512, 512)  # that weights are trained on, where nothing says another
MUCH_LARGER = 4  # times the pixels of a crop
# What is said of weights that the other class takes.
KINDS = dict(
    zip(
        ARCHITECTURES,
        (
            "a segmentation model's: Segmenter of evaluation/segmenter.py takes them",
            "a classifier's: Classifier of evaluation/classifier.py takes them",
        ),
    )
)


class Prediction(NamedTuple):
    """A model, and all that belongs to it.

    Attributes:
        classes, palette: name and RGB of each class.
        channels: of the images.
        transform: from a uint8 image to the network's float32.
        trained_on: (height, width) of the crops that it was trained on.
        progress: counts what the model does.
        mean, std: a value a channel, of images from 0 to 255.
        cfg: the config; None where what lies beside the weights counts.
    """

    model: flow.nn.Module
    inference: Inference
    transform: Compose
    classes: list[str]
    palette: list
    channels: int
    trained_on: tuple[int, int]
    progress: "Progress"
    mean: list[float]
    std: list[float]
    cfg: DictConfig | None

    def network_input(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8 -> (1, C, H', W') float32, before what `inference` does to it."""
        transformed, _ = self.transform(image, None, np.random.default_rng(0))
        return np.ascontiguousarray(transformed.transpose(2, 0, 1)[None])

    def views(self, images: np.ndarray, size: tuple[int, int]) -> Views:
        """What the model says of images of this (height, width), see `Inference.views`.

        Args:
            images: of `network_input`, several of one size in a batch.
        Raises InputError for images that are scaled to more pixels than an image may have.
        """
        for scale in self.inference.scales:
            sides = self.inference.input_size(images.shape[2:], scale)
            if prod(sides) > image_pixels():
                raise InputError(
                    f"inference scales it to {sides[0]}x{sides[1]}, more than {image_pixels():,} "
                    "pixels: set a smaller inference.resize, or smaller inference.scales"
                )
        passes = self.inference.passes(images.shape[2:])
        with flow.no_grad(), self.progress.of(passes):
            return self.inference.views(self.model, images, size)

    def too_large(self, images: np.ndarray) -> str:
        """What to say of an image that goes through the network far larger than the crops of its
        training; nothing for others."""
        if self.inference.crop_size:
            return ""
        height, width = self.inference.input_size(images.shape[2:], 1.0)
        rows, columns = self.trained_on
        times = height * width / (rows * columns)
        if times <= MUCH_LARGER:
            return ""
        return (
            f"goes through the network as {height}x{width}, {times:.0f} times the pixels of the "
            f"{rows}x{columns} that the weights were trained on: that takes long and finds less. "
            f"Scale images with inference.resize=[{min(rows, columns)},{4 * min(rows, columns)}], "
            "or take windows with "
            f"inference.crop_size=[{rows},{columns}]"
        )


class Progress:
    """A bar for each image that takes long, on a terminal: in blocks of the network, all passes."""

    def __init__(self, model: flow.nn.Module):
        self.bar = None
        blocks = [part for part in model.modules() if isinstance(part, SegformerBlock)]
        self.parts = blocks or [model]
        for part in self.parts:
            part.register_forward_hook(self._step)

    @contextmanager
    def of(self, passes: int):
        """Within, that many passes of the network are counted."""
        options = dict(leave=False, delay=3, disable=None, file=sys.stderr, unit="step")
        total = passes * len(self.parts)
        with tqdm(desc="this image", total=total, **options) as self.bar:
            yield
        self.bar = None

    def _step(self, *_) -> None:
        flow._oneflow_internal.eager.Sync()  # what was started is done
        if self.bar is not None:
            self.bar.update()


class Found(NamedTuple):
    """What belongs to weights.

    Attributes:
        weights: folder or file of them.
        file: of the config that counts; None where what lies beside the weights does.
        of_training: the config.yaml of their training, if any.
    """

    weights: str
    file: str | None
    of_training: str | None


def find_all(config: str | None, weights: str, overrides: list[str], free: str = "") -> Found:
    """Raises InputError for overrides without a config, but for those that begin with `free`."""
    weights, of_training = find_weights(weights)
    file = config or of_training
    wrong = [it for it in overrides if not free or not it.startswith(free)]
    if wrong and not file:
        known = f"only {free}* can be set" if free else "nothing can be set"
        raise InputError(f"{wrong[0]} needs --config; without it {known}")
    return Found(weights, file, of_training)


def what_lies_beside(found: Found) -> Beside | None:
    """Raises InputError where neither that nor a config says how weights are used."""
    beside = beside_weights(found.weights)
    if not beside and not found.file:
        open_in_any_format(found.weights)  # which tells it if there are none at all
        raise InputError(
            f"{found.weights} does not say how it is used: no config.json, segformer.json or "
            "config.yaml lies beside it; give the config of its training, --config configs/... or "
            "a config.yaml"
        )
    return beside


def prediction_of(
    config: str | None, weights: str, overrides: list[str], engine: str | None = None
) -> Prediction:
    """The model of `weights`, by a config or by what lies beside the weights.

    Raises:
        InputError: neither says what the classes are, or they are others than the weights have; or
            see `load_config` and `load_model`.
    """
    found = find_all(config, weights, overrides, free="inference.")
    with told_by_kind(found.weights, ARCHITECTURES[0]):
        return _prediction_of(found, config, overrides, engine)


def _prediction_of(
    found: Found, config: str | None, overrides: list[str], engine: str | None
) -> Prediction:
    weights, file, of_training = found
    mend_libai()
    model = None
    if weights.endswith(".onnx"):
        model = load_model(engine, weights, {}, None)
        beside = beside_onnx(model.metadata, weights)
    else:
        beside = what_lies_beside(found)
    cfg = load_config(file, overrides) if file else _config_beside(beside, overrides)
    dist.setup_dist_util(cfg.train.dist)
    dataset = cfg.dataloader.test[0].dataset
    classes, palette = classes_and_palette(dataset) if file else (None, None)
    if model:
        outputs, channels, fixed = model.num_classes, model.num_channels, model.size
        _check_count(outputs, classes and len(classes), weights)
    else:
        settings = cfg.model.cfg if file else {}
        model, fixed = load_model(engine, weights, settings, classes and len(classes)), None
        outputs = model.head.linear_pred.weight.shape[0]
        channels = model.segformer.patch_embeds[0].proj.weight.shape[1]
    if config and of_training and not os.path.samefile(config, of_training):
        try:
            beside = of_config(of_training)
        except InputError as error:  # it is not what counts
            print(f"note: {error}", file=sys.stderr)
    if fixed and "inference" in cfg and not cfg.inference.crop_size:  # scaled to that size before
        cfg.inference.resize, cfg.inference.divisor = None, 1
    inference = build_inference(cfg)
    if file:
        transforms = instantiate(dataset.transforms)
        mean, std = mean_and_std(dataset) or ([0.0] * channels, [1.0] * channels)
        for text in disagreements(of_config(cfg, file), beside):
            print(f"note: {text}", file=sys.stderr)
        crop, scaled = crop_of(cfg) or USUAL_CROP, None
    else:
        classes = beside.classes or [f"LABEL_{index}" for index in range(outputs)]
        palette = [tuple(colour) for colour in beside.palette or distinct_palette(outputs)]
        for name, values in (("classes", classes), ("colours", palette)):
            if len(values) != outputs:
                raise InputError(
                    f"{weights} has {outputs} classes, {beside.source} names {len(values)} {name}: "
                    "they do not belong together"
                )
        for text in _assumptions(beside):
            print(f"note: {beside.source} {text}", file=sys.stderr)
        mean, std = mean_and_std_beside(beside, channels)
        transforms = [Normalize(mean, std)]
        square = beside.size if isinstance(beside.size, tuple) else None
        crop, scaled = beside.trained_on or square or USUAL_CROP, beside.size
    if (scaled := fixed or scaled) and not inference.resize and not inference.crop_size:
        transforms.insert(0, Scaled(scaled, beside.resample))
    return Prediction(
        *(model, inference, Compose(transforms), classes, palette, channels, crop),
        *(Progress(model), mean, std, cfg if file else None),
    )


def _config_beside(beside: Beside, overrides: list[str]) -> DictConfig:
    """A config for what lies beside weights, its `inference` with the overrides."""
    stored = (beside.inference or {}).items()
    try:
        cfg = load_config(PLAIN_CONFIG, [f"inference.{key}={json.dumps(it)}" for key, it in stored])
    except InputError as error:
        raise InputError(f"the metadata of {beside.source}: {error}; export it again") from error
    return complete(cfg, overrides)


def mean_and_std_beside(beside: Beside, channels: int) -> tuple[list[float], list[float]]:
    """A value a channel; ImageNet's where nothing says them."""
    mean, std = (
        list(values or default) * (channels if values and len(values) == 1 else 1)
        for values, default in ((beside.mean, IMAGENET_MEAN), (beside.std, IMAGENET_STD))
    )
    return mean, std


def architecture_in(weights: str) -> str | None:
    """transformers' name of the model that the weights are of; None where that does not show."""
    if weights.endswith(".onnx"):
        return ARCHITECTURES[0]
    try:
        return architecture_of(open_in_any_format(weights)[0].shapes)
    except InputError:
        return None


@contextmanager
def told_by_kind(weights: str, architecture: str) -> Iterator[None]:
    """What goes wrong within with weights of the other model is an InputError that says so."""
    try:
        yield
    except InputError as error:
        found = architecture_in(weights)
        if found in (None, architecture):
            raise
        raise InputError(f"the weights at {weights} are {KINDS[found]}") from error


def find_weights(path: str) -> tuple[str, str | None]:
    """The weights at `path`, and the config.yaml of the training that they are of, if any.

    Of a training's output folder they are its model_best, else its last checkpoint.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if name in FILE_NAMES and os.path.isfile(os.path.join(folder, "config.json")):
        return os.path.dirname(path) or ".", None
    config = os.path.join(path, "config.yaml")
    if os.path.isfile(config):
        best, last = os.path.join(path, BEST), last_checkpoint(path)
        if os.path.isdir(best) or last:
            return (best if os.path.isdir(best) else last[0]), config
    checkpoint = os.path.abspath(path)
    if name == AVERAGE:  # a part of a checkpoint
        checkpoint, folder = folder, os.path.dirname(folder)
    is_checkpoint = os.path.isdir(os.path.join(checkpoint, LIBAI_FOLDER))
    config = os.path.join(folder, "config.yaml")
    return path, config if is_checkpoint and os.path.isfile(config) else None


def of_config(cfg, file: str | None = None) -> Beside:
    """What a config, or the file of one, says of the data."""
    if file is None:
        cfg, file = load_config(cfg), cfg
    dataset = cfg.dataloader.test[0].dataset
    mean, std = mean_and_std(dataset) or (None, None)
    return Beside(file, classes_and_palette(dataset)[0], mean, std)


def disagreements(config: Beside, beside: Beside | None) -> list[str]:
    """What lies beside weights and is otherwise in the config that counts, a line each."""
    if beside is None:
        return []
    found = []
    if beside.classes and beside.classes != config.classes:
        pairs = zip_longest(beside.classes, config.classes)
        index, pair = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        found.append(f"calls class {index} {pair[0]!r}, the config {pair[1]!r}")
    for name in ("mean", "std"):
        theirs, ours = getattr(beside, name), getattr(config, name)
        ours = ours or [float(name == "std")]
        if theirs and not _is_close(theirs, ours):
            told = [[round(value, 3) for value in values] for values in (theirs, ours)]
            found.append(f"has a {name} of {told[0]}, the config {told[1]}")
    if beside.size:
        found.append(f"scales images to {beside.size}, the config does as its `inference` says")
    return [f"{beside.source} {text}: {config.source} counts" for text in found]


def _assumptions(beside: Beside) -> list[str]:
    """What has to be known of predictions without a config, a line each."""
    found = []
    if not beside.mean or not beside.std:
        found.append("and what lies beside it have no mean and std: ImageNet's are taken")
    if beside.reduce_labels:
        found.append("counts classes from 1 in label files; NAME_labels.png has indices, from 0")
    return found


def _is_close(theirs: list[float], ours: list[float]) -> bool:
    """Files have six digits of a value from 0 to 1."""
    is_one = 1 in (len(theirs), len(ours)) or len(theirs) == len(ours)
    return is_one and np.allclose(theirs, ours, rtol=0, atol=1e-2)


def crop_of(cfg) -> tuple[int, int] | None:
    """(height, width) of the crops that the training of a config cuts out."""
    datasets = cfg.dataloader.train.dataset
    for dataset in datasets if isinstance(datasets, ListConfig) else [datasets]:
        for transform in dataset.get("transforms") or ():
            if transform["_target_"] is RandomCrop:
                return tuple(transform["size"])
    return None


def load_model(engine: str | None, weights: str, libai_cfg, classes: int | None):
    """The model that `engine` runs, by default the one that takes these weights.

    Raises InputError for weights of the other engine, those that do not fit the config, and those
    of another number of classes.
    """
    is_onnx = weights.endswith(".onnx")
    if engine and (engine == "onnx") != is_onnx:
        raise InputError(
            f"--engine {engine} does not take {weights}: "
            "a .onnx file of tools/export.py belongs to --engine onnx, all other weights to oneflow"
        )
    model = OnnxModel(weights) if is_onnx else load_weights(libai_cfg, weights)
    found = model.num_classes if is_onnx else model.head.linear_pred.weight.shape[0]
    _check_count(found, classes, weights)
    return model


def _check_count(found: int, classes: int | None, weights: str) -> None:
    if classes and found != classes:
        which = "that it was exported with" if weights.endswith(".onnx") else "of its training"
        raise InputError(
            f"{weights} has {found} classes, the data of the config {classes}: give the config "
            f"{which}"
        )


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
