"""What all ranks must know alike."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import oneflow as flow
from oneflow.framework.check_point_v2 import _broadcast_py_object

from projects.SegFormer.modeling.errors import InputError

Result = TypeVar("Result")
Error = TypeVar("Error", bound=BaseException)


def from_main(function: Callable[[], Result]) -> Result:
    """What `function` returns on the main rank, on every rank; it runs there alone.

    An OSError or InputError of it is raised on every rank, as `on_all_ranks` marks it.
    """
    result = error = None
    if flow.env.get_rank() == 0:
        try:
            result = function()
        except (OSError, InputError) as its_error:
            error = its_error
    if flow.env.get_world_size() > 1:
        result, error = _broadcast_py_object((result, error), 0)
    if error is not None:
        raise on_all_ranks(error)
    return result


def on_all_ranks(error: Error) -> Error:
    """Mark an error as one that all ranks raise: one of them tells it, and all end together."""
    error.on_all_ranks = True
    return error


def on_main_rank(tensor: flow.Tensor) -> np.ndarray:
    """A global tensor as an array on the main rank, whichever ranks hold it; elsewhere empty."""
    axes = tensor.placement.ranks.ndim
    main = flow.placement(tensor.placement.type, np.zeros([1] * axes, int).tolist())
    return tensor.to_global(placement=main, sbp=[flow.sbp.broadcast] * axes).to_local().numpy()


def sums(values: list[int]) -> list[int]:
    """The sum over all ranks of each of some whole numbers."""
    tensor = flow.tensor(values, dtype=flow.int32)
    flow.comm.all_reduce(tensor)
    return tensor.numpy().tolist()
