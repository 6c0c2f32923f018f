"""LiBai's own scripts and Checkpointer on this project's configs, under the LiBai that is installed
and, where LIBAI_CHECKOUT names one, under a checkout of its repository.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oneflow import nn

from conftest import CONFIG, ROOT, losses, run_here, tiny_run
from projects.SegFormer.engine.graph import SegformerGraph
from projects.SegFormer.model_utils.weight_files import read_weights
from projects.SegFormer.modeling.errors import InputError

pytestmark = pytest.mark.slow

CHECKOUT = os.environ.get("LIBAI_CHECKOUT")
PROJECT = Path("projects/SegFormer")

# What LiBai's tools/train_net.py does, which is not in the package index's LiBai.
TRAIN_NET = """
import oneflow as flow
from libai.config import LazyConfig, default_argument_parser
from libai.engine import DefaultTrainer, default_setup
from libai.utils.checkpoint import Checkpointer

args = default_argument_parser().parse_args()
cfg = LazyConfig.load(args.config_file)
cfg = LazyConfig.apply_overrides(cfg, args.opts)
default_setup(cfg, args)
flow.manual_seed(cfg.train.seed + flow.env.get_rank())
if args.eval_only:
    model = DefaultTrainer.build_model(cfg)
    Checkpointer(model, save_dir=cfg.train.output_dir).resume_or_load(
        cfg.train.load_weight, resume=args.resume
    )
    if cfg.graph.enabled:
        model = DefaultTrainer.build_graph(cfg, model, is_train=False)
    DefaultTrainer.test(cfg, DefaultTrainer.build_test_loader(cfg), model)
else:
    DefaultTrainer(cfg).train()
"""


def folder_like_libais(root: Path) -> Path:
    """With this project in projects/."""
    (root / "projects").mkdir()
    (root / PROJECT).symlink_to(ROOT)
    return root


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A root with LiBai's script, but not LiBai."""
    root = folder_like_libais(tmp_path_factory.mktemp("installed"))
    (root / "tools").mkdir()
    (root / "tools" / "train_net.py").write_text(TRAIN_NET)
    return root


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    if not CHECKOUT:
        pytest.skip("LIBAI_CHECKOUT=PATH runs this under a checkout of LiBai's repository")
    root = folder_like_libais(tmp_path_factory.mktemp("checkout"))
    for name in ("libai", "tools", "configs"):
        (root / name).symlink_to(Path(CHECKOUT, name).resolve(strict=True))
    return root


@pytest.fixture(params=["installed", "checkout"])
def libai_root(request) -> Path:
    return request.getfixturevalue(request.param)


def run(root: Path, *command: str) -> subprocess.CompletedProcess:
    """Run Python, or bash, in LiBai's root; it ends with exit status 0."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(root), "PORT": port}
    process = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process


def overrides(folder_data: Path, output: Path, *more: str) -> list[str]:
    steps = ("train.train_iter=6", "train.checkpointer.period=3", "train.evaluation.eval_period=6")
    return tiny_run(folder_data, output, *steps, *more)


def libais(root: Path, ranks: int, *arguments: str) -> subprocess.CompletedProcess:
    """LiBai's script, as its tools/train.sh starts it."""
    launch = ("-m", "oneflow.distributed.launch", "--nproc_per_node", str(ranks))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        launch += ("--master_port", str(found.getsockname()[1]))
    script = ("tools/train_net.py", "--config-file", str(PROJECT / CONFIG))
    return run(root, sys.executable, *launch, *script, *arguments)


def projects(root: Path, ranks: int, *arguments: str) -> subprocess.CompletedProcess:
    script = str(PROJECT / "tools" / "train.sh")
    return run(root, "bash", script, str(PROJECT / CONFIG), str(ranks), *arguments)


@pytest.fixture(scope="module")
def expected(folder_data, tmp_path_factory) -> Path:
    """The output of the project's script on one rank, under the installed LiBai."""
    output = tmp_path_factory.mktemp("expected")
    script = ("tools/train_net.py", "--config-file", CONFIG)
    process = run_here(*script, *overrides(folder_data, output))
    assert process.returncode == 0, process.stderr
    return output


SPLITS = {
    "one rank": (1, ()),
    "graph": (1, ("graph.enabled=True",)),
    "data": (2, ()),
    "tensor": (2, ("train.dist.tensor_parallel_size=2",)),
    "ZeRO": (2, ("train.zero_optimization.enabled=True", "graph.enabled=True")),
    "pipeline": (2, ("train.dist.pipeline_parallel_size=2", "graph.enabled=True")),
}


def mean_iou(output: Path) -> float:
    return json.loads((output / "evaluation.json").read_text())["mIoU"]


