"""A trained model as an ONNX file, for ONNX Runtime and others that read the format.

    python tools/export.py --config configs/segformer_city.py --weights output/model_best \\
        --output model.onnx [--arg-max] [--int8] [key=value ...]

The graph takes `images`, float32 (N, 3, H, W), of any number and any size from 32x32, normalised
with the mean and std that are, with the names of the classes, in the file's metadata as JSON. It
gives `prediction_scores`, the logits (N, classes, H / 4, W / 4), or with --arg-max `labels`, int64
(N, H, W). ONNX Runtime has to agree with OneFlow before the file is written.

Without --config counts what lies beside the weights, as in tools/predict.py.

--int8 quantises the encoder, calibrated on images of the config's training data, and evaluates both
forms on its test data as the config's `inference` and `train.evaluation.eval_iter` say.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import os
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import oneflow as flow
import onnx
from libai.config import instantiate

from projects.SegFormer.engine import command_line
from projects.SegFormer.evaluation.evaluate import evaluate_segmentation
from projects.SegFormer.evaluation.inference import Inference, build_inference
from projects.SegFormer.evaluation.onnx_model import OnnxModel, open_session
from projects.SegFormer.evaluation.prediction import prediction_of
from projects.SegFormer.evaluation.result_files import check_folder
from projects.SegFormer.model_utils.model_weights import whole
from projects.SegFormer.model_utils.onnx_graph import IMAGES, LOGITS, add_arg_max, to_onnx
from projects.SegFormer.model_utils.onnx_quantisation import quantise
from projects.SegFormer.modeling.errors import InputError

TOLERANCE = 1e-4  # of a float32 logit
SHAPES = ((1, 96, 160), (3, 65, 47))  # (N, H, W) of the images on which ONNX and OneFlow compare
CALIBRATION_IMAGES = 32


def main(arguments: list[str]) -> None:
    args = _parser().parse_args(arguments)
    if os.path.exists(args.output):
        raise InputError(f"{args.output} is already there: remove it, or choose another --output")
    check_folder(args.output)
    prediction = prediction_of(args.config, args.weights, args.overrides, "oneflow")
    model, cfg = prediction.model, prediction.cfg
    if args.int8 and cfg is None:
        raise InputError("--int8 needs --config, for the images that it is calibrated with")
    graph = to_onnx(model, prediction.classes, prediction.mean, prediction.std)
    difference = largest_difference(model, graph)
    if args.int8:
        graph = to_int8(graph, cfg, model.ignore_index)
    if args.arg_max:
        add_arg_max(graph)
    onnx.checker.check_model(graph, full_check=True)
    write(graph, args.output)
    print(
        f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB; in float32 the logits differ "
        f"from OneFlow's by {difference:.1e} at most"
    )


def largest_difference(model, graph: onnx.ModelProto) -> float:
    """Of ONNX Runtime's logits from those of `model`, on random images of several shapes.

    Raises InputError if it is above TOLERANCE.
    """
    session = open_session(graph.SerializeToString())
    rng = np.random.default_rng(0)
    channels = model.segformer.patch_embeds[0].proj.weight.shape[1]
    differences = []
    for batch, height, width in SHAPES:
        images = rng.normal(size=(batch, channels, height, width)).astype(np.float32)
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


def to_int8(graph: onnx.ModelProto, cfg, ignore_index: int) -> onnx.ModelProto:
    """The graph quantised, after the mIoU of both forms on the config's test data is printed."""
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
    print(f"mIoU {before:.2f} in float32, {after:.2f} in int8: {after - before:+.2f} points")
    return quantised


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


def write(graph: onnx.ModelProto, output: str) -> None:
    """Whoever reads `output` finds no file or all of it."""
    partial = f"{output}.partial"
    try:
        os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
        with open(partial, "wb") as file:
            file.write(graph.SerializeToString())
        os.replace(partial, output)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            os.remove(partial)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--config",
        help="config file, or config.yaml of a training; without it what lies beside the weights",
    )
    parser.add_argument(
        "--weights",
        required=True,
        help="checkpoint or output folder of a training, folder of Hugging Face, or others",
    )
    parser.add_argument("--output", required=True, help="file to write, .onnx")
    parser.add_argument("--arg-max", action="store_true", help="labels at the size of the images")
    parser.add_argument("--int8", action="store_true", help="quantise, and tell what that costs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    return parser


if __name__ == "__main__":
    command_line.run(main)
