"""Hooks that replace or add to LiBai's.

What they do after a step has an order, so that a kill at any moment loses nothing: the iteration's
line in metrics.json, the checkpoint, the evaluation, the best checkpoint, the evaluation's line.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from libai.engine.trainer import HookBase
from libai.utils import distributed as dist
from libai.utils.events import EventWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from projects.SegFormer.engine.checkpoint import BEST, Checkpointer, read_record, remove
from projects.SegFormer.engine.ema import WeightAverage
from projects.SegFormer.engine.json_lines import is_number
from projects.SegFormer.engine.ranks import from_main, on_all_ranks
from projects.SegFormer.engine.report import Report
from projects.SegFormer.engine.writers import JsonWriter
from projects.SegFormer.modeling.files import reason

logger = logging.getLogger("libai." + __name__)

RETRIES = (10, 60, 300)  # seconds after which the last checkpoint is tried again


class WriteScalars(HookBase):
    """Has the writers write every `period` iterations and after the last."""

    def __init__(self, writers: list[EventWriter], period: int):
        self.writers, self.period = writers, period

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            for writer in self.writers:
                writer.write()


class PeriodicCheckpointer(HookBase):
    """Saves every `period` iterations and after the last; keeps the last `max_to_keep`.

    LiBai's names: model_0000199 holds what was learnt in iterations 0 to 199. A save that fails, on
    a full disk say, does not end the training; the last is tried again, and then does.

    Attributes:
        saved: the name of the last checkpoint and its iteration, or None.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, max_to_keep: int):
        self.checkpointer, self.period, self.max_to_keep = checkpointer, period, max_to_keep
        self.saved: tuple[str, int] | None = None

    def after_step(self):
        iteration = self.trainer.iter
        name = f"model_{iteration:07d}"
        if iteration + 1 == self.trainer.max_iter:
            self.save_or_end("model_final", iteration, RETRIES)
        elif (iteration + 1) % self.period == 0:
            try:
                self._save(name, iteration)
            except OSError as error:
                logger.error(f"could not save {name}: {reason(error)}; training goes on")

    def save_or_end(self, name: str, iteration: int, retries: tuple[int, ...]) -> None:
        """Save what must not be lost: a save that fails is tried again after so many seconds.

        Raises OSError when the last fails too.
        """
        for seconds in retries:
            try:
                self._save(name, iteration)
                return
            except OSError as error:
                logger.error(
                    f"could not save {name}: {reason(error)}; it is tried again in {seconds} s"
                )
            self._pause(seconds)
        try:
            self._save(name, iteration)
        except OSError as error:
            raise on_all_ranks(
                OSError(
                    f"could not save {name} in {self.checkpointer.save_dir}: {reason(error)}; "
                    "--resume goes on from the checkpoint before it"
                )
            ) from error

    def _save(self, name: str, iteration: int) -> None:
        self.trainer.watchdog.alive("saving")
        self.checkpointer.save(name, iteration)
        self.saved = name, iteration
        self.trainer.watchdog.alive("saving")
        if dist.is_main_process():
            self._remove_old()

    def _pause(self, seconds: int) -> None:
        for _ in range(seconds):
            time.sleep(1)
            self.trainer.watchdog.alive("saving")
            self.trainer.stopping.check("saving")

    def _remove_old(self):
        numbered = Path(self.checkpointer.save_dir).glob("model_[0-9]*")
        records = [(record["saved_at"], path) for path in numbered if (record := read_record(path))]
        for _, path in sorted(records)[: -self.max_to_keep]:
            try:
                remove(path)
            except OSError as error:
                logger.error(f"could not remove {path}: {reason(error)}; training goes on")


class BestCheckpointer:
    """Keeps the checkpoint with the highest `metric` as model_best, also across a resume."""

    def __init__(self, checkpointer: Checkpointer, metric: str):
        self.checkpointer, self.metric = checkpointer, metric
        self._best = -math.inf

    def resume(self) -> None:
        """Go on from the model_best that is there."""
        self._best = from_main(self._recorded)

    def _recorded(self) -> float:
        path = Path(self.checkpointer.save_dir) / BEST
        value = (path.is_dir() and read_record(path) or {}).get(self.metric)
        return value if is_number(value) else -math.inf

    def keep_if_best(self, value: float, iteration: int) -> None:
        """Save the weights, of which the metric is `value`, if no other's is as high."""
        if not value > self._best:
            return
        try:
            self.checkpointer.save(BEST, iteration, **{self.metric: value})
            self._best = value
        except OSError as error:
            logger.error(f"could not save {BEST}: {reason(error)}; training goes on")


class Evaluation(HookBase):
    """Evaluates every `period` iterations and after the last, and keeps the best weights.

    It ends with a line of its own in metrics.json. A resumed training, of whose checkpoint an
    evaluation was due that has no line, begins with it.

    Args:
        evaluate: gives scores by name, the same on all ranks.
        best: takes one of them.
        writers: on the main rank; one is a JsonWriter.
        report: on the main rank, brought up to date; None on others.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, float]],
        period: int,
        best: BestCheckpointer,
        writers: list[EventWriter],
        report: Report | None,
    ):
        self.evaluate, self.period, self.best, self.writers = evaluate, period, best, writers
        self.report = report

    def before_train(self):
        done = self.trainer.start_iter
        if done == 0:
            return
        self.best.resume()
        if self._is_due(done) and not from_main(self._is_written):
            logger.info(f"The evaluation after iteration {done} was not finished: it comes first")
            self._run(done)

    def after_step(self):
        done = self.trainer.iter + 1
        if self._is_due(done):
            self._run(done)

    def _is_due(self, done: int) -> bool:
        return done % self.period == 0 or done >= self.trainer.max_iter

    def _is_written(self) -> bool:
        return any(
            self.best.metric in writer.names_at_start
            for writer in self.writers
            if isinstance(writer, JsonWriter)
        )

    def _run(self, done: int) -> None:
        scores = self.evaluate()
        self.trainer.watchdog.alive("saving")
        self.best.keep_if_best(scores[self.best.metric], done - 1)
        for writer in self.writers:
            writer.write_scalars(done, scores)
        if self.report:
            self.report.update(done)


class UpdateAverage(HookBase):
    """Takes the weights into their average after every step, which has `step_length` iterations.

    It goes before the hooks that evaluate or save.
    """

    def __init__(self, average: WeightAverage, step_length: int):
        self.average, self.step_length = average, step_length

    def after_step(self):
        if (self.trainer.iter + 1) % self.step_length == 0:
            self.average.update()


class StopTogether(HookBase):
    """Ends the training after a step, which has `step_length` iterations, on a signal to any rank.

    After the last there is nothing to stop.
    """

    def __init__(self, step_length: int):
        self.step_length = step_length

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self.step_length == 0 and done < self.trainer.max_iter:
            self.trainer.stopping.check("training")


class ProgressBar(HookBase):
    """A bar below the log when standard error is a terminal."""

    def before_train(self):
        self._stack = ExitStack()
        self._bar = self._stack.enter_context(
            tqdm(
                total=self.trainer.max_iter,
                initial=self.trainer.start_iter,
                unit="step",
                dynamic_ncols=True,
                leave=False,
                file=sys.stderr,
            )
        )
        self._stack.enter_context(logging_redirect_tqdm([logging.getLogger("libai")]))

    def after_step(self):
        loss, _ = self.trainer.storage.latest()["total_loss"]
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self._bar.update()

    def after_train(self):
        self._stack.close()


def shows_progress() -> bool:
    return dist.is_main_process() and os.isatty(sys.stderr.fileno())
