"""Does a split of the ranks change what is learnt? Every mode on processes of this machine.

    python tools/check_parallel.py [--short] [--json FILE]

Each split trains B0 for segmentation and for classification, eager and as a graph, five steps from
the same weights on the same batches without dropout, and is held against one process. It ends with
1 if a loss, relatively, or a weight after the last step is further off than 1e-4. With --short only
the splits over two processes, of a model with one block a stage.
"""

import projects.SegFormer.engine.process  # noqa: F401

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import oneflow as flow
from libai.config import instantiate
from libai.models import build_graph
from libai.optim import build_optimizer
from libai.scheduler import build_lr_scheduler
from libai.utils import distributed as dist
from omegaconf import OmegaConf

from projects.SegFormer.configs.models.classification.mit_cls_b0 import model as classification
from projects.SegFormer.engine import command_line
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.engine.parallel import plan_ranks
from projects.SegFormer.model_utils.model_weights import state_of, whole
from projects.SegFormer.modeling.layers import batch_sbp
from projects.SegFormer.modeling.segformer_model import assign

# Sizes of data, tensor and pipeline parallelism.
SPLITS = (
    *((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)),
    *((2, 2, 1), (2, 1, 2), (1, 2, 2), (2, 2, 2)),
)
RUNS = [(task, mode) for task in ("segmentation", "classification") for mode in ("eager", "graph")]
STEPS, BATCH, SIDE, CLASSES = 5, 4, 64, 19
TOLERANCE = 1e-4
CONFIG = os.path.join(os.path.dirname(__file__), "..", "configs", "segformer_city.py")


def main(arguments: list[str]) -> int:
    """The exit code: 1 if a split changes something, else 0."""
    args = _parser().parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for split in SPLITS:
            if not args.short or np.prod(split) <= 2:
                run_ranks(split, folder, blocks=1 if args.short else 2)
                rows += [row(folder, run, split) for run in RUNS]
                print(
                    format_rows(rows[-len(RUNS) :], with_heads=len(rows) == len(RUNS)), flush=True
                )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)
    off = np.max([(row["losses_off"], row["weights_off"]) for row in rows])
    return 0 if off <= TOLERANCE else 1


def run_ranks(split: tuple, folder: str, blocks: int) -> None:
    """Train a model of so many blocks a stage under `split`, each rank a process; results go to
    `folder`.
    """
    count = int(np.prod(split))
    worker = [
        sys.executable,
        os.path.abspath(__file__),
        "--worker",
        folder,
        *map(str, (blocks, *split)),
    ]
    launch = [sys.executable, os.path.join(os.path.dirname(__file__), "launch.py")]
    launch += ["--ranks", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*(launch if count > 1 else []), *worker], env=environment, check=True)


def row(folder: str, run: tuple, split: tuple) -> dict:
    """What the ranks of `split` found in `run`, and how far it is off one rank's."""
    found, one = (_read(folder, run, which) for which in (split, SPLITS[0]))
    losses, expected = np.array(found["losses"]), np.array(one["losses"])
    state, reference = (np.load(_path(folder, run, which, "npz")) for which in (split, SPLITS[0]))
    # NumPy's maximum: that of Python passes NaN over.
    weights_off = np.max([np.abs(state[name] - reference[name]).max() for name in reference])
    return dict(
        task=run[0],
        mode=run[1],
        split=split,
        losses=found["losses"],
        losses_off=float(np.abs(losses / expected - 1).max()),
        weights_off=float(weights_off),
        bytes=found["bytes"],
        seconds=found["seconds"],
    )


def format_rows(rows: list[dict], with_heads: bool) -> str:
    heads = ("task", "mode", "ranks", "data x tensor x pipeline", "losses", "off", "weights off")
    heads += ("MB/rank",)
    widths = (15, 6, 6, 25, 36, 7, 12, 8)
    lines = []
    if with_heads:
        lines.append("".join(f"{head:<{w}}" for head, w in zip(heads, widths)) + "s/step")
    for found in rows:
        cells = (
            found["task"],
            found["mode"],
            str(np.prod(found["split"])),
            " x ".join(map(str, found["split"])),
            " ".join(f"{loss:.4f}" for loss in found["losses"]),
            f"{found['losses_off']:.0e}",
            f"{found['weights_off']:.0e}",
            f"{found['bytes'] / 1e6:.1f}",
        )
        line = "".join(f"{cell:<{w}}" for cell, w in zip(cells, widths))
        lines.append(line + f"{found['seconds']:.2f}")
    return "\n".join(lines)


# ---- One rank -----------------------------------------------------------------------------------


