"""The end of a run by a signal, at the same place on all ranks."""

import math
import signal
import time

import oneflow as flow

from projects.SegFormer.engine import signals
from projects.SegFormer.engine.ranks import sums

AGREE_EVERY = 0.5  # seconds
MAX_PACE = 100  # steps or batches


class Stopped(BaseException):
    """A signal ends the run. No Exception, as KeyboardInterrupt is none.

    The message says what is there to go on from.
    """

    def __init__(self, number: signal.Signals, where: str = ""):
        super().__init__(f"stopped by {number.name} {where}".strip())
        self.number = number


class Stopping:
    """Asks at each step, or batch of an evaluation, whether it is the last.

    A scheduler may signal one rank or all, and then not all in the same step. So the ranks add up
    what they have noted. That is about every half second and not in every step, for it can take
    milliseconds: the main rank tells the others after how many calls they meet next.
    """

    def __init__(self):
        signals.defer()
        self._phase, self._stopped = "", False

    def check(self, phase: str) -> None:
        """To be called alike on all ranks; raises Stopped, once, on all of them or on none.

        Args:
            phase: what is being done; the calls of one phase take about the same time.
        """
        number = None if self._stopped else self._agreed(phase)
        if number is not None:
            self._stopped = True
            raise Stopped(number)

    def _agreed(self, phase: str) -> signal.Signals | None:
        noted = signals.noted()
        if flow.env.get_world_size() == 1:
            return noted
        if phase != self._phase:
            self._phase, self._left, self._pace = phase, 1, 1
            self._met = -math.inf
        self._left -= 1
        if self._left > 0:
            return None
        now = time.monotonic()
        calls = self._pace * AGREE_EVERY / max(now - self._met, 1e-6)  # in as much time
        pace = min(max(int(calls), 1), MAX_PACE) if flow.env.get_rank() == 0 else 0
        *counts, self._pace = sums([*(int(noted == number) for number in signals.SIGNALS), pace])
        self._left, self._met = self._pace, now
        found = (number for number, count in zip(signals.SIGNALS, counts, strict=True) if count)
        return next(found, None)
