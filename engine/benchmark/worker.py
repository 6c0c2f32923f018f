"""One side of tools/benchmark.py: a process that computes when it is told to, and else waits.

Of this project it imports nothing, so that any Python with NumPy can run it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

CHECKED_STEPS = 3  # of a training, whose losses are compared


class Work(NamedTuple):
    """What is measured.

    `step` computes once, waits until it is done and returns logits, label maps or the loss,
    `to_numpy` makes an array of that, `versions` names the libraries, and `peak_memory` gives bytes
    so far.
    """

    step: Callable[[], Any]
    to_numpy: Callable[[Any], np.ndarray]
    versions: dict[str, str]
    peak_memory: Callable[[], int]


def serve(build: Callable[[dict, np.ndarray, np.ndarray], Work]) -> None:
    """Do the job in the file that the command line names, round by round.

    `build` takes the job, images (N, C, H, W) float32 and labels (N, H, W) int64. First it computes
    the results that are compared. Then each line on standard input is a number of steps for one
    round, and each line on standard output the JSON of what came out.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    with open(sys.argv[1]) as file:
        job = json.load(file)
    work = build(job, np.load(job["images"]), np.load(job["labels"]))
    results = [work.to_numpy(work.step()) for _ in range(CHECKED_STEPS if job["training"] else 1)]
    np.save(job["results"], np.stack(results))
    _reply(replies, versions=work.versions, cpu_seconds=time.process_time())
    for line in sys.stdin:
        work.step()  # brings its data back into the caches
        _reply(
            replies,
            seconds=[_seconds(work.step) for _ in range(int(line))],
            peak_memory=work.peak_memory(),
            cpu_seconds=time.process_time(),
        )


def peak_resident() -> int:
    """Bytes of memory that this process held at most."""
    with open("/proc/self/status") as status:
        kilobytes = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _reply(stream, **content) -> None:
    print(json.dumps(content), file=stream, flush=True)
