"""Checkpoints that are whole or not there, and the way back from them.

A checkpoint is a folder of LiBai's form: `model`, `optimizer` (or `graph`) and `lr_scheduler`, each
written by `flow.save`, and `checkpoint.json` with the iteration and the size of every file. With
train.ema it holds the averaged weights too, as `ema`.
"""

import json
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import oneflow as flow
from libai.utils import distributed as dist
from libai.utils.checkpoint import Checkpointer as LiBaiCheckpointer

from projects.SegFormer.model_utils.model_weights import load_state, whole
from projects.SegFormer.model_utils.weight_files import open_weights
from projects.SegFormer.modeling.errors import InputError

logger = logging.getLogger("libai." + __name__)

RECORD = "checkpoint.json"
AVERAGE = "ema"  # may be in a checkpoint or not, as train.ema.enabled was when it was saved


class Checkpointer(LiBaiCheckpointer):
    """LiBai's Checkpointer, safe against a kill or a full disk in the middle of a save.

    LiBai writes into the final folder, file by file. Here a checkpoint is written beside it and
    takes its name in one step, when all of it is on the disk.
    """

    def save(self, name: str, iteration: int, **record) -> None:
        """Save the state after `iteration` as the folder `name`; `record` goes into its JSON file.

        Raises OSError, on the main rank, when the disk does not take it, and FloatingPointError
        when a weight is not finite; in both cases earlier checkpoints stay and nothing is left of
        this one.
        """
        state = {"model": self.model.state_dict()}
        state |= {key: value.state_dict() for key, value in self.checkpointables.items()}
        # A graph's state is the optimizer's and the step, and under "model" the weights again.
        state.get("graph", {}).pop("model", None)
        state = {key: _map_tensors(value, whole) for key, value in state.items()}
        for key, value in state["model"].items():
            if not np.isfinite(value.numpy()).all():
                raise FloatingPointError(
                    f"{key} is not finite after iteration {iteration}: not saved as {name}"
                )
        try:
            if dist.is_main_process():
                self._write(Path(self.save_dir), name, state, {"iteration": iteration, **record})
        finally:
            dist.synchronize()

    def _write(self, folder: Path, name: str, state: dict, record: dict) -> None:
        partial, replaced = folder / f".{name}.partial", folder / f".{name}.replaced"
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            for key, value in state.items():
                flow.save(value, str(partial / key))
            record["saved_at"] = time.time()
            record["files"] = {
                str(file.relative_to(partial)): file.stat().st_size for file in _files(partial)
            }
            (partial / RECORD).write_text(json.dumps(record, indent=1))
            for file in _files(partial):
                _flush(file)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if (folder / name).exists():
            os.rename(folder / name, replaced)
        os.rename(partial, folder / name)
        _flush(folder)
        shutil.rmtree(replaced, ignore_errors=True)
        logger.info(f"Saved checkpoint {folder / name}")

    def load_training_state(self, path: str) -> None:
        """Take model, optimizer, schedule and averaged weights from the checkpoint at `path`."""
        logger.info(f"Resuming from {path}")
        load_state(self.model, lambda: open_weights(os.path.join(path, "model")), path)
        has_average = os.path.isdir(os.path.join(path, AVERAGE))
        if has_average and AVERAGE not in self.checkpointables:
            logger.warning(f"{path}: train.ema.enabled is False: its averaged weights are left out")
        for key, target in self.checkpointables.items():
            if key == AVERAGE and not has_average:
                logger.warning(f"{path} has no averaged weights: they start from its weights")
                target.restart()
                continue
            target.load_state_dict(_map_tensors(_load(os.path.join(path, key)), _everywhere))


def last_checkpoint(folder: str) -> tuple[str, int] | None:
    """The whole checkpoint that was saved last in `folder`: its path and iteration.

    By the time of saving: the folder may hold later iterations of an earlier training.
    """
    records = {path: read_record(path) for path in Path(folder).glob("model_*")}
    whole_ones = {path: record for path, record in records.items() if record is not None}
    if not whole_ones:
        return None
    path = max(whole_ones, key=lambda path: whole_ones[path]["saved_at"])
    return str(path), whole_ones[path]["iteration"]


def read_record(path: Path) -> dict | None:
    """What `checkpoint.json` says, or None with a warning if the checkpoint is not whole."""
    try:
        record = json.loads((path / RECORD).read_text())
        sizes = {name: (path / name).stat().st_size for name in record["files"]}
    except (OSError, ValueError, KeyError) as error:
        logger.warning(f"{path} is not a whole checkpoint and is passed over: {error}")
        return None
    wrong = [name for name, size in record["files"].items() if sizes[name] != size]
    if wrong:
        logger.warning(f"{path} is damaged and is passed over: {wrong[0]} has the wrong size")
        return None
    return record


def _load(path: str):
    if not os.path.isdir(path):
        raise InputError(
            f"no checkpoint at {os.path.dirname(path)}: expected a folder with "
            f"{os.path.basename(path)} in it"
        )
    try:
        return flow.load(path)
    except Exception as error:
        raise InputError(f"cannot read the checkpoint {path}: {error}") from error


def _map_tensors(value, function):
    """`value` with `function` applied to every tensor in its dicts and lists."""
    if isinstance(value, flow.Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


def _everywhere(tensor):
    """A local tensor, the same on all ranks, as a global one."""
    placement = flow.env.all_device_placement("cuda" if flow.cuda.is_available() else "cpu")
    return tensor.to_global(placement=placement, sbp=flow.sbp.broadcast)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(path: Path) -> None:
    """Wait until `path` is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
