"""Weights, and all that belongs to them, to predictions of images."""

import os
import sys
from contextlib import contextmanager
from itertools import zip_longest
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
from projects.SegFormer.engine.checkpoint import BEST, last_checkpoint
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.evaluation.inference import Inference, Views, build_inference
from projects.SegFormer.evaluation.onnx_model import OnnxModel
from projects.SegFormer.model_utils.beside_weights import (
    Beside,
    Scaled,
    beside_onnx,
    beside_weights,
)
from projects.SegFormer.model_utils.segf_loader import load_weights
from projects.SegFormer.model_utils.weight_paths import FILE_NAMES, LIBAI_FOLDER
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerBlock

PLAIN_CONFIG = str(Path(__file__).parents[1] / "configs" / "segformer_camvid.py")  # whole images
USUAL_CROP = (512, 512)  # that weights are trained on, where nothing says another
MUCH_LARGER = 4  # times the pixels of a crop


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
        """
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
            f"{rows}x{columns} that the weights were trained on: that takes long, "
            f"{height * width * 6e-10:.1f} GB or more, and finds less. "
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


def prediction_of(
    config: str | None, weights: str, overrides: list[str], engine: str | None = None
) -> Prediction:
    """The model of `weights`, by a config or by what lies beside the weights.

    Raises:
        InputError: neither says what the classes are, or they are others than the weights have; or
            see `load_config` and `load_model`.
    """
    weights, config_of_training = find_weights(weights)
    file = config or config_of_training
    if not file and (wrong := [it for it in overrides if not it.startswith("inference.")]):
        raise InputError(f"{wrong[0]} needs --config; without it only inference.* can be set")
    cfg = load_config(file or PLAIN_CONFIG, overrides)
    mend_libai()
    dist.setup_dist_util(cfg.train.dist)
    is_onnx = weights.endswith(".onnx")
    beside = None if is_onnx else beside_weights(weights)
    dataset = cfg.dataloader.test[0].dataset
    classes, palette = classes_and_palette(dataset) if file else (None, None)
    if not file and not beside and not is_onnx:
        raise InputError(
            f"{weights} does not say how it is used: no config.json, segformer.json or config.yaml "
            "lies beside it; give the config of its training, --config configs/... or a config.yaml"
        )
    model = load_model(engine, weights, cfg.model.cfg if file else {}, classes and len(classes))
    if is_onnx:
        beside = beside_onnx(model.metadata, weights)
        outputs, channels = model.num_classes, model.num_channels
    else:
        outputs = model.head.linear_pred.weight.shape[0]
        channels = model.segformer.patch_embeds[0].proj.weight.shape[1]
    if config and config_of_training and not os.path.samefile(config, config_of_training):
        try:
            beside = of_config(config_of_training)
        except InputError as error:  # it is not what counts
            print(f"note: {error}", file=sys.stderr)
    inference = build_inference(cfg)
    if file:
        transforms = instantiate(dataset.transforms)
        mean, std = mean_and_std(dataset) or ([0.0] * channels, [1.0] * channels)
        for text in disagreements(of_config(cfg, file), beside):
            print(f"note: {text}", file=sys.stderr)
        crop = crop_of(cfg) or USUAL_CROP
    else:
        classes = beside.classes or [f"LABEL_{index}" for index in range(outputs)]
        if len(classes) != outputs:
            raise InputError(
                f"{weights} has {outputs} classes, {beside.source} names {len(classes)}: they do "
                "not belong together"
            )
        palette = distinct_palette(outputs)
        for text in _assumptions(beside):
            print(f"note: {beside.source} {text}", file=sys.stderr)
        mean, std = (
            list(values or default) * (channels if values and len(values) == 1 else 1)
            for values, default in ((beside.mean, IMAGENET_MEAN), (beside.std, IMAGENET_STD))
        )
        transforms = [Normalize(mean, std)]
        if beside.size and not inference.resize and not inference.crop_size:
            transforms.insert(0, Scaled(beside.size, beside.resample))
        crop = beside.size if isinstance(beside.size, tuple) else USUAL_CROP
    return Prediction(
        *(model, inference, Compose(transforms), classes, palette, channels, crop),
        *(Progress(model), mean, std, cfg if file else None),
    )


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
    config = os.path.join(folder, "config.yaml")
    is_checkpoint = os.path.isdir(os.path.join(path, LIBAI_FOLDER)) and os.path.isfile(config)
    return path, config if is_checkpoint else None


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
    if classes and found != classes:
        raise InputError(
            f"{weights} has {found} classes, the data of the config {classes}: "
            f"give the config {'that it was exported with' if is_onnx else 'of its training'}"
        )
    return model


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