def work(folder: str, blocks: int, *split: int) -> None:
    """Train all of RUNS as one rank of `split`; the first rank writes what was found."""
    mend_libai()
    config = load_config(
        CONFIG,
        [
            *(f"cfg.{name}=0.0" for name in ("drop_path_rate", "decoder_dropout")),
            f"cfg.num_classes={CLASSES}",
            f"cfg.depths={[blocks] * 4}",
            # AdamW divides a gradient by its size plus eps. With the recipe's eps it would make
            # whole steps of rounding, and a gradient that is counted twice would change nothing.
            "optim.eps=1e-3",
            "optim.params.lr=1e-3",
            "optim.params.head_lr_multiplier=1.0",
        ],
    )
    names = ("data_parallel_size", "tensor_parallel_size", "pipeline_parallel_size")
    config.train.dist.update(zip(names, split))
    plan_ranks(config, int(np.prod(split)))
    config.train.num_accumulation_steps = 1
    config.train.scheduler.update(max_iter=4 * STEPS, warmup_iter=1)
    dist.setup_dist_util(config.train.dist)
    for run in RUNS:
        found, state = train(config, *run)
        if flow.env.get_rank() == 0:
            np.savez(_path(folder, run, split, "npz"), **state)
            with open(_path(folder, run, split, "json"), "w") as file:
                json.dump(found, file)


def train(config, task: str, mode: str) -> tuple[dict, dict]:
    """STEPS steps: losses, bytes of parameters on the fullest rank, seconds a step; the weights."""
    flow.manual_seed(0)
    lazy = config.model
    if task == "classification":
        lazy = OmegaConf.create(classification, flags={"allow_objects": True})
        lazy.cfg.update(
            num_classes=CLASSES, drop_path_rate=0.0, depths=list(config.model.cfg.depths)
        )
    model = instantiate(lazy).train()
    if task == "segmentation":
        # On which side the head's ReLU sees a value near 0 is up to rounding, and one that changes
        # sides changes weights by more than TOLERANCE. With the mean three deviations above 0 there
        # are a hundredth as many.
        bias = model.head.batch_norm.bias
        assign(bias, np.full(tuple(bias.shape), 3.0))
    optimizer = build_optimizer(config.optim, model)
    scheduler = build_lr_scheduler(config.train.scheduler, optimizer)
    if mode == "graph":
        graph = build_graph(config, model, optimizer, scheduler, is_train=True)
    losses, seconds = [], []
    for images, labels in batches(task):
        start = time.perf_counter()
        batch = dict(images=_on(images, 0), labels=_on(labels, -1))
        if mode == "graph":
            loss = graph(**batch)["losses"]
        else:
            loss = model(**batch)["losses"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        losses.append(float(whole(loss).numpy()))
        seconds.append(time.perf_counter() - start)
    found = dict(losses=losses, bytes=_bytes(model), seconds=statistics.median(seconds[1:]))
    return found, state_of(model)


def batches(task: str):
    """Images of noise; labels of squares, some of them ignored, or one an image."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        images = rng.standard_normal((BATCH, 3, SIDE, SIDE)).astype(np.float32)
        if task == "classification":
            labels = rng.integers(0, CLASSES, BATCH)
        else:
            labels = rng.integers(0, CLASSES, (BATCH, 8, 8)).repeat(8, axis=1).repeat(8, axis=2)
            labels[:, :9] = 255
            labels[: BATCH // 2] = 255  # of two data ranks one has nothing to count
        yield images, labels


def _on(values: np.ndarray, layer: int) -> flow.Tensor:
    """The same batch on all ranks, as the one that they share at `layer`."""
    everywhere = flow.env.all_device_placement(dist.get_layer_placement(layer).type)
    tensor = flow.tensor(values).to_global(placement=everywhere, sbp=flow.sbp.broadcast)
    return tensor.to_global(placement=dist.get_layer_placement(layer), sbp=batch_sbp())


def _bytes(model) -> int:
    """Of the parameters on the rank that has most."""
    rank = flow.env.get_rank()
    mine = sum(
        parameter.to_local().numel() * 4
        for parameter in model.parameters()
        if rank in parameter.placement.ranks.flatten()
    )
    everywhere = flow.env.all_device_placement("cpu")
    gathered = flow.tensor([mine]).to_global(placement=everywhere, sbp=flow.sbp.split(0))
    return int(gathered.numpy().max())


def _path(folder: str, run: tuple, split: tuple, suffix: str) -> str:
    return os.path.join(folder, "_".join(map(str, (*run, *split))) + f".{suffix}")


def _read(folder: str, run: tuple, split: tuple) -> dict:
    with open(_path(folder, run, split, "json")) as file:
        return json.load(file)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--short", action="store_true", help="at most two processes, and few blocks"
    )
    parser.add_argument("--json", help="also write the table to this file")
    return parser


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        command_line.run(main)
