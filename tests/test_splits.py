"""Trainings under several splits of the ranks: resumed, killed, on two machines, in less memory."""

import json
import os
import shutil
import signal
import socket
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from conftest import (
    CONFIG,
    TRAIN_ENVIRONMENT,
    losses,
    processes_with,
    train_sh,
    training,
    wait_until,
)
from projects.SegFormer.engine.checkpoint import last_checkpoint

pytestmark = pytest.mark.slow

SPLITS = {
    "data": "train.dist.data_parallel_size=2",
    "tensor": "train.dist.tensor_parallel_size=2",
    "pipeline": "train.dist.pipeline_parallel_size=2",
}
MODES = {"eager": (), "graph": ("graph.enabled=True",)}
STEPS = 8


def run(folder_data: Path, output: Path, processes: int, *more: str) -> list[float]:
    """Train STEPS steps, dropout and drop path on, a checkpoint every second; the losses."""
    schedule = (
        f"train.train_iter={STEPS}",
        "train.checkpointer.period=2",
        "train.checkpointer.max_to_keep=9",
        "train.evaluation.enabled=False",
    )
    arguments = training(folder_data, output, *schedule, *more)[2:]
    code, _, stderr = train_sh(CONFIG, str(processes), *arguments, timeout=400)
    assert code == 0, stderr
    return list(losses(output).values())


@pytest.fixture(scope="module")
def undisturbed(folder_data, tmp_path_factory):
    """Output folder and losses of a training on one process, by the name of its mode."""

    @cache
    def train(mode: str) -> tuple[Path, list[float]]:
        output = tmp_path_factory.mktemp(f"undisturbed_{mode}")
        found = run(folder_data, output, 1, *MODES[mode])
        assert len(found) == STEPS and found[-1] < found[0] - 0.05
        return output, found

    return train


@pytest.mark.parametrize("mode", MODES)
def test_resume_under_other_splits(undisturbed, folder_data, tmp_path, mode):
    """One process, then data 2, tensor 2 and pipeline 2, each from the checkpoint of the last.

    As a graph the data ranks also share optimizer state and gradients (ZeRO).
    """
    before, expected = undisturbed(mode)
    zero = ("train.zero_optimization.enabled=True", "train.zero_optimization.stage=2")
    for done, (name, split) in zip((2, 4, 6), SPLITS.items()):
        output = tmp_path / name
        output.mkdir()
        shutil.copytree(before / f"model_{done - 1:07d}", output / f"model_{done - 1:07d}")
        more = zero if (mode, name) == ("graph", "data") else ()
        found = run(folder_data, output, 2, *MODES[mode], split, *more, "--resume")
        assert len(found) == STEPS - done, "it did not resume where it should"
        np.testing.assert_allclose(found, expected[done:], rtol=1e-4)
        before = output


@pytest.mark.parametrize(
    ("split", "more"),
    [
        pytest.param("data", ("train.activation_checkpoint.enabled=True",), id="checkpointing"),
        pytest.param("pipeline", ("train.num_accumulation_steps=2",), id="micro-batches"),
    ],
)
def test_less_memory_same_losses(undisturbed, folder_data, tmp_path, split, more):
    """As one process: without checkpointing, but with micro-batches, whose batch norms differ."""
    if split == "pipeline":
        expected = run(folder_data, tmp_path / "one", 1, *MODES["graph"], *more)
    else:
        expected = undisturbed("graph")[1]
    found = run(folder_data, tmp_path / "two", 2, *MODES["graph"], SPLITS[split], *more)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


# Trains a graph under data 2 without ZeRO and with its three stages; of the optimizer's state, what
# this rank holds and what is said of it.
ZERO = """
import json, sys
import numpy as np
import oneflow as flow
from libai.config import instantiate
from libai.models import build_graph
from libai.optim import build_optimizer
from libai.scheduler import build_lr_scheduler
from libai.utils import distributed as dist
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.engine.parallel import plan_ranks, rank_bytes
from projects.SegFormer.model_utils.model_weights import whole

output = sys.argv[1]
mend_libai()
found = {}
for stage in (0, 1, 2, 3):
    config = load_config("configs/segformer_city.py", [
        "cfg.hidden_sizes=[32,64,96,128]", "cfg.num_attention_heads=[1,2,3,4]",
        "cfg.depths=[1,1,1,1]", "cfg.decoder_hidden_size=32", "optim.params.lr=1e-3",
        f"train.zero_optimization.enabled={stage > 0}", f"train.zero_optimization.stage={stage}",
    ])
    config.train.num_accumulation_steps = 1
    config.train.scheduler.update(max_iter=9, warmup_iter=1)
    plan_ranks(config, 2)
    dist.setup_dist_util(config.train.dist)
    flow.manual_seed(0)
    model = instantiate(config.model).train()
    optimizer = build_optimizer(config.optim, model)
    scheduler = build_lr_scheduler(config.train.scheduler, optimizer)
    said = rank_bytes(model, optimizer, flow.env.get_rank(), stage)["optimizer state"]
    graph = build_graph(config, model, optimizer, scheduler, is_train=True)
    rng = np.random.default_rng(flow.env.get_rank())
    losses = []
    for _ in range(4):
        images = flow.tensor(rng.standard_normal((2, 3, 64, 64)).astype(np.float32))
        labels = flow.tensor(rng.integers(0, 19, (2, 64, 64)))
        noise = flow.tensor(rng.random((2, model.noise_size)).astype(np.float32))
        batch = [value.to_global(placement=dist.get_layer_placement(0), sbp=flow.sbp.split(0))
                 for value in (images, labels, noise)]
        batch = dict(zip(("images", "labels", "noise"), batch))
        losses.append(float(whole(graph(**batch)["losses"]).numpy()))
    moments = [value for key, value in graph.state_dict().items() if key.endswith(("-m", "-v"))]
    found[stage] = dict(
        losses=losses,
        moments=sum(value.to_local().numel() * 4 for value in moments),
        said=said,
    )
json.dump(found, open(f"{output}/{flow.env.get_rank()}.json", "w"))
"""


