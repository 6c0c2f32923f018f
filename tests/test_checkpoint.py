"""Checkpoints: what comes back is what went in, and no failure costs one that was whole."""

import json
import logging
import os
import resource
import shutil
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oneflow as flow
import pytest
from oneflow import nn

from conftest import delayed, wait_until
from projects.SegFormer.engine.checkpoint import (
    Checkpointer,
    checkpoint_to_resume,
    last_checkpoint,
    mark_start,
    read_record,
)
from projects.SegFormer.engine.graph import SegformerGraph
from projects.SegFormer.engine.hooks import BestCheckpointer, PeriodicCheckpointer
from projects.SegFormer.engine.optim import warmup_poly
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.segf_loader import SegFLoaderLiBai
from projects.SegFormer.model_utils.weight_files import read_weights
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation

HERE = dict(placement=flow.placement("cpu", ranks=[0]), sbp=flow.sbp.broadcast)


class Regression(nn.Module):
    """A model that a graph compiles in no time, with a running buffer as batch norm has."""

    def __init__(self, seed: int):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.body, self.head = nn.Linear(8, 64), nn.Linear(64, 1)
        for parameter in self.parameters():
            parameter.data.copy_(
                flow.tensor(rng.normal(0, 0.3, parameter.shape).astype(np.float32))
            )
        self.register_buffer("scale", flow.tensor([float(seed)]))
        self.to_global(**HERE)

    def forward(self, x, y):
        return {"losses": delayed(((self.head(flow.relu(self.body(x))) - y) ** 2).mean())}


class Training:
    """Steps of AdamW under the recipe's schedule, as the trainer makes them in either mode.

    Every second group has twice the rate of the one before.
    """

    def __init__(
        self,
        folder: Path,
        mode: str = "eager",
        seed: int = 1,
        max_iter: int = 10,
        groups: tuple[str, ...] = ("",),
        optimizer=flow.optim.AdamW,
        **options,
    ):
        self.model = Regression(seed)
        options = dict(lr=1e-2, weight_decay=0.01) | options
        self.optimizer = optimizer(
            [
                options
                | dict(
                    params=[p for name, p in self.model.named_parameters() if prefix in name],
                    lr=options["lr"] * (index + 1),
                )
                for index, prefix in enumerate(groups)
            ]
        )
        self.schedule = warmup_poly(self.optimizer, max_iter=max_iter, warmup_iter=2)
        self.graph = None
        if mode == "graph":
            self.graph = SegformerGraph(self.model, self.optimizer, self.schedule)
        state = dict(graph=self.graph) if self.graph else dict(optimizer=self.optimizer)
        self.checkpointer = Checkpointer(
            self.model, str(folder), **state, lr_scheduler=self.schedule
        )

    def steps(self, *iterations: int) -> list[float]:
        losses = []
        for iteration in iterations:
            x = np.random.default_rng(iteration).normal(size=(16, 8)).astype(np.float32)
            batch = dict(x=flow.tensor(x, **HERE), y=flow.tensor(x.prod(1, keepdims=True), **HERE))
            if self.graph:
                loss = self.graph(**batch)["losses"]
            else:
                loss = self.model(**batch)["losses"]
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.schedule.step()
            losses.append(loss.numpy().item())
        return losses


@pytest.fixture
def checkpointer(tmp_path) -> Checkpointer:
    return Training(tmp_path).checkpointer


def names(folder: Path) -> list[str]:
    """Of the checkpoints; also of those that are hidden because they are not whole."""
    return sorted(name for name in os.listdir(folder) if name != "last_checkpoint")


@contextmanager
def files_of_at_most(size: int):
    """What a full disk does: no file can be written beyond `size` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def log_of(name: str, caplog):
    """LiBai's logger may not hand its lines on to pytest."""
    logger = logging.getLogger(f"libai.projects.SegFormer.engine.{name}")
    logger.addHandler(caplog.handler)
    try:
        yield caplog
    finally:
        logger.removeHandler(caplog.handler)


# --- there and back -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_what_is_loaded_goes_on_as_what_was_saved(tmp_path, mode):
    saved = Training(tmp_path, mode)
    saved.steps(0, 1, 2, 3)
    saved.checkpointer.save("model_0000003", 3)
    expected = saved.steps(4, 5, 6)

    loaded = Training(tmp_path, mode, seed=2)
    loaded.checkpointer.load_training_state(str(tmp_path / "model_0000003"))
    assert loaded.steps(4, 5, 6) == expected
    for key, value in state_of(saved.model).items():
        np.testing.assert_array_equal(state_of(loaded.model)[key], value, err_msg=key)


