"""Torch files without PyTorch, against it: what torch.save wrote, and what torch.load reads."""

import argparse
import collections
import datetime
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from conftest import run_tool
from projects.SegFormer.model_utils.torch_files import load_torch, save_torch
from projects.SegFormer.model_utils.weight_files import open_weights, read_meta, read_weights
from projects.SegFormer.modeling.errors import InputError

# What torch.save can write, by its arguments.
FORMS = {
    "zip": {},
    "zip, protocol 5": dict(pickle_protocol=5),
    "legacy": dict(_use_new_zipfile_serialization=False),
    "legacy, protocol 4": dict(_use_new_zipfile_serialization=False, pickle_protocol=4),
}
all_forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def tensors() -> dict[str, torch.Tensor]:
    """Of every kind that may be in a state_dict: types, views of one storage, scalars, nothing."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    numbers = torch.randn(3, 5, generator=generator)
    return collections.OrderedDict(
        whole=base,
        transposed=base.t(),
        part=base[1:5, 2:7],
        row=base[3],
        parameter=torch.nn.Parameter(numbers.clone()),
        four=torch.randn(2, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        half=numbers.half(),
        bfloat16=numbers.bfloat16(),
        double=numbers.double(),
        scalar=torch.tensor(2.5),
        empty=torch.empty(0, 4),
        **{"bn.num_batches_tracked": torch.tensor(7)},
    )


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        tensor = tensor.detach()
        is_bfloat16 = tensor.dtype == torch.bfloat16
        values = (tensor.float() if is_bfloat16 else tensor).numpy()
        np.testing.assert_array_equal(found[key], values, err_msg=key)
        assert found[key].shape == values.shape


@all_forms
def test_tensors(tmp_path, form):
    torch.save({"state_dict": tensors()}, tmp_path / "a.pth", **form)
    state = load_torch(str(tmp_path / "a.pth"))["state_dict"]
    assert_equal({key: value.numpy() for key, value in state.items()}, tensors())
    weights = read_weights(str(tmp_path / "a.pth"))
    assert all(value.dtype == np.float32 for value in weights.values() if value.dtype.kind == "f")


@all_forms
def test_what_stands_beside_the_weights(tmp_path, form):
    """A checkpoint with optimizer, settings and paths is read; objects in it are inert."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    parameter.sum().backward()
    optimizer.step()
    meta = {
        "CLASSES": ("wall", "天空"),
        "lr": 1e-3,
        "large": 2**70,
        "args": argparse.Namespace(path=pathlib.Path("/x"), betas=(0.9, 0.999)),
        "when": datetime.datetime(2021, 5, 4),
        "array": np.arange(6.0).reshape(2, 3).T,
        "number": np.float32(0.5),
        "names": {"a", "b"},
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, {"a": [1]}),
        "bytes": b"\x00\xff",
        "complex": 1 + 2j,
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "version": torch.__version__,
        "settings": OmegaConf.create({"lr": 1e-3, "sizes": [1, {"b": None}]}),
        "types": (dict, list, str, int, float, bool),
        "ranges": (range(3), slice(1, 2)),
        "text": np.array(["a", "天"]),
        "random": (np.random.get_state(), torch.get_rng_state()),
    }
    content = {
        "state_dict": {"w": torch.ones(2)},
        "optimizer": optimizer.state_dict(),
        "meta": meta,
    }
    torch.save(content, tmp_path / "a.pth", **form)
    found = load_torch(str(tmp_path / "a.pth"))
    moment = found["optimizer"]["state"][0]["exp_avg"].numpy()
    np.testing.assert_array_equal(moment, optimizer.state_dict()["state"][0]["exp_avg"])
    assert found["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    for name in ("CLASSES", "lr", "large", "names", "bytes", "complex"):
        assert found["meta"][name] == meta[name]
    assert found["meta"]["number"] == 0.5
    np.testing.assert_array_equal(found["meta"]["array"].numpy(), meta["array"])
    assert found["meta"]["counter"] == {"a": 2, "b": 1} and found["meta"]["default"] == {"a": [1]}
    assert list(found["meta"]["text"].numpy()) == ["a", "天"]
    assert found["meta"]["args"].name == "argparse.Namespace"
    assert found["meta"]["args"].state["betas"] == (0.9, 0.999)
    assert read_meta(str(tmp_path / "a.pth"))["CLASSES"] == ("wall", "天空")


def test_pickle_of_arrays(tmp_path):
    """As a model zoo without PyTorch writes them."""
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "a.pth").write_bytes(pickle.dumps(state, protocol))
        found = read_weights(str(tmp_path / "a.pth"))
        for key, values in state.items():
            np.testing.assert_array_equal(found[key], values)


def test_written_for_pytorch(tmp_path):
    rng = np.random.default_rng(0)
    state = {
        "conv": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "turned": rng.normal(size=(3, 5)).astype(np.float32).T,
        "bn.num_batches_tracked": np.array(9),
        "empty": np.zeros((0, 3), np.float32),
    }
    content = {"meta": {"CLASSES": ["墙", "b"]}, "state_dict": state}
    save_torch(str(tmp_path / "a.pth"), content)
    for safe in (False, True):
        found = torch.load(tmp_path / "a.pth", weights_only=safe)
        assert found["meta"] == content["meta"]
        for key, values in state.items():
            np.testing.assert_array_equal(found["state_dict"][key].numpy(), values)
            assert found["state_dict"][key].is_contiguous()
    assert_equal(read_weights(str(tmp_path / "a.pth")), found["state_dict"])


@all_forms
def test_cut_file_is_said_to_be(tmp_path, form):
    torch.save(tensors(), tmp_path / "a.pth", **form)
    data = (tmp_path / "a.pth").read_bytes()
    for length in (3, 20, len(data) // 2, len(data) - 1):
        (tmp_path / "a.pth").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"a\.pth"):
            read_weights(str(tmp_path / "a.pth"))


def test_flipped_bit_in_the_weights_is_told(tmp_path):
    """A zip archive has a checksum of each storage."""
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pth")
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[data.index(np.ones(100, np.float32).tobytes()) + 50] ^= 4
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.pth: Bad CRC-32"):
        read_weights(str(tmp_path / "a.pth"))


def test_missing_storage(tmp_path):
    torch.save({"a": torch.ones(4), "b": torch.zeros(4)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w") as new,
    ):
        for name in old.namelist():
            if not name.endswith("data/1"):
                new.writestr(name, old.read(name))
    with pytest.raises(InputError, match=r"b\.pth"):
        open_weights(str(tmp_path / "b.pth"))


READS_ALL = """
import projects.SegFormer.engine.process
import re, sys
from projects.SegFormer.model_utils.weight_files import open_weights
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
kept = dict(open_weights(sys.argv[1]).read())
print(peak() - before)
"""


@pytest.mark.slow
@all_forms
def test_memory(tmp_path, form):
    """All weights read and kept: 1.2 times their size at most."""
    state = {f"w{index}": torch.ones(1000, 1000) for index in range(40)}  # 160 MB
    torch.save(state, tmp_path / "a.pth", **form)
    process = run_tool("-c", READS_ALL, str(tmp_path / "a.pth"))
    assert process.returncode == 0, process.stderr
    assert 150e3 < int(process.stdout) < 1.2 * 160e3


def test_pytorch_is_not_imported(tmp_path):
    torch.save(tensors(), tmp_path / "a.pth")
    script = READS_ALL + "assert 'torch' not in sys.modules"
    process = run_tool("-c", script, str(tmp_path / "a.pth"))
    assert process.returncode == 0, process.stderr
