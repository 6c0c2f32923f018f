"""The average of the weights, against its recursion in NumPy; in checkpoints and evaluations."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import oneflow as flow
import pytest
from oneflow import nn

from conftest import delayed, metrics, run_here, train_sh, training
from projects.SegFormer.engine.checkpoint import Checkpointer
from projects.SegFormer.engine.ema import WeightAverage
from projects.SegFormer.engine.graph import SegformerGraph
from projects.SegFormer.engine.optim import warmup_poly
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.weight_files import read_weights
from projects.SegFormer.modeling.errors import InputError

HERE = dict(placement=flow.placement("cpu", ranks=[0]), sbp=flow.sbp.broadcast)
DECAY = 0.7
modes = pytest.mark.parametrize("mode", ["eager", "graph"])


class Regression(nn.Module):
    """A model that a graph compiles in no time, with a buffer."""

    def __init__(self, seed: int = 1):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.body, self.head = nn.Linear(8, 64), nn.Linear(64, 1)
        for parameter in self.parameters():
            parameter.data.copy_(flow.tensor(rng.normal(0, 0.3, parameter.shape).astype("f4")))
        self.register_buffer("scale", flow.tensor([float(seed)]))
        self.to_global(**HERE)

    def forward(self, x, y):
        return {"losses": delayed(((self.head(flow.relu(self.body(x))) - y) ** 2).mean())}


def inputs(iteration: int) -> np.ndarray:
    return np.random.default_rng(iteration).normal(size=(16, 8)).astype(np.float32)


class Training:
    """Steps as the trainer makes them in either mode, each taken into the average."""

    def __init__(self, folder: Path, mode: str, seed: int = 1, average: bool = True):
        self.model = Regression(seed)
        self.optimizer = flow.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.schedule = warmup_poly(self.optimizer, max_iter=20, warmup_iter=2)
        self.graph = None
        if mode == "graph":
            self.graph = SegformerGraph(self.model, self.optimizer, self.schedule)
        self.average = WeightAverage(self.model, DECAY) if average else None
        parts = dict(graph=self.graph) if self.graph else dict(optimizer=self.optimizer)
        parts |= dict(ema=self.average) if average else {}
        self.checkpointer = Checkpointer(
            self.model, str(folder), **parts, lr_scheduler=self.schedule
        )

    def step(self, iteration: int) -> float:
        x = inputs(iteration)
        batch = dict(x=flow.tensor(x, **HERE), y=flow.tensor(x.prod(1, keepdims=True), **HERE))
        loss = (self.graph or self.model)(**batch)["losses"]
        if not self.graph:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.schedule.step()
        # As batch norm's statistics, which move with every step.
        self.model.scale.data.copy_(flow.tensor([iteration**0.5], **HERE))
        if self.average:
            self.average.update()
        return loss.numpy().item()


def arrays(tensors: dict) -> dict[str, np.ndarray]:
    return {key: np.array(tensor.numpy()) for key, tensor in tensors.items()}


def weights_of(model) -> dict[str, np.ndarray]:
    return {key: np.array(value) for key, value in state_of(model).items()}


def assert_equal(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


# ---- The average --------------------------------------------------------------------------------


@modes
def test_average_is_the_recursion(tmp_path, mode):
    training = Training(tmp_path, mode)
    expected = {key: value.astype(np.float64) for key, value in weights_of(training.model).items()}
    for iteration in range(12):
        training.step(iteration)
        for key, weight in weights_of(training.model).items():
            expected[key] = DECAY * expected[key] + (1 - DECAY) * weight
        found = arrays(training.average.state_dict())
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=2e-7, err_msg=key)
    for key, weight in weights_of(training.model).items():
        assert np.abs(found[key] - weight).max() > 1e-3, f"{key} is its average anyway"


@modes
def test_applied_swaps_the_weights_and_puts_them_back(tmp_path, mode):
    disturbed, undisturbed = Training(tmp_path, mode), Training(tmp_path, mode)
    for iteration in range(4):
        assert disturbed.step(iteration) == undisturbed.step(iteration)
    before = weights_of(disturbed.model)
    average = arrays(disturbed.average.state_dict())
    with disturbed.average.applied():
        assert_equal(weights_of(disturbed.model), average)
    assert_equal(weights_of(disturbed.model), before)
    with pytest.raises(KeyboardInterrupt), disturbed.average.applied():
        raise KeyboardInterrupt
    assert_equal(weights_of(disturbed.model), before)
    assert_equal(arrays(disturbed.average.state_dict()), average)
    for iteration in range(4, 8):
        assert disturbed.step(iteration) == undisturbed.step(iteration)


@modes
def test_a_step_reads_what_is_applied(tmp_path, mode):
    """The loss within is that of the averages: also a graph reads the memory they are put in."""
    training = Training(tmp_path, mode)
    for iteration in range(4):
        training.step(iteration)
    weights = arrays(training.average.state_dict())
    with training.average.applied():
        found = training.step(9)
    x = inputs(9)
    hidden = np.maximum(x @ weights["body.weight"].T + weights["body.bias"], 0)
    result = hidden @ weights["head.weight"].T + weights["head.bias"]
    assert found == pytest.approx(((result - x.prod(1, keepdims=True)) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5])
def test_a_decay_that_is_none(decay):
    with pytest.raises(InputError, match=rf"train\.ema\.decay={decay}: expected a number from 0"):
        WeightAverage(Regression(), decay)


# ---- In checkpoints -----------------------------------------------------------------------------


@modes
def test_resumed_average_is_the_uninterrupted_one(tmp_path, mode):
    saved = Training(tmp_path, mode)
    for iteration in range(4):
        saved.step(iteration)
    saved.checkpointer.save("model_0000003", 3)
    for iteration in range(4, 8):
        saved.step(iteration)

    loaded = Training(tmp_path, mode, seed=2)
    loaded.checkpointer.load_training_state(str(tmp_path / "model_0000003"))
    for iteration in range(4, 8):
        loaded.step(iteration)
    assert_equal(arrays(loaded.average.state_dict()), arrays(saved.average.state_dict()))


@pytest.fixture
def log(caplog):
    """LiBai's logger may not hand its lines on to pytest."""
    logger = logging.getLogger("libai.projects.SegFormer.engine.checkpoint")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_checkpoint_without_an_average(tmp_path, log):
    saved = Training(tmp_path, "eager", average=False)
    saved.step(0)
    saved.checkpointer.save("model_0000000", 0)
    loaded = Training(tmp_path, "eager", seed=2)
    loaded.checkpointer.load_training_state(str(tmp_path / "model_0000000"))
    assert_equal(arrays(loaded.average.state_dict()), weights_of(saved.model))
    assert "has no averaged weights: they start from its weights" in log.text


