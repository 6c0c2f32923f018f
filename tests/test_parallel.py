"""How ranks share a model: the plan before they start, multiply-adds, and what is told of it."""

import copy
import importlib
import json
from collections import defaultdict
from itertools import combinations, product

import libai.engine.default
import numpy as np
import oneflow as flow
import pytest
import torch
import transformers

from conftest import ROOT
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.parallel import balanced_stages, plan_ranks
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.flops import block_flops, decode_head_flops


def model_config(size: str) -> dict:
    return dict(importlib.import_module(f"projects.SegFormer.configs.models.mit_{size}").cfg)


# ---- The batch ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_batch_that_processes_cannot_share_is_told_as_libai_would(monkeypatch):
    """All ranks would fail in LiBai's check: this one is before they start."""
    config = load_config(str(ROOT / "configs/segformer_camvid.py"))
    for batch, micro, steps, ranks in product(
        (None, 1, 4, 6), (None, 1, 2, 3), (None, 1, 2), (1, 2)
    ):
        cfg = copy.deepcopy(config)
        cfg.train.update(
            global_batch_size=batch, train_micro_batch_size=micro, num_accumulation_steps=steps
        )
        monkeypatch.setattr(libai.engine.default.dist, "get_data_parallel_size", lambda: ranks)  # noqa: B023
        try:
            libai.engine.default._check_batch_size(copy.deepcopy(cfg))
        except ValueError:
            with pytest.raises(InputError, match="train.global_batch_size") as caught:
                plan_ranks(cfg, ranks)
            assert f"={batch}" in str(caught.value) or batch is None
        else:
            plan_ranks(cfg, ranks)


