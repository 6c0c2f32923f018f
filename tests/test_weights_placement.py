"""Weights onto any placement: each rank its shard, read once, in little memory."""

import json

import numpy as np
import pytest
import transformers

from conftest import run_tool
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.segf_loader import SegFLoaderHuggerFace, SegFLoaderLiBai
from projects.SegFormer.model_utils.test_segloader import random_model
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation

TINY = dict(
    depths=[1, 2, 1, 2],
    hidden_sizes=[8, 16, 20, 16],
    mlp_ratios=[2, 4, 4, 4],
    decoder_hidden_size=12,
    num_labels=5,
)
SETTINGS = {"num_classes": 5, **{key: value for key, value in TINY.items() if key != "num_labels"}}

# Loads the folder under a split of the ranks. Every rank writes the shapes of its shards and which
# weight files it opened, rank 0 also all weights.
LOAD = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import numpy as np
import oneflow as flow
from libai.utils import distributed as dist
from libai.utils.checkpoint import Checkpointer
from omegaconf import OmegaConf
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.segf_loader import SegFLoaderHuggerFace
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation

folder, output, data, tensor, pipeline = sys.argv[1:]
dist.setup_dist_util(OmegaConf.create(dict(
    data_parallel_size=int(data),
    tensor_parallel_size=int(tensor),
    pipeline_parallel_size=int(pipeline),
    pipeline_num_layers=6,
)))
try:
    model = SegFLoaderHuggerFace(SegformerForSemanticSegmentation, {}, folder).load()
except InputError as error:
    result = {"error": str(error)}
else:
    rank = flow.env.get_rank()
    mine = {n: p for n, p in model.named_parameters() if rank in p.placement.ranks.flatten()}
    result = {
        "shards": {name: list(value.to_local().shape) for name, value in mine.items()},
        "opened": [file for file in opened if file.endswith(".safetensors")],
    }
    state = state_of(model)
    np.savez(f"{output}/state{rank}.npz", **state)
    Checkpointer(model, output).save("saved")  # LiBai's own, of tensors as they are split
json.dump(result, open(f"{output}/rank{flow.env.get_rank()}.json", "w"))
"""


@pytest.fixture
def folder(tmp_path):
    random_model("SegformerForSemanticSegmentation", **TINY).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def results(path, count=2) -> list[dict]:
    return [json.loads((path / f"rank{rank}.json").read_text()) for rank in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "split",
    [
        pytest.param((2, 1, 1), id="data", marks=pytest.mark.slow),
        pytest.param((1, 2, 1), id="tensor"),
        pytest.param((1, 1, 2), id="pipeline", marks=pytest.mark.slow),
    ],
)
def test_every_rank_takes_its_shard_of_a_file_that_one_reads(split, folder, tmp_path, run_ranks):
    run_ranks(2, LOAD, folder, tmp_path, *split)
    model = SegFLoaderHuggerFace(SegformerForSemanticSegmentation, {}, str(folder)).load()
    expected = state_of(model)
    for rank in range(2):
        with np.load(tmp_path / f"state{rank}.npz") as state:
            assert state.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_array_equal(state[name], value, err_msg=name)

    saved = str(tmp_path / "saved")
    loaded = SegFLoaderLiBai(SegformerForSemanticSegmentation, SETTINGS, saved).load()
    for name, value in state_of(loaded).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)

    first, second = results(tmp_path)
    assert first["opened"] and not second["opened"]
    whole = {name: list(value.shape) for name, value in model.named_parameters()}
    if split == (2, 1, 1):
        assert first["shards"] == second["shards"] == whole
    elif split == (1, 2, 1):
        name = "segformer.blocks.1.0.mlp.dense_h_to_4h.weight"
        assert whole[name] == [16, 64]
        assert first["shards"][name] == second["shards"][name] == [16, 32]
    else:
        assert not first["shards"].keys() & second["shards"].keys()
        assert {**first["shards"], **second["shards"]} == whole
        assert "head.linear_pred.weight" in second["shards"]


def test_error_on_the_rank_that_reads_ends_all(folder, tmp_path, run_ranks):
    (folder / "model.safetensors").write_bytes(b"no weights")
    run_ranks(2, LOAD, folder, tmp_path, 2, 1, 1)
    first, second = results(tmp_path)
    assert first == second and "model.safetensors" in first["error"]


# ---- Memory -----------------------------------------------------------------------------------

# Prints the peak of memory while the folder is loaded over the memory before, in bytes.
PEAK = """
import re, sys
import oneflow as flow
from projects.SegFormer.model_utils.segf_loader import SegFLoaderHuggerFace
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation

def kilobytes(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\\s+(\\d+)", status.read())[1])

flow.zeros(1).numpy()
idle = kilobytes("VmRSS")
model = SegFLoaderHuggerFace(SegformerForSemanticSegmentation, {}, sys.argv[1]).load()
size = sum(parameter.numel() for parameter in model.parameters()) * 4
print((kilobytes("VmHWM") - idle) * 1024, size)
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_safe", [True, False], ids=["safetensors", "bin"])
def test_b5_is_loaded_in_little_memory(is_safe, tmp_path):
    with transformers.modeling_utils.no_init_weights():
        config = transformers.SegformerConfig(
            depths=[3, 6, 40, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768
        )
        model = transformers.SegformerForSemanticSegmentation(config)
    model.save_pretrained(tmp_path, safe_serialization=is_safe)
    process = run_tool("-c", PEAK, str(tmp_path))
    assert process.returncode == 0, process.stderr
    peak, size = map(int, process.stdout.split())
    assert size > 84e6 * 4
    assert 0.9 * size < peak < 1.25 * size
