"""Checkpoints that are whole or not there, and the way back from them.

A checkpoint is a folder of LiBai's form: `model`, `optimizer` (or `graph`) and `lr_scheduler`, each
written by `flow.save`, and `checkpoint.json` with the iteration and the size of every file. With
train.ema it holds the averaged weights too, as `ema`. Beside it `last_checkpoint` names the last
one, for LiBai's own Checkpointer; what that has saved can be resumed as well.
"""

import json
import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path

import numpy as np
import oneflow as flow
from libai.utils.checkpoint import Checkpointer as LiBaiCheckpointer

from projects.SegFormer.engine.json_lines import is_iteration, is_number
from projects.SegFormer.engine.ranks import from_main
from projects.SegFormer.model_utils.key_rules import EPS_NAMES, LIBAI
from projects.SegFormer.model_utils.model_weights import load_state, whole
from projects.SegFormer.model_utils.oneflow_folders import StoredVariable, load_oneflow
from projects.SegFormer.model_utils.safe_pickle import Record
from projects.SegFormer.model_utils.segf_loader import eps_in, eps_of, take_eps
from projects.SegFormer.model_utils.weight_files import open_weights
from projects.SegFormer.modeling.errors import InputError, printable
from projects.SegFormer.modeling.files import read_json, reason, write_json

logger = logging.getLogger("libai." + __name__)

RECORD = "checkpoint.json"
# A checkpoint has two files a tensor. Written to the disk or removed one by one, each takes
# milliseconds, and all of them seconds.
AT_ONCE = 16
LAST = "last_checkpoint"
START = ".start.json"
BEST = "model_best"
AVERAGE = "ema"  # may be in a checkpoint or not, as train.ema.enabled was when it was saved