def test_zero_shares_the_optimizer_state(run_ranks, tmp_path):
    run_ranks(2, ZERO, tmp_path, timeout=500)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        plain = found.pop("0")
        assert plain["losses"][-1] != plain["losses"][0] and plain["moments"] == plain["said"]
        for stage in found.values():
            np.testing.assert_allclose(stage["losses"], plain["losses"], rtol=1e-5)
            assert stage["moments"] == stage["said"]
            assert 0.5 < stage["moments"] / plain["moments"] < 0.55  # small tensors stay whole


# ---- A rank dies --------------------------------------------------------------------------------


def rank_of(process: int) -> str | None:
    try:
        words = Path(f"/proc/{process}/environ").read_text().split("\0")
        is_launcher = "tools/launch.py" in Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return None
    return None if is_launcher else dict(word.partition("=")[::2] for word in words).get("RANK")


def kill_rank(output: Path, rank: int) -> None:
    for process in processes_with(str(output)):
        if rank_of(process) == str(rank):
            os.kill(process, signal.SIGKILL)


# What a training that is not to be killed can do without.
TO_THE_END = ("train.checkpointer.period=24", "train.evaluation.enabled=False")


def start_training(start, folder_data: Path, output: Path, processes: int, *more: str, **node):
    """24 steps, those of the fixture `trained`, data parallel, a checkpoint every second."""
    more = ("train.checkpointer.period=2", SPLITS["data"], *more)
    command = ("bash", "tools/train.sh", CONFIG, str(processes))
    return start(
        *(*command, *training(folder_data, output, *more)[2:]), env=TRAIN_ENVIRONMENT | node
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_ends_the_training_which_resumes(folder_data, trained, tmp_path, start, rank):
    process = start_training(start, folder_data, tmp_path, 2)
    wait_until(lambda: process.poll() is not None or last_checkpoint(str(tmp_path)))
    kill_rank(tmp_path, rank)
    killed = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert f"rank {rank} ended by SIGKILL" in stderr
    wait_until(lambda: not processes_with(str(tmp_path)), timeout=10)

    done = last_checkpoint(str(tmp_path))[1] + 1
    assert 0 < done < 24
    process = start_training(start, folder_data, tmp_path, 2, *TO_THE_END, "--resume")
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert f"Training from iteration {done} to 24" in stdout
    found, expected = losses(tmp_path), losses(trained)
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)


# ---- Two machines -------------------------------------------------------------------------------


def start_two_machines(start, folder_data: Path, output: Path, *more: str) -> list:
    """Two launches of one rank each, on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        address = dict(NODE="2", ADDR="127.0.0.1", PORT=str(probe.getsockname()[1]))
    address["SEGFORMER_TOKEN"] = "2f0a7c5e"
    return [
        start_training(start, folder_data, output, 1, *more, **address, NODE_RANK=node)
        for node in ("0", "1")
    ]


def test_two_machines_train_as_one_process(folder_data, trained, tmp_path, start):
    for process in start_two_machines(start, folder_data, tmp_path, *TO_THE_END):
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    found, expected = losses(tmp_path), losses(trained)
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)


def test_killed_rank_ends_both_machines(folder_data, tmp_path, start):
    processes = start_two_machines(start, folder_data, tmp_path, "train.train_iter=10000")
    wait_until(lambda: any(p.poll() is not None for p in processes) or len(losses(tmp_path)) > 2)
    kill_rank(tmp_path, 1)
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode != 0 and "rank 1 ended by SIGKILL" in stderr
    wait_until(lambda: not processes_with(str(tmp_path)), timeout=10)
