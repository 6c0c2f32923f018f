"""A state whose tensors are read one at a time, so that memory never holds all of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

import numpy as np

from projects.SegFormer.modeling.bounds import TENSOR_AXES, TENSOR_ELEMENTS


def is_shape(shape) -> bool:
    """Whether a file may give a tensor this shape: NumPy has trouble with some, without elements
    too.
    """
    axes = list(shape)
    are_counts = len(axes) <= TENSOR_AXES and all(type(n) is int and n >= 0 for n in axes)
    return are_counts and prod(max(1, n) for n in axes) <= TENSOR_ELEMENTS


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
