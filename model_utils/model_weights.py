"""Weights between NumPy and a model, whatever its placement."""

import logging
import re
from collections.abc import Callable

import numpy as np
import oneflow as flow
from oneflow.framework.check_point_v2 import _broadcast_py_object

from projects.SegFormer.model_utils.lazy_state import LazyState
from projects.SegFormer.model_utils.sizes import name_of_size
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerPreTrainModel, assign

logger = logging.getLogger("libai." + __name__)

# In files, but no layer reads them: how often batch norm has moved, a spare classifier, and what a
# counter of operations left behind.
UNUSED = re.compile(r".*\.num_batches_tracked|head\.conv_seg\..*|(.*\.)?total_(ops|params)")
# Layers of mmsegmentation's head, which has a batch norm after every projection.
MMSEGMENTATION_HEAD = re.compile(r"decode_head\.(convs|fusion_conv)\.")
# The layers whose outputs are the classes, and the axis of their weights that counts them.
CLASSIFIERS = {"head.linear_pred": 0, "head": -1}
EXAMPLES = 3  # of the keys that do not fit, in a message; the log has all


def load_state(
    model: flow.nn.Module,
    open_state: Callable[[], LazyState],
    source: str,
    *,
    only: str = "",
    strict: bool = True,
    ignore_mismatched_head: bool = False,
) -> None:
    """Copy a state, named as in this project, into the parameters and buffers of `model`.

    It is called on all ranks. Rank 0 opens and reads the state, every rank takes its shard.

    Args:
        open_state: gives the state.
        source: what messages call the weights.
        only: look only at keys with this prefix. A bare encoder looks only at `segformer.`.
        strict: raise InputError that counts missing, unexpected and wrongly shaped keys and names
            the likely cause, before anything is copied. Otherwise the rest is loaded. The log has
            all of these keys.
        ignore_mismatched_head: leave a classifier of another number of classes as it is.
    """
    prefix = ""
    if isinstance(model, SegformerPreTrainModel):
        prefix = only = "segformer."
    targets = {prefix + key: value for key, value in _tensors(model)}
    targets = {key: value for key, value in targets.items() if key.startswith(only)}
    shapes = {key: tuple(value.shape) for key, value in targets.items()}

    state = None

    def compare():
        nonlocal state
        state = open_state()
        found = {key: shape for key, shape in state.shapes.items() if key.startswith(only)}
        return _compare(found, shapes, ignore_mismatched_head)

    fitting, problems, cause, other_classes = on_rank_0(compare)
    if other_classes:
        logger.warning(f"{source}: the classifier starts fresh: {other_classes}")
    if problems:
        for kind, keys in problems.items():
            logger.info(f"{source}, {kind}: {', '.join(keys)}")
        message = f"{source} does not fit the model: {cause}{_in_short(problems)}"
        if strict:
            raise InputError(message)
        logger.warning(message)
    for key, values in _from_rank_0(state, fitting, shapes):
        if not np.isfinite(values).all():
            logger.warning(f"{source}: {key} is not finite everywhere")
        assign(targets[key], values)


def _compare(found, shapes, ignore_mismatched_head: bool):
    """(keys that fit, keys that do not by their fault, its likely cause, classifiers of another
    size) from two {key: shape}.
    """
    found = {key: shape for key, shape in found.items() if not UNUSED.fullmatch(key)}
    reshaped = {
        key: f"{key} {found[key]} for {shapes[key]}"
        for key in sorted(shapes.keys() & found.keys())
        if found[key] != shapes[key]
    }
    other_classes = {}
    if ignore_mismatched_head:
        other_classes = {
            key: reshaped.pop(key)
            for key in list(reshaped)
            if _without_classes(key, found[key]) == _without_classes(key, shapes[key])
        }
    kinds = {
        "missing": sorted(shapes.keys() - found.keys()),
        "unexpected": sorted(found.keys() - shapes.keys()),
        "of another shape": list(reshaped.values()),
    }
    problems = {kind: keys for kind, keys in kinds.items() if keys}
    fitting = [key for key in found if shapes.get(key) == found[key]]
    cause = _cause(found, shapes, kinds["unexpected"])
    return fitting, problems, cause, ", ".join(other_classes.values())


def _cause(found, shapes, unexpected: list[str]) -> str:
    """What is likely wrong, in front of the keys; nothing where it does not show."""
    if any(MMSEGMENTATION_HEAD.match(key) for key in unexpected):
        return (
            "its decode head is mmsegmentation's, another network; its encoder can be taken, with "
            "cfg.pretrained_model_path; "
        )
    theirs, ours = name_of_size(found), name_of_size(shapes)
    if theirs and ours and theirs != ours:
        sizes = f"sizes of {theirs}" if " " in theirs else f"{theirs}'s sizes"
        return f"these are {sizes}, the config is {ours}; "
    return ""


def _in_short(problems: dict[str, list[str]]) -> str:
    """Counts, and EXAMPLES keys in all, at least one of each kind."""
    parts = []
    for index, (kind, keys) in enumerate(problems.items()):
        shown = keys[: 1 if index else EXAMPLES + 1 - len(problems)]
        more = f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
        parts.append(f"{len(keys)} {kind}: {', '.join(shown)}{more}")
    return "; ".join(parts)


def _without_classes(key: str, shape: tuple) -> tuple:
    """The shape of a classifier's tensor but for the number of classes; others' as they are."""
    layer = key.rpartition(".")[0]
    return tuple(np.delete(shape, CLASSIFIERS[layer])) if layer in CLASSIFIERS else shape


def on_rank_0(work: Callable):
    """What `work()` returns on rank 0, on every rank. What it raises is an error on every rank."""
    result = error = None
    if flow.env.get_rank() == 0:
        try:
            result = work()
        except Exception as raised:  # whatever it is: the other ranks wait for an answer
            error = raised
    if flow.env.get_world_size() > 1:
        result, message = _broadcast_py_object((result, error and str(error)))
        error = error or (message and InputError(message))
    if error:
        raise error
    return result


def _from_rank_0(state: LazyState | None, keys: list[str], shapes: dict[str, tuple]):
    """Pairs (key, values) of rank 0's state on every rank, in the order of `keys`, which is its."""
    if flow.env.get_rank() == 0:
        wanted = set(keys)
        for key, values in state.read():
            if key not in wanted:
                continue
            if flow.env.get_world_size() > 1:
                flow.comm.broadcast(flow.tensor(np.ascontiguousarray(values, np.float32)), 0)
            yield key, values
    else:
        for key in keys:
            received = flow.empty(*shapes[key], dtype=flow.float32)
            flow.comm.broadcast(received, 0)
            yield key, received.numpy()


def state_of(model: flow.nn.Module) -> dict[str, np.ndarray]:
    """All parameters and buffers of `model`, whole, as NumPy arrays on every rank."""
    return {key: whole(tensor).numpy() for key, tensor in _tensors(model)}


def whole(tensor: flow.Tensor) -> flow.Tensor:
    """A global tensor, whole, as a local one on every rank; called on all ranks at once."""
    if not tensor.is_global:
        return tensor
    placement = flow.env.all_device_placement(tensor.placement.type)
    return tensor.to_global(placement=placement, sbp=flow.sbp.broadcast).to_local()


def _tensors(model: flow.nn.Module):
    yield from model.named_parameters()
    yield from model.named_buffers()
