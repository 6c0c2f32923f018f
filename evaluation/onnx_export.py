"""A model as an ONNX graph in the form that is asked for, held against the model."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import oneflow as flow
import onnx
from libai.config import instantiate

from projects.SegFormer.dataset.transforms import Normalize
from projects.SegFormer.evaluation.evaluate import evaluate_segmentation
from projects.SegFormer.evaluation.inference import Inference, build_inference
from projects.SegFormer.evaluation.onnx_model import OnnxModel, open_session
from projects.SegFormer.evaluation.prediction import Prediction
from projects.SegFormer.model_utils.beside_weights import Beside, Scaled
from projects.SegFormer.model_utils.model_weights import whole
from projects.SegFormer.model_utils.onnx_graph import IMAGES, LOGITS, add_arg_max, fix_size, to_onnx
from projects.SegFormer.model_utils.onnx_metadata import INFERENCE, add_metadata
from projects.SegFormer.model_utils.onnx_quantisation import quantise, to_half
from projects.SegFormer.modeling.bounds import image_pixels
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import MIN_SIDE

TOLERANCE = 1e-4  # of a float32 logit
HALF_TOLERANCE = 0.02  # of a float16 logit, times the largest one
SHAPES = ((1, 96, 160), (3, 65, 47))  # (N, H, W) of the images on which graphs and OneFlow compare
CALIBRATION_IMAGES = 32


class Form(NamedTuple):
    """What a graph is to be.

    Attributes:
        int8: quantised, calibrated and evaluated on the data of the config.
        half: with weights and computation in float16; images and logits stay float32.
        arg_max: with labels at the size of the images in the place of logits.
        size: (height, width) of one image at a time; None for any number of any size.
    """

    int8: bool = False
    half: bool = False
    arg_max: bool = False
    size: tuple[int, int] | None = None


def exported(prediction: Prediction, form: Form) -> tuple[onnx.ModelProto, list[str]]:
    """The graph, with its metadata, and what was found of it, a line each.

    Raises InputError for a form that cannot be, and where the graph does not give what the model
    does.
    """
    check_form(prediction, form)
    model = prediction.model
    graph = to_onnx(model, by_rows=form.size is None)
    lines = [
        f"in float32 the logits differ from OneFlow's by {largest_difference(model, graph):.1e} at "
        "most"
    ]
    if form.int8:
        graph, line = to_int8(graph, prediction.cfg, model.ignore_index)
        lines.append(line)
    elif form.half:
        single, graph = graph, to_half(graph)
        lines.append(compare_half(single, graph, prediction.channels))
    if form.arg_max:
        add_arg_max(graph)
    if form.size:
        graph = fix_size(graph, *form.size)
    add_metadata(graph, known_of(prediction, form.size), prediction.channels)
    onnx.checker.check_model(graph, full_check=True)
    others = [
        type(it).__name__
        for it in prediction.transform.transforms
        if not isinstance(it, (Normalize, Scaled))
    ]
    if others:
        lines.append(
            f"note: the test transforms of the config have {', '.join(others)} as well, which the "
            "file does not tell: predict with --config"
        )
    return graph, lines


def check_form(prediction: Prediction, form: Form) -> None:
    """Raises InputError for what does not go together."""
    if form.int8 and form.half:
        raise InputError("--int8 and --half are two forms of the weights: choose one")
    if form.int8 and prediction.cfg is None:
        raise InputError("--int8 needs --config, for the images that it is calibrated with")
    if not form.size:
        return
    given, inference = f"--size {form.size[0]} {form.size[1]}", prediction.inference
    if min(form.size) < MIN_SIDE or form.size[0] * form.size[1] > image_pixels():
        raise InputError(
            f"{given}: expected height and width, {MIN_SIDE} or more each, and up to "
            f"{image_pixels():,} pixels"
        )
    if inference.crop_size not in (None, form.size):
        raise InputError(
            f"{given} and windows of inference.crop_size={list(inference.crop_size)}: set that to "
            f"[{form.size[0]},{form.size[1]}], or to null for images that are scaled to the size"
        )
    if inference.scales != (1.0,):
        raise InputError(
            f"{given} and inference.scales={list(inference.scales)}: a graph of one size sees one "
            "scale, set inference.scales=[1.0]"
        )


def known_of(prediction: Prediction, size: tuple[int, int] | None) -> Beside:
    """What the file says of itself, for a graph of this size; None for one of any."""
    inference = {name: getattr(prediction.inference, name) for name in INFERENCE}
    scaled = Beside("", size=size)
    if inference["crop_size"]:
        scaled = Beside("")
    elif size:
        inference |= dict(resize=None, divisor=1)
    for transform in prediction.transform.transforms:
        if isinstance(transform, Scaled) and not size:
            scaled = Beside("", size=transform.size, resample=transform.resample)
    return scaled._replace(
        classes=prediction.classes,
        palette=[list(map(int, colour)) for colour in prediction.palette],
        mean=prediction.mean,
        std=prediction.std,
        ignore_index=prediction.model.ignore_index,
        trained_on=prediction.trained_on,
        inference=inference,
    )


def random_images(channels: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(n, channels, *size)).astype(np.float32) for n, *size in SHAPES]


def largest_difference(model, graph: onnx.ModelProto) -> float:
    """Of ONNX Runtime's logits from those of `model`, on random images of several shapes.

    Raises InputError if it is above TOLERANCE.
    """
    session = open_session(graph.SerializeToString())
    differences = []
    for images in random_images(model.segformer.patch_embeds[0].proj.weight.shape[1]):
        with flow.no_grad():
            expected = whole(model(images=flow.from_numpy(images))[LOGITS]).numpy()
        (logits,) = session.run([LOGITS], {IMAGES: images})
        differences.append(np.abs(logits - expected).max())
    difference = max(differences)
    if not difference <= TOLERANCE:  # not a number, neither
        raise InputError(
            f"the logits of the graph differ from OneFlow's by {difference:.1e}, more than "
            f"{TOLERANCE}: nothing was written; are the weights finite and trained?"
        )
    return difference


def compare_half(single: onnx.ModelProto, half: onnx.ModelProto, channels: int) -> str:
    """How far float16 is off float32 on random images.

    Raises InputError if that is above HALF_TOLERANCE: where values are beyond float16's 65,504,
    say.
    """
    sessions = [open_session(graph.SerializeToString()) for graph in (single, half)]
    differences, largest, same = [], 0.0, []
    for images in random_images(channels):
        expected, logits = (session.run([LOGITS], {IMAGES: images})[0] for session in sessions)
        differences.append(np.abs(logits - expected).max())
        largest = max(largest, np.abs(expected).max())
        same.append((logits.argmax(1) == expected.argmax(1)).ravel())
    difference = max(differences)
    if not difference <= HALF_TOLERANCE * largest:  # not a number, neither
        raise InputError(
            f"in float16 the logits differ by {difference:.1e}, more than {HALF_TOLERANCE} times "
            f"the largest, {largest:.1f}: nothing was written; leave out --half"
        )
    share = 100 * np.concatenate(same).mean()
    return f"in float16 they differ by {difference:.1e}; {share:.2f}% have the same class"


def to_int8(graph: onnx.ModelProto, cfg, ignore_index: int) -> tuple[onnx.ModelProto, str]:
    """The graph quantised, and the mIoU of both forms on the config's test data."""
    test, train = cfg.dataloader.test[0], cfg.dataloader.train.dataset
    train.transforms = test.dataset.transforms
    test.test_batch_size = 1  # images may differ in size
    inference, loader = build_inference(cfg), instantiate(test)
    model = OnnxModel(graph.SerializeToString(), ignore_index)
    quantised = quantise(graph, network_inputs(model, inference, instantiate(train)))
    before, after = (
        evaluate_segmentation(form, loader, inference, max_batches=cfg.train.evaluation.eval_iter)[
            "mIoU"
        ]
        for form in (model, OnnxModel(quantised.SerializeToString(), ignore_index))
    )
    line = f"mIoU {before:.2f} in float32, {after:.2f} in int8: {after - before:+.2f} points"
    return quantised, line


def network_inputs(model: OnnxModel, inference: Inference, dataset) -> Iterator[np.ndarray]:
    """What goes through the network, (N, 3, H, W) each, in the inference of some of the images."""
    seen = []

    def record(images):
        seen.append(images.numpy())
        return model(images=images)

    count = min(CALIBRATION_IMAGES, len(dataset))
    for index in np.random.default_rng(0).choice(len(dataset), count, replace=False):
        image, label = dataset[int(index)]
        inference(record, image[None], label.shape)
        yield from seen
        seen.clear()