class Checkpointer(LiBaiCheckpointer):
    """LiBai's Checkpointer, safe against a kill or a full disk in the middle of a save.

    LiBai writes into the final folder, file by file. Here a checkpoint is written beside it and
    takes its name in one step, when all of it is on the disk.
    """

    def save(self, name: str, iteration: int, **record) -> None:
        """Save the state after `iteration` as the folder `name`; `record` goes into its JSON file.

        Raises OSError when the disk does not take it, and FloatingPointError when a weight is not
        finite, both on every rank; earlier checkpoints stay and nothing is left of this one.
        """
        state = {"model": self.model.state_dict()}
        state |= {key: value.state_dict() for key, value in self.checkpointables.items()}
        if "optimizer" in state:
            state["optimizer"]["names"] = self._names(self.checkpointables["optimizer"])
        # A graph's state is the optimizer's and the step, and under "model" the weights again.
        state.get("graph", {}).pop("model", None)
        state = {key: _map_tensors(value, whole) for key, value in state.items()}
        for key, value in state["model"].items():
            if not np.isfinite(value.numpy()).all():
                raise FloatingPointError(
                    f"{key} is not finite after iteration {iteration}: not saved as {name}"
                )
        settings = dict(zip(EPS_NAMES, eps_in(self.model) or ()))  # no other config tells them
        record = {"iteration": iteration, "settings": settings, **record}
        from_main(lambda: self._write(Path(self.save_dir), name, state, record))

    def _write(self, folder: Path, name: str, state: dict, record: dict) -> None:
        partial, replaced = folder / f".{name}.partial", folder / f".{name}.replaced"
        for leftover in (partial, replaced):
            remove(leftover, ignore_errors=True)
        try:
            for key, value in state.items():
                flow.save(value, str(partial / key))
            record["saved_at"] = time.time()
            record["files"] = {
                str(file.relative_to(partial)): file.stat().st_size for file in _files(partial)
            }
            (partial / RECORD).write_text(json.dumps(record, indent=1))
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(_flush, _files(partial)))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if (folder / name).exists():
            os.rename(folder / name, replaced)
        os.rename(partial, folder / name)
        if name != BEST:
            (folder / LAST).write_text(f"{name}\n")
        _flush(folder)
        remove(replaced, ignore_errors=True)
        logger.info(f"Saved checkpoint {folder / name}")

    def _names(self, optimizer: flow.optim.Optimizer) -> list[str]:
        """Of the model's parameters, in the order in which the optimizer's state counts them."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(p)] for group in optimizer.param_groups for p in group.parameters]

    def load_training_state(self, path: str) -> None:
        """Take what was learnt from the checkpoint at `path`: weights, moments, averages, the step.

        Rates, schedule, weight decay and clipping are those of this training. Where the
        checkpoint's were others, it is logged. Raises InputError for a checkpoint of another model.
        """
        logger.info(f"Resuming from {path}")
        changes = []
        load_state(self.model, lambda: open_weights(os.path.join(path, "model")), path)
        take_eps(self.model, eps_of(path, LIBAI), path)
        has_average = os.path.isdir(os.path.join(path, AVERAGE))
        if has_average and AVERAGE not in self.checkpointables:
            logger.warning(f"{path}: train.ema.enabled is False: its averaged weights are left out")
        for key, target in self.checkpointables.items():
            if key == AVERAGE and not has_average:
                logger.warning(f"{path} has no averaged weights: they start from its weights")
                target.restart()
                continue
            state = load_part(os.path.join(path, key))
            try:
                if isinstance(target, flow.optim.Optimizer):
                    changes += _load_moments(target, self._names(target), state)
                elif isinstance(target, flow.optim.lr_scheduler._LRScheduler):
                    changes += _load_step(target, state)
                else:
                    target.load_state_dict(state)
            except Exception as error:  # of another model, or of none: it fails wherever it may
                raise InputError(
                    f"cannot resume from {path}: its {key} is not that of this training: "
                    f"{reason(error)}"
                ) from error
        if changes:
            logger.warning(
                f"{path} was trained with other settings; those of the config count from here on: "
                + ", ".join(dict.fromkeys(changes))
            )


def remove(path: Path, ignore_errors: bool = False) -> None:
    """Remove the checkpoint at `path`. Raises OSError, unless `ignore_errors`."""
    tensors = [it for it in path.glob("*/*") if it.is_dir()]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(shutil.rmtree, tensors, repeat(ignore_errors)))
    shutil.rmtree(path, ignore_errors)


def checkpoint_to_resume(folder: str) -> tuple[str, int] | None:
    """As `last_checkpoint`; one whose replacement a kill cut short gets its name back before."""
    for replaced in Path(folder).glob(".model_*.replaced"):
        name = replaced.with_name(replaced.name[1:].removesuffix(".replaced"))
        if not name.exists():
            os.rename(replaced, name)
    since = _start_of(folder)
    found = last_checkpoint(folder, since)
    if not found and since and (earlier := last_checkpoint(folder)):
        logger.warning(
            f"{earlier[0]} is of an earlier training in this folder; to start from its weights: "
            f"train.load_weight={earlier[0]}"
        )
    return found


def mark_start(folder: str) -> None:
    """A training begins anew in `folder`: the checkpoints that are there are not of it."""
    with suppress(OSError, InputError):  # of a full disk the first checkpoint tells
        write_json(Path(folder) / START, {"time": time.time()})


def _start_of(folder: str) -> float:
    """When the training in `folder` began; 0 where nothing says so."""
    try:
        start = read_json(Path(folder) / START, "time")["time"]
    except InputError:
        return 0.0
    return start if is_number(start) else 0.0


def last_checkpoint(folder: str, since: float = 0.0) -> tuple[str, int] | None:
    """The whole checkpoint that was saved last in `folder`, since a time: its path and iteration.

    By the time of saving: the folder may hold later iterations of an earlier training.
    """
    records = {path: read_record(path) for path in Path(folder).glob("model_*")}
    whole_ones = {path: it for path, it in records.items() if it and it["saved_at"] >= since}
    if not whole_ones:
        return None
    path = max(whole_ones, key=lambda path: whole_ones[path]["saved_at"])
    return str(path), whole_ones[path]["iteration"]


def read_record(path: Path) -> dict | None:
    """What `checkpoint.json` says, or None with a warning if the checkpoint is not whole."""
    if record := _record_of_libai(path):
        return record
    try:
        record = read_json(path / RECORD, "iteration", "saved_at", "files")
        wrong = _wrong_value(record) or _wrong_file(path, record["files"])
    except InputError as error:
        wrong = str(error)
    if wrong:
        logger.warning(f"{path} is not a whole checkpoint and is passed over: {printable(wrong)}")
        return None
    return record


def _record_of_libai(path: Path) -> dict | None:
    """The same of a checkpoint that LiBai's Checkpointer saved: it names it in LAST, without the
    line's end that is there otherwise, when all of it is written.
    """
    last = path.parent / LAST
    try:
        if (path / RECORD).exists() or last.read_text() != path.name:
            return None
        steps = load_oneflow(str(path / "lr_scheduler"))["last_step"]
    except (OSError, ValueError, InputError, LookupError, TypeError):
        return None
    if not is_iteration(steps) or not steps:
        return None
    return {"iteration": steps - 1, "saved_at": last.stat().st_mtime, "files": {}}


def _wrong_value(record: dict) -> str | None:
    if not is_iteration(record["iteration"]):
        return f"{RECORD} has no number of an iteration"
    if not is_number(record["saved_at"]):
        return f"{RECORD} has no time of saving"
    files = record["files"]
    if not isinstance(files, dict) or not files or not all(map(is_number, files.values())):
        return f"{RECORD} has no sizes of files"
    return None


def _wrong_file(path: Path, sizes: dict[str, int]) -> str | None:
    for name, size in sizes.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{name} lies outside of it"
        try:
            found = (path / name).stat().st_size
        except (OSError, ValueError) as error:
            return f"{name}: {reason(error)}"
        if found != size:
            return f"{name} has {found} bytes and had {size}"
    return None


def load_part(path: str):
    """What was saved as `path`, its tensors on all ranks. Raises InputError."""
    if not os.path.isdir(path):
        raise InputError(
            f"no checkpoint at {os.path.dirname(path)}: expected a folder with "
            f"{os.path.basename(path)} in it"
        )
    return _restored(load_oneflow(path))


def _load_step(schedule: flow.optim.lr_scheduler._LRScheduler, state: dict) -> list[str]:
    """Bring `schedule` to the step in `state`; in what else they differ."""
    if not is_iteration(state["last_step"]):
        raise InputError(f"its step is {state['last_step']!r}")
    changes = _differences(schedule.state_dict(), state, {"last_step", "_last_lr", "verbose"})
    schedule.last_step = state["last_step"] - 1
    schedule.step()
    return changes


def _load_moments(optimizer: flow.optim.Optimizer, names: list[str], state: dict) -> list[str]:
    """Give `optimizer` the moments in `state`, by the parameters' names; in what else they differ.

    Raises InputError where they do not fit: OneFlow does not look.
    """
    here = optimizer.state_dict()["param_groups"]
    now = _options_by_name(here, names)
    # A checkpoint without names is of the same groups.
    stored = state.get("names", names)
    then = _options_by_name(state["param_groups"], stored)
    if then.keys() != now.keys():
        raise InputError("it has other parameters")
    if any((now[name].keys() ^ then[name].keys()) - {"clip_grad_norm"} for name in names):
        raise InputError("it is of another kind of optimizer")
    moments = dict(state["state"])
    by_name = {name: moments.pop(index, {}) for index, name in enumerate(stored)}
    moments |= {index: by_name[name] for index, name in enumerate(names)}
    optimizer.load_state_dict({"state": moments, "param_groups": here})
    for group in optimizer.param_groups:
        for parameter in group.parameters:
            for name, moment in optimizer._state.get(parameter, {}).items():
                if isinstance(moment, flow.Tensor) and moment.shape != parameter.shape:
                    raise InputError(f"{name} of {moment.shape} for weights of {parameter.shape}")
    passing = {"lr", "bias_correction1", "bias_correction2", "fused"}
    return [line for name in names for line in _differences(now[name], then[name], passing)]


def _options_by_name(groups: list[dict], names: list[str]) -> dict[str, dict]:
    """The optimizer's options for each parameter, from the groups of its state."""
    options = [group["_options"] for group in groups for _ in group["params"]]
    return dict(zip(names, options, strict=True))


def _differences(now: dict, then: dict, passing: set[str]) -> list[str]:
    """As "power 1.0 -> 2.0", also of dicts in lists; without `passing`, what each step changes."""
    found = []
    for name in (now.keys() | then.keys()) - passing:
        new, old = now.get(name), then.get(name)
        if isinstance(new, (list, tuple)) and isinstance(old, (list, tuple)):
            new, old = list(new), list(old)
            if any(isinstance(item, dict) for item in new):
                pairs = zip(new, old)
                found += [line for pair in pairs for line in _differences(*pair, passing)]
                continue
        if new != old:
            found.append(f"{name} {old} -> {new}")
    return sorted(found)


def _restored(value):
    """`value` of load_oneflow with tensors in the place of what is still in files."""
    if isinstance(value, StoredVariable):
        return _everywhere(flow.tensor(value.numpy()))
    if isinstance(value, Record) and value.name == "omegaconf.listconfig.ListConfig":
        return [node.state["_val"] for node in value.state["_content"]]  # betas of AdamW
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_restored, value))
    return value


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
