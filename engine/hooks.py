"""Hooks that replace or add to LiBai's."""

import logging
import math
import os
import shutil
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from libai.engine.trainer import HookBase
from libai.utils import distributed as dist
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from projects.SegFormer.engine.checkpoint import Checkpointer, read_record
from projects.SegFormer.engine.ema import WeightAverage

logger = logging.getLogger("libai." + __name__)

BEST = "model_best"


class PeriodicCheckpointer(HookBase):
    """Saves every `period` iterations and after the last; keeps the last `max_to_keep`.

    LiBai's names: model_0000199 holds what was learnt in iterations 0 to 199. A save that fails, on
    a full disk say, does not end the training.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, max_to_keep: int):
        self.checkpointer, self.period, self.max_to_keep = checkpointer, period, max_to_keep

    def after_step(self):
        iteration = self.trainer.iter
        is_last = iteration + 1 == self.trainer.max_iter
        if not is_last and (iteration + 1) % self.period:
            return
        name = "model_final" if is_last else f"model_{iteration:07d}"
        try:
            self.checkpointer.save(name, iteration)
        except OSError as error:
            if is_last:
                raise
            logger.error(f"could not save {name}: {error}; training goes on")
            return
        if dist.is_main_process():
            self._remove_old()

    def _remove_old(self):
        numbered = Path(self.checkpointer.save_dir).glob("model_[0-9]*")
        records = [(record["saved_at"], path) for path in numbered if (record := read_record(path))]
        for _, path in sorted(records)[: -self.max_to_keep]:
            shutil.rmtree(path)


class BestCheckpointer(HookBase):
    """Keeps the checkpoint with the highest `metric` as model_best, also across a resume."""

    def __init__(self, checkpointer: Checkpointer, period: int, metric: str):
        self.checkpointer, self.period, self.metric = checkpointer, period, metric

    def before_train(self):
        self.best = -math.inf
        path = Path(self.checkpointer.save_dir) / BEST
        if self.trainer.start_iter > 0 and path.is_dir():
            record = read_record(path)
            self.best = record[self.metric] if record else self.best

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self.period == 0 and done != self.trainer.max_iter:  # then it is after_train's
            self._keep_if_best()

    def after_train(self):
        self._keep_if_best()

    def _keep_if_best(self):
        value, _ = self.trainer.storage.latest().get(self.metric, (math.nan, 0))
        if not value > self.best:
            return
        self.best = value
        try:
            self.checkpointer.save(BEST, self.trainer.iter, **{self.metric: value})
        except OSError as error:
            logger.error(f"could not save {BEST}: {error}")


class UpdateAverage(HookBase):
    """Takes the weights into their average after every step, which has `step_length` iterations.

    It goes before the hooks that evaluate or save.
    """

    def __init__(self, average: WeightAverage, step_length: int):
        self.average, self.step_length = average, step_length

    def after_step(self):
        if (self.trainer.iter + 1) % self.step_length == 0:
            self.average.update()


class StopOnSignal(HookBase):
    """Ctrl-C and SIGTERM end the training after the current step, with a checkpoint.

    A step has `step_length` iterations. For one process: of several ranks each would stop at a step
    of its own; they end at once, and the last checkpoint stays.
    """

    def __init__(self, checkpointer: Checkpointer, step_length: int):
        self.checkpointer, self.step_length = checkpointer, step_length

    def before_train(self):
        self._signal = None
        self._previous = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def _note(self, number, frame):
        if self._signal is not None:  # the second time: at once
            raise KeyboardInterrupt
        self._signal = number
        logger.warning("stopping after this step; once more to stop at once")

    def after_step(self):
        done = self.trainer.iter + 1
        if self._signal is None or done % self.step_length or done == self.trainer.max_iter:
            return
        self.checkpointer.save(f"model_{self.trainer.iter:07d}", self.trainer.iter)
        self._restore()
        raise KeyboardInterrupt

    def after_train(self):
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


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