@pytest.mark.parametrize(
    ("gpus", "machines", "processes", "is_told"),
    [(2, 1, 2, False), (2, 1, 3, True), (4, 2, 8, False), (4, 2, 10, True), (0, 1, 9, False)],
)
def test_more_processes_than_gpus(monkeypatch, gpus, machines, processes, is_told):
    """As on a machine with GPUs."""
    monkeypatch.setattr(flow.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(flow.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("NODE", str(machines))
    config = load_config(str(ROOT / "configs/segformer_camvid.py"))
    config.train.global_batch_size = processes
    if is_told:
        with pytest.raises(InputError, match=f"processes on a machine with {gpus} GPUs"):
            plan_ranks(config, processes)
    else:
        plan_ranks(config, processes)


# ---- Multiply-adds ------------------------------------------------------------------------------


def counted_in_pytorch(cfg: dict, height: int, width: int, monkeypatch) -> list[int]:
    """Multiply-adds of each block of transformers' encoder, seen in a forward pass."""
    encoder = transformers.SegformerModel(
        transformers.SegformerConfig(
            depths=cfg["depths"],
            hidden_sizes=cfg["hidden_sizes"],
            num_attention_heads=cfg["num_attention_heads"],
            sr_ratios=cfg["sr_ratios"],
        )
    ).encoder.eval()
    counts = defaultdict(int)
    block = 0

    def count(module, inputs, output):
        counts[block] += output.numel() * (module.weight[0].numel())

    def enter(_module, _inputs, number):
        nonlocal block
        block = number

    for module in encoder.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.register_forward_hook(count)
    first = 0
    for embedding, blocks in zip(encoder.patch_embeddings, encoder.block):
        for number, module in enumerate([*blocks], start=first):
            module.register_forward_pre_hook(lambda m, x, number=number: enter(m, x, number))
        embedding.register_forward_pre_hook(lambda m, x, number=first: enter(m, x, number))
        first += len(blocks)
    matmul = torch.matmul

    def counting_matmul(a, b):
        counts[block] += a.numel() * b.shape[-1]
        return matmul(a, b)

    monkeypatch.setattr(torch, "matmul", counting_matmul)
    with torch.no_grad():
        encoder(torch.zeros(1, 3, height, width))
    return [counts[number] for number in range(first)]


@pytest.mark.parametrize(("size", "shape"), [("b0", (96, 160)), ("b0", (75, 65)), ("b2", (64, 64))])
def test_flops_are_those_seen_in_pytorch(size, shape, monkeypatch):
    cfg = model_config(size)
    assert block_flops(*shape, **cfg) == counted_in_pytorch(cfg, *shape, monkeypatch)


def test_flops_of_the_head():
    """Each map times its own matrix to 256 channels, and the classifier at the finest."""
    maps = {32: 128 * 256, 64: 64 * 128, 160: 32 * 64, 256: 16 * 32}
    expected = sum(channels * pixels * 256 for channels, pixels in maps.items())
    expected += 128 * 256 * 256 * 19
    assert decode_head_flops(512, 1024, **model_config("b0") | {"num_classes": 19}) == expected


# ---- Stages -------------------------------------------------------------------------------------


def stage_costs(costs: list, stages: list[int]) -> list:
    return [
        sum(cost for cost, its in zip(costs, stages) if its == stage)
        for stage in range(stages[-1] + 1)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_stages_are_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    costs = rng.integers(1, 100, 10).tolist()
    for count in range(1, 11):
        every_partition = (
            [sum(costs[a:b]) for a, b in zip((0, *cuts), (*cuts, 10))]
            for cuts in combinations(range(1, 10), count - 1)
        )
        found = balanced_stages(costs, count)
        assert found == sorted(found) and set(found) == set(range(count))
        assert max(stage_costs(costs, found)) == min(map(max, every_partition))


@pytest.mark.parametrize("classes", [19, 150])
@pytest.mark.parametrize(
    ("size", "count"), [("b0", 2), ("b0", 4), ("b2", 2), ("b2", 4), ("b4", 2), ("b4", 4), ("b4", 8)]
)
def test_slowest_stage_of_the_paper_s_models(size, count, classes):
    cfg = model_config(size) | {"num_classes": classes}
    costs = block_flops(512, 512, **cfg)
    costs[-1] += decode_head_flops(512, 512, **cfg)
    shares = stage_costs(costs, balanced_stages(costs, count))
    assert len(shares) == count and sum(shares) == sum(costs)
    assert max(shares) <= 1.25 * sum(costs) / count


# ---- The plan -----------------------------------------------------------------------------------


def planned(processes: int, *overrides: str):
    config = load_config(str(ROOT / "configs/segformer_city.py"), list(overrides))
    plan_ranks(config, processes)
    return config.train.dist


def sizes(data=1, tensor=1, pipeline=1) -> tuple[str, str, str]:
    values = {"data": data, "tensor": tensor, "pipeline": pipeline}
    return tuple(f"train.dist.{name}_parallel_size={value}" for name, value in values.items())


def test_data_ranks_are_what_is_left():
    assert planned(8).data_parallel_size == 8
    assert planned(8, *sizes(tensor=2)).data_parallel_size == 4
    assert planned(8, *sizes(data=2, tensor=2, pipeline=2)).data_parallel_size == 2


def test_stages_follow_the_image_size_and_can_be_given():
    """Attention grows with the square of the pixels: early blocks cost more in large images."""
    stages = planned(2, *sizes(pipeline=2)).custom_pipeline_stage_id
    crop = "dataloader.train.dataset.transforms.5.size=[64,64]"
    small = planned(2, *sizes(pipeline=2), crop).custom_pipeline_stage_id
    assert sum(stages) > sum(small)
    given = "train.dist.custom_pipeline_stage_id=[0,1,1,1,1,1,1,1]"
    assert planned(2, *sizes(pipeline=2), given).custom_pipeline_stage_id == [0, *[1] * 7]


@pytest.mark.parametrize(
    ("processes", "overrides", "words"),
    [
        (3, sizes(tensor=2), ["3 processes", "tensor_parallel_size=2", "a multiple of 2"]),
        (2, sizes(tensor=2, pipeline=2), ["2 processes", "a multiple of 4"]),
        (4, sizes(data=3), ["data_parallel_size=3", "3 processes", "4 were asked for"]),
        (1, sizes(data=4), ["data_parallel_size=4", "1 were asked for"]),
        (9, sizes(pipeline=9), ["pipeline_parallel_size=9", "blocks, 8"]),
        (2, sizes(tensor=0), ["tensor_parallel_size=0"]),
        (2, sizes(tensor="two"), ["tensor_parallel_size=two"]),
    ],
)
def test_sizes_that_do_not_fit(processes, overrides, words):
    with pytest.raises(InputError) as error:
        planned(processes, *overrides)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "stages",
    ["[0,1]", "[0,0,0,0,0,0,0,0]", "[1,1,1,1,0,0,0,0]", "[0,0,0,1,1,0,0,1]", "[0,0,0,0,2,2,2,2]"],
)
def test_stages_that_are_none(stages):
    with pytest.raises(InputError, match=r"custom_pipeline_stage_id.*stage of each of the 8"):
        planned(2, *sizes(pipeline=2), f"train.dist.custom_pipeline_stage_id={stages}")


# ---- What each rank holds -----------------------------------------------------------------------

# Builds the model and writes what this rank holds of it, and what is said about that.
HOLD = """
import json, sys
import oneflow as flow
from libai.config import instantiate
from libai.utils import distributed as dist
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.libai_mends import mend_libai
from projects.SegFormer.engine.parallel import plan_ranks, rank_bytes

output, *overrides = sys.argv[1:]
config = load_config("configs/segformer_city.py", overrides)
plan_ranks(config, flow.env.get_world_size())
mend_libai()
dist.setup_dist_util(config.train.dist)
model = instantiate(config.model)
optimizer = flow.optim.AdamW(model.parameters())
rank = flow.env.get_rank()
held = {
    name: parameter.to_local().numel() * 4
    for name, parameter in model.named_parameters()
    if rank in parameter.placement.ranks.flatten()
}
whole = {name: parameter.numel() * 4 for name, parameter in model.named_parameters()}
said = rank_bytes(model, optimizer, rank)
json.dump({"held": held, "whole": whole, "said": said}, open(f"{output}/{rank}.json", "w"))
"""

B2 = (
    "cfg.hidden_sizes=[64,128,320,512]",
    "cfg.depths=[3,4,6,3]",
    "cfg.decoder_hidden_size=768",
)


def what_ranks_hold(run_ranks, tmp_path, processes: int, *overrides: str) -> list[dict]:
    run_ranks(processes, HOLD, tmp_path, *overrides)
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_tensor_ranks_hold_little_more_than_half_of_the_blocks(run_ranks, tmp_path):
    """B2: only q, kv and proj of the stages with 1 and 5 heads, norms and row biases are whole."""
    for found in what_ranks_hold(run_ranks, tmp_path, 2, *B2, *sizes(tensor=2)):
        in_blocks = [name for name in found["held"] if ".blocks." in name]
        held, whole = (sum(found[key][name] for name in in_blocks) for key in ("held", "whole"))
        assert held / whole <= 0.56
        heads = [1, 2, 5, 8]
        for name in in_blocks:
            share = found["held"][name] / found["whole"][name]
            if name.endswith((".q.weight", ".kv.weight", ".attn.proj.weight")):
                assert share == (0.5 if heads[int(name.split(".")[2])] % 2 == 0 else 1), name
            elif "dense" in name or "dwconv" in name or ".sr." in name:
                assert share == (1 if name.endswith("4h_to_h.bias") else 0.5), name


@pytest.mark.slow
def test_said_is_what_is_held(run_ranks, tmp_path):
    found = what_ranks_hold(run_ranks, tmp_path, 4, *sizes(tensor=2, pipeline=2))
    for rank in found:
        held = sum(rank["held"].values())
        assert rank["said"] == {
            "parameters": held,
            "gradients": held,
            "optimizer state": 2 * held,
        }
    # Two stages, and tensor ranks that hold as much as each other.
    assert found[0]["held"] == found[1]["held"] and found[2]["held"] == found[3]["held"]
    assert not set(found[0]["held"]) & set(found[2]["held"])
    assert set(found[0]["held"]) | set(found[2]["held"]) == set(found[0]["whole"])