def test_average_that_nobody_asked_for(tmp_path, log):
    saved = Training(tmp_path, "eager")
    saved.step(0)
    saved.checkpointer.save("model_0000000", 0)
    loaded = Training(tmp_path, "eager", seed=2, average=False)
    loaded.checkpointer.load_training_state(str(tmp_path / "model_0000000"))
    assert_equal(weights_of(loaded.model), weights_of(saved.model))
    assert "train.ema.enabled is False: its averaged weights are left out" in log.text


# ---- In a training ------------------------------------------------------------------------------


def run(folder_data: Path, output: Path, *more: str, ranks: int = 1) -> None:
    """Train 8 iterations with an average of few steps, with a checkpoint after each."""
    overrides = (
        "train.ema.enabled=True",
        f"train.ema.decay={DECAY}",
        "train.train_iter=8",
        "train.checkpointer.period=1",
        "train.checkpointer.max_to_keep=99",
        "train.evaluation.eval_period=4",
    )
    arguments = training(folder_data, output, *overrides, *more)
    if ranks > 1:
        code, _, stderr = train_sh(arguments[1], str(ranks), *arguments[2:], timeout=400)
        assert code == 0, stderr
    else:
        process = run_here("tools/train_net.py", *arguments)
        assert process.returncode == 0, process.stderr