def check_losses(output: Path, expected: Path, steps: range = range(1, 7)) -> None:
    found, wanted = losses(output), losses(expected)
    assert sorted(found) == [*steps]
    np.testing.assert_allclose([*found.values()], [wanted[step] for step in found], rtol=2e-6)
    assert mean_iou(output) == pytest.approx(mean_iou(expected), abs=0.1)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("script", [libais, projects])
def test_losses_under_a_checkout(checkout, folder_data, expected, tmp_path, script, split):
    ranks, more = SPLITS[split]
    script(checkout, ranks, *overrides(folder_data, tmp_path, *more))
    check_losses(tmp_path, expected)


def test_losses_by_libais_script(installed, folder_data, expected, tmp_path):
    """On two ranks, which it gives other seeds."""
    ranks, more = SPLITS["ZeRO"]
    libais(installed, ranks, *overrides(folder_data, tmp_path, *more))
    check_losses(tmp_path, expected)


def half_of(training: Path, output: Path) -> None:
    """The same as if it had ended after three steps."""
    ended = shutil.ignore_patterns("model_best", "model_final", "model_0000005", "evaluation.json")
    shutil.copytree(training, output, ignore=ended)
    (output / "last_checkpoint").write_text("model_0000002\n")


def test_resume_and_evaluation_by_libais_script(libai_root, folder_data, expected, tmp_path):
    output = tmp_path / "output"
    arguments = overrides(folder_data, output)
    half_of(expected, output)
    process = libais(libai_root, 1, "--resume", *arguments)
    assert f"Resuming from {output}/model_0000002" in process.stdout
    check_losses(output, expected)
    (output / "evaluation.json").unlink()
    more = (f"train.load_weight={output}/model_final", "graph.enabled=True")
    libais(libai_root, 1, "--eval-only", *arguments, *more)
    assert mean_iou(output) == pytest.approx(mean_iou(expected), abs=1e-6)


LIBAIS_CHECKPOINTER = """
import sys

import numpy as np
from libai.config import LazyConfig, instantiate
from libai.utils import distributed as dist
from libai.utils.checkpoint import Checkpointer

config, ours, theirs, *overrides = sys.argv[1:]
cfg = LazyConfig.load(config)
cfg = LazyConfig.apply_overrides(cfg, overrides)
dist.setup_dist_util(cfg.train.dist)
model = instantiate(cfg.model)
cfg.optim.params.model = model
optimizer = instantiate(cfg.optim)
cfg.train.scheduler.update(optimizer=optimizer, max_iter=6, warmup_iter=1)
parts = dict(optimizer=optimizer, lr_scheduler=instantiate(cfg.train.scheduler))
assert Checkpointer(model, ours, **parts).resume_or_load("", resume=True)["iter"] == 2
assert parts["lr_scheduler"].last_step == 3
Checkpointer(model, theirs, **parts).save("model_0000002", iteration=2)
"""


def test_checkpoints_to_and_from_libais_checkpointer(libai_root, folder_data, expected, tmp_path):
    """Half a training by the project, loaded and saved by LiBai, and gone on with by the project.

    The losses are those of one training: weights, moments and the schedule's step came across.
    """
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    half_of(expected, ours)
    config = str(PROJECT / CONFIG)
    code = ("-c", LIBAIS_CHECKPOINTER, config, str(ours), str(theirs))
    run(libai_root, sys.executable, *code, *overrides(folder_data, theirs))
    assert not (theirs / "model_0000002" / "checkpoint.json").exists()
    for name, value in read_weights(str(ours / "model_0000002")).items():
        np.testing.assert_array_equal(value, read_weights(str(theirs / "model_0000002"))[name])
    script = ("tools/train_net.py", "--config-file", CONFIG)
    process = run_here(*script, "--resume", *overrides(folder_data, theirs))
    assert process.returncode == 0, process.stderr
    check_losses(theirs, expected, range(4, 7))


def test_settings_reach_the_model_by_libais_script(libai_root, folder_data, tmp_path):
    """Under the names of the project's script; one that is not there is told."""
    arguments = overrides(folder_data, tmp_path, "cfg.decoder_hidden_size=24", "train.train_iter=1")
    libais(libai_root, 1, *arguments)
    weights = read_weights(str(tmp_path / "model_final"))
    assert weights["head.linear_pred.weight"].shape[1] == 24
    with pytest.raises(AssertionError, match="did you mean num_classes"):
        libais(libai_root, 1, *arguments, "cfg.num_clases=2")


@pytest.mark.parametrize(
    ("argument", "key"), [("auto_parallel_conf", "auto_parallel"), ("global_mode", "global_mode")]
)
def test_what_would_split_the_model_anew_is_refused(argument, key):
    with pytest.raises(InputError, match=f"graph.{key}.enabled=True"):
        SegformerGraph(nn.Linear(1, 1), is_train=False, **{argument: {"enabled": True}})
