"""How a process takes the signals that end a run: Ctrl-C, and what schedulers send before SIGKILL.

Without OneFlow, so that they can be caught before it is loaded. A thread looks at them, because
Python's own handlers wait for the main thread, which may wait for another rank.
"""

import os
import signal
import time
from contextlib import suppress
from threading import Thread

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
SAME = 5  # seconds in which a launcher and a scheduler may both deliver what is one signal

_deferred = False  # whether a signal is noted, for a step to be finished, or ends the process
_noted: signal.Signals | None = None
_pipe: tuple[int, int] | None = None


def catch_while_loading() -> None:
    """`catch` for the time in which OneFlow is loaded.

    A rank of several waits for the others then, in a way that stops all of Python's threads: there
    a signal does what it does by itself, which the launcher takes for the same exit status.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        catch()
    else:
        _handle(signal.SIG_DFL)


def catch() -> None:
    """From now on a signal ends the process at once, with exit status 128 + its number.

    To be called when OneFlow is loaded, which takes SIGINT for itself.
    """
    global _pipe
    if _pipe is None:
        _pipe = os.pipe()
        os.set_blocking(_pipe[1], False)
        Thread(target=_watch, args=(_pipe[0],), daemon=True, name="signals").start()
    signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    _handle(_leave_to_the_thread)


def defer() -> None:
    """From now on the first signal is noted, and the same one again, later, ends the process."""
    global _deferred
    _deferred = True


def noted() -> signal.Signals | None:
    """The first signal since `defer`."""
    return _noted


def _handle(handler) -> None:
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # by nohup
            signal.signal(number, handler)


def _leave_to_the_thread(number, frame) -> None:
    """Python writes the number of a signal that has a handler to the pipe."""


def _watch(pipe: int) -> None:
    came = {}  # signal -> when it first came
    while True:
        for byte in os.read(pipe, 64):
            if byte not in SIGNALS:
                continue
            now, number = time.monotonic(), signal.Signals(byte)
            _take(number, again=now - came.setdefault(number, now) > SAME)


def _take(number: signal.Signals, again: bool) -> None:
    global _noted
    if not _deferred or again:
        _say(f"ended by {number.name}")
        os._exit(128 + number)
    if _noted is None:
        _noted = number
        _say(f"{number.name}: stopping after this step; once more, after {SAME} s, ends it at once")


def _say(line: str) -> None:
    if int(os.environ.get("RANK", 0)) <= 0:  # OneFlow makes it -1 where there is one
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
