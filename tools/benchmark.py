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
import ctypes
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import oneflow as flow
import onnx
from libai.utils import distributed as dist
from omegaconf import OmegaConf

from projects.SegFormer.configs.common.train import train
from projects.SegFormer.dataset.transforms import IMAGENET_MEAN, IMAGENET_STD
from projects.SegFormer.engine import command_line
from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.model_utils.huggingface_config import ARCHITECTURES, image_processor
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.onnx_graph import to_onnx
from projects.SegFormer.model_utils.segf_loader import SegFLoaderHuggerFace, model_arguments
from projects.SegFormer.model_utils.weight_writers import write_huggingface
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import MIN_SIDE, SegformerForSemanticSegmentation
from projects.SegFormer.tools.get_flops import model_settings

ROOT = Path(__file__).resolve().parents[1]
WORKERS_FOLDER = ROOT / "engine" / "benchmark"
ENGINES = ("oneflow", "graph", "onnx")
REFERENCES = ("transformers", "transformers-compiled", "transformers-onnx")
LABEL_MAP_ENGINES = ("oneflow", "transformers", "transformers-compiled")
# Of an engine, what runs it and what it runs; the others run on_oneflow.py with "model".
WORKERS = {
    "onnx": ("on_onnxruntime.py", "ours.onnx"),
    "transformers": ("on_transformers.py", "model"),
    "transformers-compiled": ("on_transformers.py", "model"),
    "transformers-onnx": ("on_onnxruntime.py", "theirs.onnx"),
}
OPTIMIZER = dict(lr=6e-5, weight_decay=0.01)
PR_SET_PDEATHSIG = 1


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


# ---- What both sides compute --------------------------------------------------------------------


def write_inputs(folder: Path, args: argparse.Namespace, settings: dict) -> None:
    """Weights, as transformers' folder `model`, and a batch: images.npy and labels.npy."""
    mend_libai()
    # LiBai's default number of layers, without its warning.
    dist.setup_dist_util(OmegaConf.create({**train["dist"], "pipeline_num_layers": 10_000}))
    flow.manual_seed(0)
    model = SegformerForSemanticSegmentation
    state = state_of(model(**model_arguments(model, settings)))
    rng = np.random.default_rng(0)
    for values in state.values():
        if values.ndim == 1:  # biases, norms and statistics, which are all the same at first
            values += rng.uniform(-0.3, 0.3, values.shape).astype(values.dtype)
    processor = image_processor(ARCHITECTURES[0], IMAGENET_MEAN, IMAGENET_STD)
    write_huggingface(str(folder / "model"), state, settings, class_names(settings), processor)
    shape = (args.batch, settings["num_channels"], *args.size)
    np.save(folder / "images.npy", rng.standard_normal(shape, np.float32))
    labels = rng.integers(0, settings["num_classes"], (args.batch, *args.size))
    np.save(folder / "labels.npy", labels)


def class_names(settings: dict) -> list[str]:
    return [f"LABEL_{index}" for index in range(settings["num_classes"])]


def export_ours(folder: Path, settings: dict) -> None:
    """ours.onnx, as tools/export.py makes it."""
    model = SegFLoaderHuggerFace(SegformerForSemanticSegmentation, {}, str(folder / "model")).load()
    proto = to_onnx(model)
    onnx.save(proto, folder / "ours.onnx")


def export_theirs(folder: Path, python: str) -> dict[str, str]:
    """theirs.onnx, by torch.onnx from transformers; the versions of those."""
    files = (folder / name for name in ("model", "images.npy", "theirs.onnx"))
    export = [python, WORKERS_FOLDER / WORKERS["transformers"][0], "--export", *files]
    process = subprocess.run(list(map(str, export)), capture_output=True, text=True)
    if process.returncode:
        why = reason(process.returncode, process.stderr)
        raise InputError(f"{python} cannot export transformers' model: {why}")
    return json.loads(process.stdout.splitlines()[-1])


# ---- The measuring ------------------------------------------------------------------------------


def measure(folder: Path, args: argparse.Namespace, settings: dict) -> dict:
    """Both sides in turns; what came out, in seconds and bytes.

    Raises InputError when a side cannot be measured.
    """
    engines = [args.engine, *([args.against] if args.against else [])]
    write_inputs(folder, args, settings)
    if "onnx" in engines:
        export_ours(folder, settings)
    exporter = {}
    if "transformers-onnx" in engines:
        exporter["transformers-onnx"] = export_theirs(folder, args.reference_python)
    sides = []
    try:
        for name, engine in zip("ab", engines):
            sides.append(Side(engine, folder, name, args))
            sides[-1].wait_until_ready()
            sides[-1].versions |= exporter.get(engine, {})
        start, others = time.monotonic(), seconds_of_others(sides)
        for _ in range(args.rounds):
            for side in sides:
                side.run_round(args.iterations)
        load = (seconds_of_others(sides) - others) / (time.monotonic() - start)
    finally:
        for side in sides:
            side.end()
    report = dict(cores_of_others=max(load, 0.0), sides=[summary(s, args.batch) for s in sides])
    return report | comparison(*sides, args.label_map) if len(sides) == 2 else report