def moments(training: Training) -> dict[str, np.ndarray]:
    """The first moment of each parameter by its name."""
    state = training.optimizer._state
    return {name: state[p]["exp_avg"].numpy() for name, p in training.model.named_parameters()}


CHANGES = {
    "longer": (dict(max_iter=20), "max_decay_steps 10 -> 20"),
    "rate": (dict(lr=0.05), "initial_lr 0.01 -> 0.05"),
    "decay": (dict(weight_decay=0.3), "weight_decay 0.01 -> 0.3"),
    "clipping": (dict(clip_grad_norm=0.5), "clip_grad_norm None -> 0.5"),
    "betas": (dict(betas=(0.8, 0.9)), "betas [0.9, 0.999] -> [0.8, 0.9]"),
    "groups": (dict(groups=("head", "body")), "initial_lr 0.01 -> 0.02"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_resume_takes_the_step_and_what_was_learnt_and_the_settings_of_the_config(
    tmp_path, caplog, change
):
    saved = Training(tmp_path)
    saved.steps(0, 1, 2, 3)
    saved.checkpointer.save("model_0000003", 3)
    settings, told = CHANGES[change]
    loaded = Training(tmp_path, seed=2, **settings)
    with log_of("checkpoint", caplog):
        loaded.checkpointer.load_training_state(str(tmp_path / "model_0000003"))
    (warning,) = {r.getMessage() for r in caplog.records if r.levelname == "WARNING"}
    assert told in warning

    # A training with these settings from the start, at the same step, has the same options.
    straight = Training(tmp_path, **settings)
    straight.steps(0, 1, 2, 3)
    for group, expected in zip(loaded.optimizer.param_groups, straight.optimizer.param_groups):
        passing = {"bias_correction1", "bias_correction2"}
        assert {k: v for k, v in group.options.items() if k not in passing} == {
            k: v for k, v in expected.options.items() if k not in passing
        }
    assert loaded.schedule.get_last_lr() == straight.schedule.get_last_lr()
    expected = moments(saved)
    for name, moment in moments(loaded).items():
        np.testing.assert_array_equal(moment, expected[name], err_msg=name)
    last = settings.get("max_iter", 10)
    loaded.steps(*range(4, last))
    assert loaded.schedule.get_last_lr() == [0.0] * len(loaded.optimizer.param_groups)


def test_same_settings_are_not_told(tmp_path, caplog):
    saved = Training(tmp_path, groups=("head", "body"), clip_grad_norm=1.0)
    saved.steps(0, 1)
    saved.checkpointer.save("model_0000001", 1)
    with log_of("checkpoint", caplog):
        Training(
            tmp_path, groups=("head", "body"), clip_grad_norm=1.0
        ).checkpointer.load_training_state(str(tmp_path / "model_0000001"))
    assert "WARNING" not in caplog.text


def test_checkpoint_of_another_optimizer_is_refused(tmp_path):
    Training(tmp_path, optimizer=flow.optim.SGD).checkpointer.save("model_0000003", 3)
    with pytest.raises(InputError, match="optimizer is not that of this training: .*another kind"):
        Training(tmp_path).checkpointer.load_training_state(str(tmp_path / "model_0000003"))


def test_optimizer_state_matters(tmp_path):
    """Else the test above could not see whether it came back."""
    saved = Training(tmp_path)
    saved.steps(0, 1, 2, 3)
    saved.checkpointer.save("model_0000003", 3)
    expected = saved.steps(4, 5, 6)
    loaded = Training(tmp_path, seed=2)
    del loaded.checkpointer.checkpointables["optimizer"]
    loaded.checkpointer.load_training_state(str(tmp_path / "model_0000003"))
    assert loaded.steps(4, 5, 6) != expected


def test_record_is_kept(checkpointer, tmp_path):
    checkpointer.save("model_best", 41, mIoU=12.5)
    record = read_record(tmp_path / "model_best")
    assert (record["iteration"], record["mIoU"]) == (41, 12.5)


def test_loader_reads_a_checkpoint(tmp_path):
    settings = dict(
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 3, 4],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=16,
        num_classes=3,
    )
    flow.manual_seed(7)
    model = SegformerForSemanticSegmentation(**settings)
    Checkpointer(model, str(tmp_path)).save("model_final", 0)
    flow.manual_seed(8)
    loader = SegFLoaderLiBai(
        SegformerForSemanticSegmentation, settings, str(tmp_path / "model_final")
    )
    loaded = state_of(loader.load())
    expected = state_of(model)
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(loaded[key], value, err_msg=key)


def test_no_checkpoint_is_an_error(checkpointer, tmp_path):
    assert last_checkpoint(str(tmp_path)) is None
    with pytest.raises(InputError, match=r"no weights at .*/nowhere"):
        checkpointer.load_training_state(str(tmp_path / "nowhere"))


# --- failures in the middle of a save -----------------------------------------------------------


@pytest.mark.parametrize("size", [0, 100, 1000])
@pytest.mark.parametrize("name", ["model_0000002", "model_0000001"])
def test_full_disk(tmp_path, size, name):
    """Also when the checkpoint that cannot be written is to replace the one before."""
    training = Training(tmp_path)
    training.checkpointer.save("model_0000001", 1)
    before = {key: value.copy() for key, value in state_of(training.model).items()}
    training.steps(2)
    with files_of_at_most(size), pytest.raises(OSError):
        training.checkpointer.save(name, 2)
    assert names(tmp_path) == ["model_0000001"]
    assert last_checkpoint(str(tmp_path)) == (str(tmp_path / "model_0000001"), 1)
    found = read_weights(str(tmp_path / "model_0000001"))
    for key, value in before.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    training.checkpointer.save(name, 2)
    assert last_checkpoint(str(tmp_path)) == (str(tmp_path / name), 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    training = Training(tmp_path)
    training.checkpointer.save("model_0000001", 1)
    training.model.head.weight.data.copy_(flow.full((1, 64), value, **HERE))
    with pytest.raises(FloatingPointError, match=r"head\.weight .* iteration 2.* model_0000002"):
        training.checkpointer.save("model_0000002", 2)
    assert names(tmp_path) == ["model_0000001"]


SAVES_FOR_EVER = """
import sys
import oneflow as flow
from projects.SegFormer.engine.checkpoint import Checkpointer
model = flow.nn.Sequential(*(flow.nn.Linear(32, 32) for _ in range(8)))
checkpointer = Checkpointer(model, sys.argv[1])
for iteration in range(1_000_000):
    for parameter in model.parameters():
        flow.nn.init.constant_(parameter, iteration)
    checkpointer.save(f"model_{iteration:07d}", iteration)
    print(iteration, flush=True)
"""


@pytest.mark.slow
def test_kill_in_the_middle_of_a_save(tmp_path, start):
    folders = [tmp_path / str(index) for index in range(4)]
    processes = []
    for folder in folders:
        folder.mkdir()
        with open(folder / "saved", "w") as saved:
            processes.append(start(sys.executable, "-c", SAVES_FOR_EVER, str(folder), stdout=saved))
    rng = np.random.default_rng(0)
    for folder, process in zip(folders, processes):
        wait_until(lambda: len((folder / "saved").read_text()) > 10)  # noqa: B023
        wait_until(lambda: is_stopped_in_a_save(process, folder, rng))  # noqa: B023
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert list(folder.glob(".*"))
        path, iteration = last_checkpoint(str(folder))
        last = int((folder / "saved").read_text().split()[-1])
        assert iteration in (last, last + 1)  # killed before it could say so
        assert {value.mean() for value in read_weights(path).values()} == {iteration}


def is_stopped_in_a_save(process, folder: Path, rng) -> bool:
    """Stop the process shortly after a save began; if that is over, let it go on."""
    began = time.monotonic()
    while not list(folder.glob(".*")) and time.monotonic() < began + 5:
        pass
    time.sleep(rng.uniform(0, 0.01))
    os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    if list(folder.glob(".*")):
        return True
    os.kill(process.pid, signal.SIGCONT)
    return False


def test_leftovers_of_a_kill_are_cleared(checkpointer, tmp_path):
    partial = tmp_path / ".model_0000002.partial"
    partial.mkdir()
    (partial / "half").write_text("half")
    checkpointer.save("model_0000002", 2)
    assert names(tmp_path) == ["model_0000002"]
    assert "half" not in read_record(tmp_path / "model_0000002")["files"]


def cut(path: Path) -> None:
    file = max((path / "optimizer").iterdir(), key=lambda file: file.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)


def delete_a_file(path: Path) -> None:
    (path / "lr_scheduler" / "pickled_data").unlink()


def delete_the_record(path: Path) -> None:
    (path / "checkpoint.json").unlink()


def cut_the_record(path: Path) -> None:
    os.truncate(path / "checkpoint.json", 20)


@pytest.mark.parametrize("damage", [cut, delete_a_file, delete_the_record, cut_the_record])
def test_damaged_checkpoint_is_passed_over(checkpointer, tmp_path, caplog, damage):
    checkpointer.save("model_0000001", 1)
    checkpointer.save("model_0000002", 2)
    damage(tmp_path / "model_0000002")
    with log_of("checkpoint", caplog):
        assert last_checkpoint(str(tmp_path)) == (str(tmp_path / "model_0000001"), 1)
    warning = caplog.records[0]
    assert warning.levelname == "WARNING" and "model_0000002" in warning.getMessage()


# --- the hooks that save ------------------------------------------------------------------------


def hooked(hook, max_iter: int):
    """The hook with a trainer to look at."""
    hook.trainer = SimpleNamespace(
        max_iter=max_iter,
        watchdog=SimpleNamespace(alive=lambda doing: None),
        stopping=SimpleNamespace(check=lambda phase: None),
    )
    return hook


def run(hook, *iterations: int) -> None:
    for iteration in iterations:
        hook.trainer.iter = iteration
        hook.after_step()


def test_last_checkpoints_are_kept(checkpointer, tmp_path):
    hook = hooked(PeriodicCheckpointer(checkpointer, period=2, max_to_keep=2), max_iter=9)
    checkpointer.save("model_best", 0)
    run(hook, *range(9))
    assert names(tmp_path) == ["model_0000005", "model_0000007", "model_best", "model_final"]
    assert last_checkpoint(str(tmp_path)) == (str(tmp_path / "model_final"), 8)


def test_training_goes_on_after_a_failed_save(checkpointer, tmp_path, caplog, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    hook = hooked(PeriodicCheckpointer(checkpointer, period=1, max_to_keep=1), max_iter=4)
    run(hook, 0)
    with log_of("hooks", caplog), files_of_at_most(100):
        run(hook, 1)
    assert "could not save model_0000001" in caplog.text
    assert names(tmp_path) == ["model_0000000"]
    run(hook, 2)
    assert names(tmp_path) == ["model_0000002"]
    assert not waits
    # Nothing would be left of the training: it is tried for minutes.
    with files_of_at_most(100), pytest.raises(OSError, match=f"model_final.*{tmp_path}"):
        run(hook, 3)
    assert sum(waits) == 370


def test_last_checkpoint_is_tried_until_there_is_room(checkpointer, tmp_path, monkeypatch):
    def sleep(seconds):
        disk.close()  # somebody makes room

    monkeypatch.setattr(time, "sleep", sleep)
    disk = ExitStack()
    disk.enter_context(files_of_at_most(100))
    run(hooked(PeriodicCheckpointer(checkpointer, period=9, max_to_keep=1), max_iter=4), 3)
    assert last_checkpoint(str(tmp_path)) == (str(tmp_path / "model_final"), 3)


def test_new_checkpoints_outlive_those_of_an_earlier_training(checkpointer, tmp_path):
    """In one folder, without --resume: what this training saves is what a resume goes on from."""
    for iteration in (97, 98, 99):
        checkpointer.save(f"model_{iteration:07d}", iteration)
    hook = hooked(PeriodicCheckpointer(checkpointer, period=1, max_to_keep=2), max_iter=100)
    run(hook, 0, 1, 2)
    assert {"model_0000001", "model_0000002"} <= set(names(tmp_path))
    assert last_checkpoint(str(tmp_path))[1] == 2


def test_best_checkpoint_is_kept_across_a_resume(checkpointer, tmp_path):
    best = tmp_path / "model_best"

    def saved() -> tuple[float, int]:
        record = read_record(best)
        return record["mIoU"], record["iteration"]

    first = BestCheckpointer(checkpointer, "mIoU")
    first.keep_if_best(50.0, 1)
    first.keep_if_best(40.0, 3)
    assert saved() == (50.0, 1)
    resumed = BestCheckpointer(checkpointer, "mIoU")
    resumed.resume()
    resumed.keep_if_best(45.0, 5)
    assert saved() == (50.0, 1)
    resumed.keep_if_best(float("nan"), 7)
    assert saved() == (50.0, 1)
    resumed.keep_if_best(60.0, 9)
    assert saved() == (60.0, 9)
    BestCheckpointer(checkpointer, "mIoU").keep_if_best(10.0, 1)  # another training
    assert saved() == (10.0, 1)


def remove_the_weights(best: Path) -> None:
    shutil.rmtree(best / "model")


def without_the_metric(best: Path) -> None:
    edit_record(best, mIoU=None)


def with_a_metric_of_text(best: Path) -> None:
    edit_record(best, mIoU="50")


def edit_record(path: Path, **changes) -> None:
    """Change fields of checkpoint.json; None takes one out."""
    record = json.loads((path / "checkpoint.json").read_text()) | changes
    record = {name: value for name, value in record.items() if value is not None}
    (path / "checkpoint.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "damage", [remove_the_weights, without_the_metric, with_a_metric_of_text, cut_the_record]
)
def test_damaged_best_checkpoint_is_replaced(checkpointer, tmp_path, damage):
    checkpointer.save("model_best", 1, mIoU=50.0)
    damage(tmp_path / "model_best")
    best = BestCheckpointer(checkpointer, "mIoU")
    best.resume()
    best.keep_if_best(20.0, 3)
    assert read_record(tmp_path / "model_best")["mIoU"] == 20.0


def test_best_checkpoint_that_could_not_be_written_does_not_count(checkpointer, tmp_path):
    best = BestCheckpointer(checkpointer, "mIoU")
    best.keep_if_best(30.0, 1)
    with files_of_at_most(100):
        best.keep_if_best(50.0, 3)
    assert read_record(tmp_path / "model_best")["mIoU"] == 30.0
    best.keep_if_best(40.0, 5)  # of those that are to be had
    assert read_record(tmp_path / "model_best")["mIoU"] == 40.0


def test_checkpoint_whose_replacement_was_cut_short_comes_back(checkpointer, tmp_path):
    """A kill between the two renames of a save."""
    checkpointer.save("model_best", 1, mIoU=50.0)
    os.rename(tmp_path / "model_best", tmp_path / ".model_best.replaced")
    assert checkpoint_to_resume(str(tmp_path)) == (str(tmp_path / "model_best"), 1)


FOREIGN_RECORDS = {
    "binary": b"\x89PNG\r\n\x1a\n\xff\xfe",
    "list": b"[1, 2]",
    "number": b"3",
    "deep": b"[" * 100_000,
    "nothing": b"",
    "iteration of text": dict(iteration="7"),
    "iteration below 0": dict(iteration=-1),
    "fraction": dict(iteration=1.5),
    "truth": dict(iteration=True),
    "huge iteration": dict(iteration=10**400),
    "time that is none": dict(saved_at=float("nan")),
    "endless time": dict(saved_at=float("inf")),
    "time of text": dict(saved_at="now"),
    "files of another kind": dict(files=[1]),
    "no files": dict(files={}),
    "size of text": dict(files={"checkpoint.json": "big"}),
    "file outside": dict(files={"../model_0000001/model/pickled_data": 0}),
    "absolute file": dict(files={"/etc/hostname": 5}),
    "name that is none": dict(files={"a\0b": 5}),
    "surrogates": dict(files={"\ud800": 5}),
}


@pytest.mark.parametrize("name", FOREIGN_RECORDS)
def test_foreign_record_is_passed_over(checkpointer, tmp_path, caplog, name):
    checkpointer.save("model_0000001", 1)
    checkpointer.save("model_0000002", 2)
    content, path = FOREIGN_RECORDS[name], tmp_path / "model_0000002"
    if isinstance(content, dict):
        edit_record(path, **content)
    else:
        (path / "checkpoint.json").write_bytes(content)
    with log_of("checkpoint", caplog):
        assert last_checkpoint(str(tmp_path)) == (str(tmp_path / "model_0000001"), 1)
    (warning,) = {record.getMessage() for record in caplog.records}
    assert "model_0000002" in warning and "\n" not in warning


def test_checkpoints_of_an_earlier_training_are_not_resumed(tmp_path, caplog):
    checkpointer = Checkpointer(flow.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_final", 99)
    mark_start(str(tmp_path))
    assert checkpoint_to_resume(str(tmp_path)) is None
    assert "model_final is of an earlier training in this folder" in caplog.text
    checkpointer.save("model_0000004", 4)
    assert checkpoint_to_resume(str(tmp_path)) == (str(tmp_path / "model_0000004"), 4)
