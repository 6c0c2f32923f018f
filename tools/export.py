"""A trained model as an ONNX file, for ONNX Runtime and others that read the format.

    python tools/export.py --weights output/model_best --output model.onnx [--arg-max] \\
        [--int8 | --half] [--size HEIGHT WIDTH] [--config configs/segformer_city.py] [key=value ...]

The graph takes `images`, float32 (N, 3, H, W), of any number and any size from 32x32, normalised.
It gives `prediction_scores`, the logits (N, classes, H / 4, W / 4), or with --arg-max `labels`,
int64 (N, H, W). How images are made ready, and what the classes are, is in the file's metadata
(model_utils/onnx_metadata.py): tools/predict.py needs nothing else. ONNX Runtime has to agree with
OneFlow before the file is written.

Without --config counts what lies beside the weights, as in tools/predict.py.

--int8 quantises the encoder, calibrated on images of the config's training data, and evaluates both
forms on its test data as the config's `inference` and `train.evaluation.eval_iter` say. --half has
weights and computation in float16. --size makes a graph of one image of that size, without loops,
for compilers that want it so.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import os

from projects.SegFormer.engine import command_line
from projects.SegFormer.evaluation.onnx_export import Form, exported
from projects.SegFormer.evaluation.prediction import architecture_in, find_weights, prediction_of
from projects.SegFormer.evaluation.result_files import check_folder, make_folder
from projects.SegFormer.model_utils.huggingface_config import ARCHITECTURES
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import write_whole


def main(arguments: list[str]) -> None:
    args = _parser().parse_args(arguments)
    if not args.output.endswith(".onnx"):
        raise InputError(f"--output {args.output}: expected a file that ends with .onnx")
    if os.path.exists(args.output):
        raise InputError(f"{args.output} is already there: remove it, or choose another --output")
    check_folder(args.output)
    form = Form(args.int8, args.half, args.arg_max, args.size and tuple(args.size))
    weights, _ = find_weights(args.weights)
    if architecture_in(weights) == ARCHITECTURES[1]:
        raise InputError(f"{weights} is a classifier's: export is for segmentation")
    prediction = prediction_of(args.config, args.weights, args.overrides, "oneflow")
    graph, lines = exported(prediction, form)
    make_folder(os.path.dirname(args.output) or ".")
    write_whole(args.output, graph.SerializeToString())
    first, *others = lines
    for line in others:
        print(line)
    print(f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB; {first}")


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
    parser.add_argument("--half", action="store_true", help="compute in float16, and tell the same")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="one image of this size"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    return parser


if __name__ == "__main__":
    command_line.run(main)