def evaluate(folder_data: Path, output: Path, weights: Path) -> float:
    """mIoU of `weights`."""
    load = f"train.load_weight={weights}"
    arguments = training(folder_data, output, "--eval-only", load)
    process = run_here("tools/train_net.py", *arguments)
    assert process.returncode == 0, process.stderr
    return json.loads((output / "evaluation.json").read_text())["mIoU"]


def record(path: Path) -> dict:
    return json.loads((path / "checkpoint.json").read_text())


def assert_averages_follow(output: Path) -> None:
    """Each checkpoint's average is the recursion from that of the checkpoint before."""
    paths = sorted(output.glob("model_0*"), key=lambda path: record(path)["iteration"])
    paths.append(output / "model_final")
    weights = [read_weights(str(path)) for path in paths]
    averages = [read_weights(str(path / "ema")) for path in paths]
    assert len(paths) >= 4
    for before, weight, average in zip(averages, weights[1:], averages[1:]):
        assert average.keys() == weight.keys()
        for key, value in average.items():
            expected = DECAY * before[key].astype(np.float64) + (1 - DECAY) * weight[key]
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6, err_msg=key)
            assert np.abs(value - before[key]).max() > 0, f"{key} does not move"


@pytest.mark.slow
def test_training_averages_steps(folder_data, tmp_path):
    """Two micro-batches a step, which in eager mode are iterations of their own."""
    micro_batches = ("train.num_accumulation_steps=2", "train.train_micro_batch_size=2")
    short = ("train.train_iter=4", "train.evaluation.enabled=False")
    run(folder_data, tmp_path, *micro_batches, *short)
    assert record(tmp_path / "model_final")["iteration"] == 7
    assert_averages_follow(tmp_path)


@pytest.mark.slow
@modes
def test_training_evaluates_the_average(folder_data, tmp_path, mode):
    output = tmp_path / "output"
    run(folder_data, output, f"graph.enabled={mode == 'graph'}", "train.checkpointer.period=8")
    mious = [line["mIoU"] for line in metrics(output) if "mIoU" in line]
    assert len(mious) == 2 and record(output / "model_best")["mIoU"] == max(mious)
    scores = [
        evaluate(folder_data, tmp_path / name, output / "model_final" / name)
        for name in ("ema", "model")
    ]
    assert scores[0] == mious[-1] != scores[1]


@pytest.mark.slow
@modes
def test_resumed_training_has_the_same_average(folder_data, tmp_path, mode):
    whole, part = tmp_path / "whole", tmp_path / "part"
    few = ("train.train_iter=4", "train.evaluation.enabled=False")
    few += (f"graph.enabled={mode == 'graph'}",)
    run(folder_data, whole, *few)
    assert_averages_follow(whole)
    part.mkdir()
    shutil.copytree(whole / "model_0000001", part / "model_0000001")
    run(folder_data, part, *few, "--resume")
    assert_equal(
        read_weights(str(part / "model_final" / "ema")),
        read_weights(str(whole / "model_final" / "ema")),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "split",
    [
        "train.dist.data_parallel_size=2",
        "train.dist.pipeline_parallel_size=2",
        "train.dist.tensor_parallel_size=2 graph.enabled=True",
        "train.zero_optimization.enabled=True train.zero_optimization.stage=3 graph.enabled=True",
    ],
)
def test_averages_of_ranks(folder_data, tmp_path, split):
    few = ("train.train_iter=4", "train.evaluation.enabled=False")
    run(folder_data, tmp_path, *split.split(), *few, ranks=2)
    assert_averages_follow(tmp_path)