class Side:
    """A process that computes with one engine, and what was measured of it."""

    def __init__(self, engine: str, folder: Path, name: str, args: argparse.Namespace):
        """Start it. Its files in `folder` begin with `name`."""
        script, model = WORKERS.get(engine, ("on_oneflow.py", "model"))
        self.engine, self.seconds, self.peak_memory = engine, [], 0
        of_transformers = script == WORKERS["transformers"][0]
        self._python = args.reference_python if of_transformers else sys.executable
        self._results, self._errors = folder / f"{name}.npy", folder / f"{name}.log"
        job = dict(
            engine=engine,
            model=str(folder / model),
            images=str(folder / "images.npy"),
            labels=str(folder / "labels.npy"),
            results=str(self._results),
            training=args.training,
            label_map=args.label_map,
            optimizer=OPTIMIZER,
            device=args.device,
            threads=args.threads,
        )
        (folder / f"{name}.json").write_text(json.dumps(job))
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
        if args.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        cores = sorted(os.sched_getaffinity(0))[: args.threads]

        def in_the_process():
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # when this one is killed
            os.sched_setaffinity(0, cores)

        with open(self._errors, "w") as errors:
            self._process = subprocess.Popen(
                [self._python, str(WORKERS_FOLDER / script), str(folder / f"{name}.json")],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C reaches this one, which ends the others
                preexec_fn=in_the_process,
            )

    def wait_until_ready(self) -> None:
        """Raises InputError when the process ends instead, as do all its other methods."""
        self.versions = self._answer()["versions"]
        self.results = np.load(self._results)

    def run_round(self, iterations: int) -> None:
        print(iterations, file=self._process.stdin, flush=True)
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        self.peak_memory = answer["peak_memory"]

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            why = reason(self._process.wait(), self._errors.read_text())
            raise InputError(f"{self.engine} cannot be measured with {self._python}: {why}")
        answer = json.loads(line)
        self.cpu_seconds = answer["cpu_seconds"]
        return answer


def reason(code: int, errors: str) -> str:
    """Why a process ended, from its exit code and what it wrote."""
    lines = errors.strip().splitlines()
    if code < 0 or not lines:
        return f"it ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with {code}"
    _, traceback, last = errors.rpartition("Traceback (most recent call last):\n")
    # Of a traceback the error itself, after its indented frames: advice may follow it.
    said = [line for line in last.splitlines() if line and line[0] != " "] if traceback else []
    return said[0] if said else lines[-1]


def seconds_of_others(sides: list[Side]) -> float:
    """Seconds that all cores together have worked for others than us since the machine started."""
    with open("/proc/stat") as stat:
        user, nice, system, _, _, *interrupts_and_steal = map(int, stat.readline().split()[1:9])
    busy = user + nice + system + sum(interrupts_and_steal)
    ours = time.process_time() + sum(side.cpu_seconds for side in sides)
    return busy / os.sysconf("SC_CLK_TCK") - ours


def summary(side: Side, batch: int) -> dict:
    low, median, high = np.quantile(side.seconds, (0.25, 0.5, 0.75))
    return dict(
        engine=side.engine,
        versions=side.versions,
        fastest=np.min(side.seconds),
        median=median,
        quartiles=[low, high],
        images_per_second=batch / median,
        peak_memory=side.peak_memory,
        seconds=side.seconds,
    )


def comparison(ours: Side, theirs: Side, label_maps: bool) -> dict:
    """Ratios of time are theirs over ours, that of memory is ours over theirs."""
    medians = [np.median(side.seconds, axis=1) for side in (ours, theirs)]
    if label_maps:
        results = dict(differing_pixels=float((ours.results != theirs.results).mean()))
    else:
        results = dict(
            largest_difference=float(np.abs(ours.results - theirs.results).max()),
            largest_result=float(np.abs(theirs.results).max()),
        )
    return results | dict(
        ratio=np.median(theirs.seconds) / np.median(ours.seconds),
        ratio_of_fastest=np.min(theirs.seconds) / np.min(ours.seconds),
        ratios_of_rounds=(medians[1] / medians[0]).tolist(),
        memory_ratio=ours.peak_memory / theirs.peak_memory,
    )


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
