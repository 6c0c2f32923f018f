"""Threads of the CPU kernels: parts of an array, computed at once.

NumPy's products and the compiled kernels compute in the thread that calls them and let the others
run meanwhile. So a few threads of Python that take parts of the rows are enough: they wait without
spinning, and what a part makes in between stays in its core's cache.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

SMALL = 2**15  # values that are not worth a second thread


# NumPy's OpenBLAS with threads of its own spins for its locks when several threads call it: an
# attention of 7 ms takes up to 200.
ThreadpoolController().select(internal_api="openblas").limit(limits=1)


@cache
def thread_count() -> int:
    """As many as the process may use; OMP_NUM_THREADS and NUMBA_NUM_THREADS can make it fewer."""
    limits = [os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")]
    limits = [int(limit) for limit in limits if limit.isdecimal() and int(limit)]
    return min(len(os.sched_getaffinity(0)), *limits, 2**10)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_count() - 1, thread_name_prefix="segformer-kernels")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has none of the threads


def in_parallel(function: Callable, parts: Iterable) -> None:
    """Call function(part) for each part; who is ready takes the next."""
    parts = list(parts)
    waiting = iter(parts)

    def work():
        for part in waiting:
            function(part)

    others = min(len(parts), thread_count()) - 1
    futures = [_pool().submit(work) for _ in range(others)]
    work()
    for future in futures:
        future.result()


def cut(count: int, pieces: int) -> list[slice]:
    """`count` rows as at most so many slices of nearly the same length."""
    pieces = max(min(pieces, count), 1)
    bounds = [count * piece // pieces for piece in range(pieces + 1)]
    return [slice(*pair) for pair in zip(bounds, bounds[1:])]


def pieces(rows: int, values: int, size: int = 2**17) -> list[slice]:
    """Slices of the rows that have about `size` of the `values` of a row: they fit a cache."""
    if rows * values <= SMALL:
        return [slice(0, rows)]
    return cut(rows, max(thread_count(), rows * values // size))


def total(function: Callable, parts: list) -> np.ndarray:
    """The sum of function(part), added up in the order of the parts whoever computes which."""
    results = [None] * len(parts)

    def compute(index):
        results[index] = function(parts[index])

    in_parallel(compute, range(len(parts)))
    return results[0] if len(results) == 1 else np.sum(results, 0)


def joined(function: Callable, parts: list[slice], like: np.ndarray) -> np.ndarray:
    """An array like `like`, of which each part is function(part)."""
    result = np.empty_like(like)

    def compute(part):
        result[part] = function(part)

    in_parallel(compute, parts)
    return result
