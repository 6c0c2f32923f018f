"""What both sides compute, their processes, and what comes out."""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import oneflow as flow
import onnx

from projects.SegFormer.dataset.transforms import IMAGENET_MEAN, IMAGENET_STD
from projects.SegFormer.engine.libai_mends import mend_for_one_process
from projects.SegFormer.model_utils.huggingface_config import ARCHITECTURES, image_processor
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.onnx_graph import to_onnx
from projects.SegFormer.model_utils.segf_loader import SegFLoaderHuggerFace, model_arguments
from projects.SegFormer.model_utils.weight_writers import write_huggingface
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation

FOLDER = Path(__file__).resolve().parent
# Of an engine, what runs it and what it runs; the others run on_oneflow.py with "model".
WORKERS = {
    "onnx": ("on_onnxruntime.py", "ours.onnx"),
    "transformers": ("on_transformers.py", "model"),
    "transformers-compiled": ("on_transformers.py", "model"),
    "transformers-onnx": ("on_onnxruntime.py", "theirs.onnx"),
}
OPTIMIZER = dict(lr=6e-5, weight_decay=0.01)
PR_SET_PDEATHSIG = 1


# ---- What both sides compute --------------------------------------------------------------------


def write_inputs(folder: Path, args: argparse.Namespace, settings: dict) -> None:
    """Weights, as transformers' folder `model`, and a batch: images.npy and labels.npy."""
    mend_for_one_process()
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
    export = [python, FOLDER / WORKERS["transformers"][0], "--export", *files]
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
                [self._python, str(FOLDER / script), str(folder / f"{name}.json")],
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
