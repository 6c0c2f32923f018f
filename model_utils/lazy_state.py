"""A state whose tensors are read one at a time, so that memory never holds all of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LazyState:
    """The tensors of a checkpoint.

    Attributes:
        shapes: of every tensor, by its key.
        read: gives all (key, tensor), once: what was given may be gone from memory.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[], Iterable[tuple[str, np.ndarray]]]

    @classmethod
    def of(cls, state: dict[str, np.ndarray]) -> "LazyState":
        return cls({key: np.shape(value) for key, value in state.items()}, state.items)
