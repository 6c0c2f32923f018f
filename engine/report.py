"""What a training leaves to be read: report.html, pictures in TensorBoard, the log's last lines."""

import logging
import os
import platform
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import libai
import numpy as np
import oneflow as flow
from libai.engine.trainer import HookBase
from libai.utils import distributed as dist
from omegaconf import DictConfig, OmegaConf

from projects.SegFormer.engine.checkpoint import BEST, last_checkpoint
from projects.SegFormer.engine.config import file_values, full_key
from projects.SegFormer.engine.json_lines import is_number
from projects.SegFormer.engine.metrics import best
from projects.SegFormer.evaluation.report.page import REPORT, write_report
from projects.SegFormer.evaluation.report.parts import duration
from projects.SegFormer.evaluation.report.pictures import matrix_picture, sample_pictures
from projects.SegFormer.evaluation.report.record import RECORD, read_record
from projects.SegFormer.evaluation.report.run import TRAINING, read_run
from projects.SegFormer.evaluation.result_files import make_folder
from projects.SegFormer.modeling.files import read_json, reason, write_json

logger = logging.getLogger("libai." + __name__)

LOWEST = 3  # classes that are named at the end
LONGEST_VALUE = 300  # letters of a setting


class Report(HookBase):
    """Keeps report.html up to date, on the main rank. What fails of it is logged, no more.

    Args:
        cfg: the config of the training.
        source: file of the config and the overrides, or None where they are not known.
        tensorboard: gets pictures.
    """

    def __init__(self, cfg: DictConfig, source: tuple[str, Sequence[str]] | None, tensorboard):
        self.cfg, self.source, self.tensorboard = cfg, source, tensorboard
        self.folder = Path(cfg.train.output_dir)
        self._known, self._seconds = {}, 0.0

    def before_train(self):
        self._begun = time.monotonic()
        with logged_failure(self.folder / TRAINING):
            make_folder((self.folder / TRAINING).parent)
            if not self.trainer.start_iter:
                self._forget()
            elif (self.folder / TRAINING).is_file():
                seconds = read_json(self.folder / TRAINING).get("seconds")
                self._seconds = seconds if is_number(seconds) else 0.0
        with logged_failure("the machine into the report"):
            self._known["machine"] = machine(self.cfg)
        with logged_failure("the settings into the report"):
            self._known |= {
                "iterations": self.trainer.max_iter,
                "versions": versions(),
                "chosen": list(OmegaConf.select(self.cfg, "data.chosen") or ()),
            }
            if self.source:
                file, overrides = self.source
                self._known |= {"config": file, "changed": changed(self.cfg, file, overrides)}

    def _forget(self) -> None:
        """The results of an earlier training in this folder are not those of this one."""
        for name in (RECORD, "evaluation.json", TRAINING):
            (self.folder / name).unlink(missing_ok=True)
        if (self.folder / BEST).is_dir():
            logger.warning(
                f"{self.folder / BEST} is of an earlier training: the tools take it for this "
                "one's until this one's first evaluation"
            )

    def update(self, iteration: int) -> None:
        """After an evaluation: its pictures to TensorBoard, and the page anew."""
        with logged_failure("pictures for TensorBoard"):
            evaluated = read_record(self.folder)
            if evaluated:
                pictures = sample_pictures(evaluated) | {
                    "confusion matrix": matrix_picture(evaluated)
                }
                self.tensorboard.write_pictures(iteration, pictures)
        self._write()

    def after_train(self):
        self._write()
        with logged_failure("what the training came to"):
            logger.info("\n".join(self._closing_lines()))

    def _time(self) -> float:
        return self._seconds + time.monotonic() - self._begun

    def _write(self) -> None:
        with logged_failure(self.folder / REPORT):
            write_json(self.folder / TRAINING, self._known | {"seconds": self._time()})
            write_report(self.folder)

    def _closing_lines(self) -> Iterator[str]:
        run = read_run("", self.folder / "metrics.json")
        yield f"Training done: {run.length()} iterations in {duration(self._time())}"
        weights, score = self.folder / BEST, run.score()
        if score in run.metrics:
            value, iteration = best(run.metrics[score])
            yield f"  best {score}: {value:.2f}% at iteration {iteration}"
            figure = "Acc" if score == "top1" else "IoU"
            values = run.of_classes(figure)
            if lowest := sorted(values, key=values.get)[:LOWEST]:
                named = ", ".join(f"{name} {values[name]:.2f}%" for name in lowest)
                yield f"  lowest {figure}: {named}"
        elif weights.is_dir():  # of an earlier training
            last = last_checkpoint(str(self.folder))
            weights = Path(last[0]) if last else self.folder
        yield f"  report: {self.folder / REPORT}"
        weights = shlex.quote(str(weights if weights.is_dir() else self.folder))
        yield f"  next: python tools/predict.py --weights {weights} --output predictions IMAGES"


def changed(cfg: DictConfig, file: str, overrides: Sequence[str]) -> list[list[str]]:
    """Setting, value in the config `file` and value of `cfg`, of what `overrides` have changed."""
    recipe, rows = file_values(file), {}
    for override in overrides:
        key = full_key(override).partition("=")[0]
        values = [str(OmegaConf.select(it, key))[:LONGEST_VALUE] for it in (recipe, cfg)]
        if values[0] != values[1]:
            rows[key] = [key, *values]
    return list(rows.values())


def versions() -> dict[str, str]:
    """What the training runs on, with the places of what may come from elsewhere."""
    return {
        "Python": platform.python_version(),
        "oneflow": f"{flow.__version__}, {os.path.dirname(flow.__file__)}",
        "libai": f"{getattr(libai, '__version__', 'unknown')}, {os.path.dirname(libai.__file__)}",
        "numpy": np.__version__,
        "SegFormer": str(Path(__file__).resolve().parent.parent),
    }


def machine(cfg: DictConfig) -> dict[str, str]:
    """Of the main rank, and how many ranks there are."""
    util = dist.get_dist_util()
    sizes = (util.data_parallel_size, util.tensor_parallel_size, util.pipeline_parallel_size)
    found = {
        "system": platform.platform(),
        "CPU": f"{len(os.sched_getaffinity(0))} x {_processor()}",
        "ranks": "{} (data {} x tensor {} x pipeline {})".format(dist.get_world_size(), *sizes),
        "mode": "graph" if cfg.graph.enabled else "eager",
    }
    gpus = [
        re.search(r"Model:\s*(.*)", path.read_text()).group(1)
        for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    ]
    return found | ({"GPUs": ", ".join(gpus)} if gpus and flow.cuda.is_available() else {})


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        found = re.search(r"model name\s*:\s*(.*)", file.read())
    return found.group(1) if found else platform.machine()


@contextmanager
def logged_failure(what: object) -> Iterator[None]:
    """A page is not worth a training."""
    try:
        yield
    except Exception as error:
        logger.error(f"could not write {what}: {reason(error)}; the run goes on")
