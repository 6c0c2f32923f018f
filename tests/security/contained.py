"""Run a reader in a process of its own, and tell what became of it."""

import os
import pickle
import resource
import select
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from projects.SegFormer.modeling.errors import InputError

SECONDS = 10
MEMORY = 2 * 2**30


@dataclass
class Outcome:
    """What a reader did.

    Attributes:
        kind: "value", "refused" (an InputError), "memory" (it ran out of it, whatever it raised),
            "hang", "signal", or "raised" (any other exception).
        text: of the error; a traceback of what no reader should raise.
        seconds: of the processor's time that it took.
        peak: bytes of memory that it took at most, the interpreter and its libraries included.
    """

    kind: str
    text: str
    seconds: float
    peak: int


def contained(work: Callable[[], object], seconds: int = SECONDS) -> Outcome:
    """Run `work` in a fork of this process, which may not run and grow without end.

    A fork has none of OneFlow's threads: what is run may read files, and not compute with OneFlow.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            limit(2 * MEMORY)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            result = attempt(work)
            with os.fdopen(writing, "wb") as stream:
                pickle.dump((*result, peak_memory()), stream)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        # On a busy machine it takes longer, unless it waits for something.
        ready, _, _ = select.select([stream], [], [], 10 * seconds)
        if not ready:
            os.kill(child, signal.SIGKILL)
        data = stream.read()
    _, status, used = os.wait4(child, 0)
    took = used.ru_utime + used.ru_stime
    if not ready or os.WTERMSIG(status) == signal.SIGXCPU or took > seconds:
        return Outcome("hang", f"no end after {seconds} s", took, used.ru_maxrss * 1024)
    if not data:
        return Outcome("signal", f"signal {os.WTERMSIG(status)}", took, used.ru_maxrss * 1024)
    kind, text, peak = pickle.loads(data)
    return Outcome(kind, text, took, peak)


def attempt(work: Callable[[], object]) -> tuple[str, str]:
    """Kind and text of an Outcome."""
    try:
        work()
        return "value", ""
    except InputError as error:
        text = str(error)
        causes = []
        while error is not None:
            causes.append(error)
            error = error.__cause__ or error.__context__
        return "memory" if any(isinstance(c, MemoryError) for c in causes) else "refused", text
    except MemoryError:
        return "memory", traceback.format_exc()
    except BaseException:
        return "raised", traceback.format_exc()


def peak_memory() -> int:
    """Bytes that this process has had at most since `limit`; a fork begins with its parent's."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def limit(more: int) -> None:
    """Let this process take `more` bytes of address space than it has."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM begins anew
