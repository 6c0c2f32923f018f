"""Weight files from disk to NumPy, and from NumPy into a model on any placement."""

import json
import logging
import os
import zipfile

import numpy as np
import oneflow as flow

from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import assign

logger = logging.getLogger("libai." + __name__)


def find_weight_files(path: str, names: tuple[str, ...]) -> list[str]:
    """The weight files at `path`: itself, or the first of `names` in it, all its shards if sharded.

    Raises InputError when there is none, or when an index names a shard that is missing.
    """
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise InputError(f"no weights at {path}: neither a file nor a folder")
    for name in names:
        file = os.path.join(path, name)
        if os.path.isfile(file):
            return [file]
        index = file + ".index.json"
        if os.path.isfile(index):
            shards = sorted(set(read_json(index, "weight_map")["weight_map"].values()))
            files = [os.path.join(path, shard) for shard in shards]
            for shard in files:
                if not os.path.isfile(shard):
                    raise InputError(f"{index} names {os.path.basename(shard)}, which is not there")
            return files
    raise InputError(f"no weights in {path}: expected one of {', '.join(names)}")


def read_json(file: str, *names: str) -> dict:
    """The JSON object in `file`. Raises InputError when it is not one that has `names`."""
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): download it again") from error
    missing = [name for name in names if not isinstance(content, dict) or name not in content]
    if missing:
        raise InputError(f"{file} has no {', '.join(missing)}: download it again")
    return content


def read_weights(file: str) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors or a torch file. Raises InputError when it cannot be read."""
    try:
        if file.endswith(".safetensors"):
            from safetensors.numpy import load_file

            return load_file(file)
        state = _read_torch(file)
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot read weights from {file}: {reason}") from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(hasattr(value, "numpy") for value in state.values()):
        raise InputError(f"{file} holds no weights: expected a dict of tensors")
    return {key: value.float().numpy() for key, value in state.items()}


def _read_torch(file: str):
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"reading {file} needs PyTorch: pip install torch, or give a .safetensors file"
        ) from error
    if os.path.getsize(file) == 0:
        raise InputError(f"{file} is empty: download it again")
    if not zipfile.is_zipfile(file):
        logger.info(f"{file} is in torch's format from before version 1.6")
    # weights_only: a pickle from a stranger could run code.
    return torch.load(file, map_location="cpu", weights_only=True)


def load_state(
    model: flow.nn.Module,
    state: dict[str, np.ndarray],
    source: str,
    *,
    only: str = "",
    strict: bool = True,
) -> None:
    """Copy `state`, named as in this project, into the parameters and buffers of `model`.

    Every rank takes its shard. With `only`, just the keys with that prefix are looked at.
    Raises InputError that lists all missing, unexpected and wrongly shaped keys; with
    strict=False these are logged and the rest is loaded.
    """
    targets = {key: value for key, value in _tensors(model) if key.startswith(only)}
    state = {key: value for key, value in state.items() if key.startswith(only)}
    missing = sorted(targets.keys() - state.keys())
    unexpected = sorted(state.keys() - targets.keys())
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(targets[key].shape)}"
        for key in sorted(targets.keys() & state.keys())
        if tuple(state[key].shape) != tuple(targets[key].shape)
    ]
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys)}"
        for kind, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        )
        if keys
    ]
    if problems:
        message = f"{source} does not fit the model: {'; '.join(problems)}"
        if strict:
            raise InputError(message)
        logger.warning(message)
    for key, target in targets.items():  # in one order on all ranks: they copy together
        if key in state and tuple(state[key].shape) == tuple(target.shape):
            assign(target, state[key])


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
