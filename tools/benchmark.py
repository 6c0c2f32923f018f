"""Time and memory of inference, evaluation and the training step, also beside transformers'.

    python tools/benchmark.py [--model-size b2] [--training] [--size 512 512] [--batch 1]
    python tools/benchmark.py --engine graph --device cuda
    python tools/benchmark.py --against transformers --reference-python OTHER/bin/python
    python tools/benchmark.py --label-map --against transformers-compiled --reference-python ...
    python tools/benchmark.py --engine onnx --against oneflow

With --against the two sides have the same weights and inputs, a process each and the same cores,
and take turns: a round of one, a round of the other, while that one waits. How far their results
are apart is told too. A training step is forward, loss, backward and AdamW; it is without dropout
and drop path, so that the losses can be compared. An evaluation (--label-map) goes on from the
logits to the class of every pixel at the images' size.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import oneflow as flow
from omegaconf import OmegaConf

from projects.SegFormer.engine import command_line
from projects.SegFormer.engine.benchmark.sides import measure
from projects.SegFormer.engine.config import model_settings
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import MIN_SIDE

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("oneflow", "graph", "onnx")
REFERENCES = ("transformers", "transformers-compiled", "transformers-onnx")
LABEL_MAP_ENGINES = ("oneflow", "transformers", "transformers-compiled")


def main(arguments: list[str]) -> None:
    args = _parser().parse_args(arguments)
    check(args)
    config = args.config or os.path.relpath(ROOT / f"configs/models/mit_{args.model_size}.py")
    settings = model_settings(config, args.overrides)
    if "decoder_hidden_size" not in settings:
        raise InputError(f"{config} is of a classification model: give one for segmentation")
    settings = OmegaConf.to_container(settings, resolve=True)
    if not args.dropout:
        settings |= dict(drop_path_rate=0.0, decoder_dropout=0.0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        report = dict(
            config=config,
            num_classes=settings["num_classes"],
            drop_path_rate=settings["drop_path_rate"],
            decoder_dropout=settings["decoder_dropout"],
            training=args.training,
            label_map=args.label_map,
            batch=args.batch,
            size=list(args.size),
            device=args.device,
            threads=args.threads,
            cpu=cpu_model(),
        ) | measure(Path(folder), args, settings)
    print(format_report(report))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(report, file, indent=2)


def check(args: argparse.Namespace) -> None:
    """Fill in what was left out. Raises InputError for what cannot be measured."""
    if min(args.size) < MIN_SIDE:
        height, width = args.size
        raise InputError(f"--size {height} {width}: both sides must be {MIN_SIDE} or more")
    cores = len(os.sched_getaffinity(0))
    args.threads = cores if args.threads is None else args.threads
    if args.threads > cores:
        raise InputError(f"--threads {args.threads}: this process may use {cores} cores")
    for name in ("batch", "threads", "rounds", "iterations"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} {getattr(args, name)}: expected 1 or more")
    for engine in (args.engine, args.against or ""):
        if engine.endswith("onnx") and args.training:
            raise InputError(f"{engine} does inference alone: leave out --training")
        if engine.endswith("onnx") and args.device != "cpu":
            raise InputError(f"{engine} is measured on the CPU: leave out --device {args.device}")
        if engine and args.label_map and engine not in LABEL_MAP_ENGINES:
            known = ", ".join(LABEL_MAP_ENGINES)
            raise InputError(f"{engine} ends with the logits: --label-map is for {known}")
    if args.label_map and args.training:
        raise InputError("--label-map is an evaluation: leave out --training")
    if args.device == "cuda" and not flow.cuda.is_available():
        raise InputError("--device cuda: OneFlow finds no GPU here")
    if args.reference_python and args.against not in REFERENCES:
        raise InputError(
            f"--reference-python is the Python of transformers: add --against {REFERENCES[0]}"
        )
    args.reference_python = args.reference_python or sys.executable
    if not shutil.which(args.reference_python):
        raise InputError(f"--reference-python {args.reference_python}: no such program")


def cpu_model() -> str:
    with open("/proc/cpuinfo") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return names[0] if names else platform.machine()


# ---- The report ---------------------------------------------------------------------------------


def format_report(report: dict) -> str:
    height, width = report["size"]
    what = "evaluation" if report["label_map"] else "inference"
    what = "training step" if report["training"] else what
    lines = [
        f"{report['config']}, {report['num_classes']} classes: {what}, "
        f"{report['batch']}x{height}x{width}, {report['device']}",
        f"{report['cpu']}, {report['threads']} threads; other processes kept "
        f"{report['cores_of_others']:.2f} cores busy",
        "",
        f"{'seconds':<22}{'fastest':>9}{'median':>9}{'quartiles':>18}{'images/s':>10}"
        f"{'peak memory':>13}",
    ]
    for side in report["sides"]:
        low, high = side["quartiles"]
        lines.append(
            f"{side['engine']:<22}{side['fastest']:>9.4f}{side['median']:>9.4f}"
            f"{f'{low:.4f} - {high:.4f}':>18}{side['images_per_second']:>10.2f}"
            f"{side['peak_memory'] / 2**20:>9.0f} MiB"
        )
    lines.append("")
    for side in report["sides"]:
        versions = ", ".join(f"{name} {version}" for name, version in side["versions"].items())
        lines.append(f"{side['engine']}: {versions}")
    if "ratio" in report:
        lines += _format_comparison(report)
    return "\n".join(lines)


def _format_comparison(report: dict) -> list[str]:
    ours, theirs = (side["engine"] for side in report["sides"])
    ratio, rounds = report["ratio"], report["ratios_of_rounds"]
    if report["label_map"]:
        apart = f"label maps differ in {100 * report['differing_pixels']:.2g} % of the pixels"
    else:
        results = "losses" if report["training"] else "logits"
        apart = (
            f"{results} differ by at most {report['largest_difference']:.1e}, "
            f"of at most {report['largest_result']:.3g}"
        )
    return [
        apart,
        "",
        f"{ratio:.2f}x: {ours} is {'faster' if ratio > 1 else 'slower'} than {theirs} by the "
        f"ratio of medians; by rounds {min(rounds):.2f} to {max(rounds):.2f}, by the fastest "
        f"{report['ratio_of_fastest']:.2f}",
        f"{report['memory_ratio']:.2f}x the peak memory",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(__doc__)
    model = parser.add_mutually_exclusive_group()
    sizes = [f"b{index}" for index in range(6)]
    model.add_argument("--model-size", choices=sizes, default="b0", help="b0 without")
    model.add_argument("--config", help="config to run, or one of configs/models, instead")
    parser.add_argument("--training", action="store_true", help="the training step; else inference")
    parser.add_argument(
        "--label-map", action="store_true", help="evaluation: on to the class of every pixel"
    )
    parser.add_argument("--dropout", action="store_true", help="and drop path, as in the config")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(512, 512),
        metavar=("HEIGHT", "WIDTH"),
        help="of the images, 512 512 without",
    )
    parser.add_argument("--batch", type=int, default=1, help="images in a step, 1 without")
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    parser.add_argument("--against", choices=(*REFERENCES, *ENGINES), help="the other side")
    parser.add_argument("--reference-python", help="runs transformers; this one without")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="and cores, of each side; all without")
    parser.add_argument("--rounds", type=int, default=5, help="of each side, 5 without")
    parser.add_argument("--iterations", type=int, default=5, help="steps in a round, 5 without")
    parser.add_argument("--json", metavar="FILE", help="write all figures to it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    return parser


if __name__ == "__main__":
    command_line.run(main)
