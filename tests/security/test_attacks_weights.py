"""TorchScript, links, settings and headers that would run code, lead elsewhere or fill memory."""

import io
import json
import os
import resource
import shutil
import struct
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from contained import MEMORY, contained
from hostile_files import (
    finished,
    mapping,
    storage,
    tensor,
    variable,
    write_json,
    write_libai,
    write_safetensors,
    write_variable,
    write_zip,
)
from projects.SegFormer.model_utils.load_pretrained_imagenet1k import SegFLoaderImageNet1kPretrain
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.segf_loader import (
    SegFLoaderHuggerFace,
    SegFLoaderLiBai,
    SegFLoaderOfficial,
    fill_model,
    load_weights,
    open_in_any_format,
)
from projects.SegFormer.model_utils.weight_writers import (
    write_huggingface,
    write_official,
)
from projects.SegFormer.model_utils.weight_writers import write_libai as write_checkpoint
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation
from projects.SegFormer.tools import convert_weights

TINY = dict(
    depths=[1, 1, 1, 1],
    hidden_sizes=[8, 16, 24, 32],
    num_attention_heads=[1, 2, 4, 8],
    sr_ratios=[8, 4, 2, 1],
    mlp_ratios=[1, 1, 1, 1],
    patch_sizes=[7, 3, 3, 3],
    strides=[4, 2, 2, 2],
    decoder_hidden_size=8,
    num_classes=3,
)
EPS = dict(layer_norm_eps=1e-5, embed_norm_eps=1e-5)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """A tiny model as `huggingface`, `libai` and `official.pth`."""
    folder = tmp_path_factory.mktemp("originals")
    state = state_of(SegformerForSemanticSegmentation(**TINY))
    write_huggingface(str(folder / "huggingface"), state, TINY, list("abc"), {})
    write_checkpoint(str(folder / "libai"), state, TINY | EPS, list("abc"), {})
    write_official(str(folder / "official.pth"), state, list("abc"))
    return folder


def copied(originals: Path, tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(originals / name, tmp_path / name))


def refused(work, named: Path) -> str:
    with pytest.raises(InputError) as caught:
        work()
    message = str(caught.value)
    assert str(named) in message and len(message.splitlines()) == 1, message
    return message


def read(path: Path) -> dict:
    return dict(open_in_any_format(str(path))[0].read())


# ---- TorchScript ------------------------------------------------------------------------------


class Writes(torch.nn.Module):
    """A program whose __setstate__ makes a file of 64 bytes."""

    def __init__(self, marker: str):
        super().__init__()
        self.marker, self.size = marker, 0

    @torch.jit.export
    def __getstate__(self):
        return self.marker, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.marker = state[0]
        self.training = state[1]
        self.size = int(torch.from_file(state[0], True, 64, dtype=torch.uint8).sum())

    def forward(self, x):
        return x


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> tuple[Path, Path]:
    """A TorchScript archive, and the file that it makes as soon as PyTorch reads it."""
    folder = tmp_path_factory.mktemp("script")
    torch.jit.save(torch.jit.script(Writes(str(folder / "marker"))), folder / "script.pth")
    return folder / "script.pth", folder / "marker"


def loaders(path: Path, model) -> dict:
    kinds = (
        SegFLoaderHuggerFace,
        SegFLoaderLiBai,
        SegFLoaderOfficial,
        SegFLoaderImageNet1kPretrain,
    )
    cls = SegformerForSemanticSegmentation
    found = {kind.__name__: lambda kind=kind: kind(cls, TINY, str(path)).load() for kind in kinds}
    encoder = SegFLoaderImageNet1kPretrain(cls, TINY, str(path))
    return found | {
        "load_encoder": lambda: encoder.load_encoder(model),
        "fill_model": lambda: fill_model(model, str(path)),
        "load_weights": lambda: load_weights(TINY, str(path)),
        "convert_weights": lambda: convert_weights.main(
            ["--from", str(path), "--to", "libai", "--output", str(path) + ".out"]
        ),
    }


def test_torchscript_is_refused_by_every_loader(originals, script, tmp_path):
    archive, marker = script
    torch.load(archive, weights_only=True)
    assert marker.exists()  # the attack works
    marker.unlink()

    model = SegformerForSemanticSegmentation(**TINY)
    folder = copied(originals, tmp_path, "huggingface")
    (folder / "model.safetensors").unlink()
    shutil.copy(archive, folder / "pytorch_model.bin")
    (tmp_path / "alone").mkdir()
    shutil.copy(archive, tmp_path / "alone" / "mit_b0.pth")
    sharded = copied(originals, tmp_path / "sharded", "huggingface")
    (sharded / "model.safetensors").unlink()
    shutil.copy(archive, sharded / "part.bin")
    write_json(sharded / "pytorch_model.bin.index.json", {"weight_map": {"a": "part.bin"}})
    safe = copied(originals, tmp_path / "safe", "huggingface")
    shutil.copy(archive, safe / "model.safetensors")
    for place in (folder, tmp_path / "alone", tmp_path / "alone" / "mit_b0.pth", sharded, safe):
        for work in loaders(place, model).values():
            refused(work, place)
    assert not marker.exists()


def test_torchscript_under_other_names(script, tmp_path):
    """constants.pkl is what torch.load goes by, wherever in the archive it is."""
    archive, marker = script
    with zipfile.ZipFile(archive) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    for number, rename in enumerate(
        (
            lambda name: name.replace("script/", ""),
            lambda name: name.replace("script/", "a/b/"),
            lambda name: name.replace("script/", "../../x/"),
            lambda name: name.replace("script/", "/tmp/"),
            lambda name: name if name != "script/constants.pkl" else "constants.pkl",
        )
    ):
        file = tmp_path / f"{number}.pth"
        with zipfile.ZipFile(file, "w") as target:
            for name, data in entries.items():
                target.writestr(rename(name), data)
        refused(lambda file=file: read(file), file)
    assert not marker.exists()


# ---- Archives -----------------------------------------------------------------------------------


def test_names_in_an_archive_lead_nowhere(tmp_path):
    one = mapping({"norm1.weight": tensor(storage("../../../escaped", 1), (1,), (1,))})
    write_zip(tmp_path / "x.pth", one, {"../../../escaped": bytes(4)})
    read(tmp_path / "x.pth")
    before = set(tmp_path.rglob("*"))
    for name in ("/etc/passwd", "../../../etc/passwd", "\\\\host\\share", "a\nb", ""):
        one = mapping({"norm1.weight": tensor(storage(name.replace("\n", ""), 1), (1,), (1,))})
        write_zip(tmp_path / "x.pth", one)
        refused(lambda: read(tmp_path / "x.pth"), tmp_path / "x.pth")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["zip in a zip", "tar", "gzip", "numpy", "old tar", "7z", "hdf5"])
def test_other_archives(tmp_path, kind):
    file, inner = tmp_path / "x.pth", write_zip(tmp_path / "inner.zip", b"}")
    if kind == "zip in a zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.write(inner, "archive/inner.zip")
    elif kind.endswith("tar"):  # the oldest form of torch.save: storages, tensors, pickle
        with tarfile.open(file, "w") as archive:
            for name in ("storages", "tensors", "pickle"):
                entry = tarfile.TarInfo(name)
                entry.size = 20
                archive.addfile(entry, io.BytesIO(b"cos\nsystem\n(X\0\0\0\0tR."))
    else:
        start = {"gzip": b"\x1f\x8b\x08", "numpy": b"\x93NUMPY\1\0", "7z": b"7z\xbc\xaf'\x1c"}
        file.write_bytes(start.get(kind, b"\x89HDF\r\n\x1a\n") + bytes(100))
    refused(lambda: read(file), file)


def test_a_tensor_of_a_legacy_file_stays_in_it(tmp_path):
    file = tmp_path / "x.pth"
    torch.save({"norm1.weight": torch.zeros(4)}, file, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    for size in (2**62, -1, 5, 3):
        file.write_bytes(data.replace(struct.pack("<q", 4), struct.pack("<q", size)))
        refused(lambda: read(file), file)


# ---- Folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../secret", "/etc", "a/b", "..", ".", "", "link", "linked_out", "linked_meta", "a\0b"]
)
def test_tensors_of_libai_lie_in_their_folder(tmp_path, name):
    secret, folder = tmp_path / "secret", tmp_path / "x"
    for place in (secret, folder / "linked_out", folder / "linked_meta"):
        write_variable(place.parent, place.name, np.float32([1, 2, 3]))
    (folder / "link").symlink_to(secret)
    for place in ("out", "meta"):
        (folder / f"linked_{place}" / place).unlink()
        (folder / f"linked_{place}" / place).symlink_to(secret / place)
    write_libai(folder, mapping({"segformer.layer_norms.0.weight": variable(name)}))
    refused(lambda: read(folder), folder)


def test_what_a_link_leads_to_is_not_told(tmp_path):
    (tmp_path / "secret").write_text("sesame: 1")
    write_variable(tmp_path / "x", "v", np.zeros(3, np.float32))
    (tmp_path / "x" / "v" / "meta").unlink()
    (tmp_path / "x" / "v" / "meta").symlink_to(tmp_path / "secret")
    write_libai(tmp_path / "x", mapping({"segformer.layer_norms.0.weight": variable("v")}))
    assert "sesame" not in refused(lambda: read(tmp_path / "x"), tmp_path / "x")


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "ABSOLUTE", "a/../../outside.safetensors", "x\0", "", ".", "..", 1,
     None, [], "pipe.safetensors", "folder.safetensors", "x" * 5000, "\ud800"],
)  # fmt: skip
def test_shards_lie_beside_their_index(originals, tmp_path, name):
    folder = copied(originals, tmp_path, "huggingface")
    os.rename(folder / "model.safetensors", tmp_path / "outside.safetensors")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "folder.safetensors").mkdir()
    if name == "ABSOLUTE":
        name = str(tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    refused(lambda: read(folder), index)


def test_pipes_as_weights(originals, tmp_path):
    for name in ("model.safetensors", "pytorch_model.bin", "x.pth", "model/pickled_data"):
        folder = tmp_path / name.replace("/", "_")
        (folder / "model").mkdir(parents=True)
        os.mkfifo(folder / name)
        for path in (folder, folder / name):
            outcome = contained(lambda path=path: read(path))
            assert outcome.kind == "refused" and str(folder) in outcome.text, outcome


# ---- safetensors --------------------------------------------------------------------------------

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
KEY = "segformer.encoder.layer_norm.0.weight"


@pytest.mark.parametrize(
    "header",
    [
        {KEY: F32 | {"data_offsets": [0, 8]}},
        {KEY: F32 | {"data_offsets": [4, 0]}},
        {KEY: F32 | {"data_offsets": [-4, 0]}},
        {KEY: F32, "segformer.encoder.layer_norm.0.bias": F32},  # they overlap
        {KEY: F32 | {"shape": [2**62, 4]}},
        {KEY: F32 | {"shape": [-1]}},
        {KEY: F32 | {"shape": [1.5]}},
        {KEY: F32 | {"shape": [1] * 33}},
        {KEY: F32 | {"shape": [1] * 100_000}},
        {KEY: F32 | {"shape": [0, 2**60, 2**60], "data_offsets": [0, 0]}},
        {KEY: F32 | {"dtype": "F4"}},
        {KEY: F32 | {"dtype": "I32"}},
        {KEY: F32 | {"dtype": "F8_E4M3", "shape": [4]}},
        {KEY: F32 | {"dtype": "C64", "data_offsets": [0, 8]}},
        {KEY: None},
        {KEY: []},
        {"__metadata__": {"a": 1}, KEY: F32},
        {"block1." + "1" * 5000 + ".norm1.weight": F32},
        {"block1.\u0663.norm1.weight": F32, "block1.3.norm1.weight": F32},
        {"\ud800": F32},
        b"",
        b"{}",
        b"[]",
        b"1",
        b"{",
        b'{"a":' * 1000,
        b"{" + b" " * 1000,
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":' + b"[" * 100_000,
        b"\xff",
    ],
)
def test_headers_of_safetensors(tmp_path, header):
    file = write_safetensors(tmp_path / "x.safetensors", header, bytes(4))
    outcome = contained(lambda: read(file))
    assert outcome.kind == "refused" and str(file) in outcome.text, outcome
    assert outcome.peak < MEMORY


@pytest.mark.parametrize("size", [0, 1, 10**8 - 1, 10**8, 2**31, 2**62, 2**64 - 1])
def test_lengths_of_a_header(tmp_path, size):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", size) + b"{}" + bytes(100))
    outcome = contained(lambda: read(tmp_path / "x.safetensors"))
    assert outcome.kind == "refused" and "x.safetensors" in outcome.text, outcome
    assert outcome.peak < MEMORY


@pytest.mark.slow
def test_a_header_of_a_hundred_million_bytes(tmp_path):
    entries = (
        b'"x%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(1_600_000)
    )
    file = write_safetensors(tmp_path / "x.safetensors", b"{" + b",".join(entries) + b"}")
    outcome = contained(lambda: read(file))
    assert outcome.kind == "refused" and str(file) in outcome.text, outcome
    assert outcome.peak < MEMORY


# ---- Settings -----------------------------------------------------------------------------------

HUGE = "9" * 5000
VALUES = {
    "config.json": {
        "hidden_sizes": ([8, 16, 24, 8000], [8000] * 4, [8, 16, 24, 10**30], [1.5] * 4, "abcd", 8,
                         [8, 16, 24, -32], [8, 16, 24, 0], [8, 16, 24, True], [[8]] * 4, None),
        "depths": ([10**6] * 4, [10**9, 1, 1, 1], [], [0, 1, 1, 1], [1, 1, 1], {"a": 1}),
        "num_channels": (10**6, 2**63, -3, 0, 1.5, "3", True, 1e300),
        "sr_ratios": ([10**4] * 4, [0] * 4, [64, 64, 64, 64]),
        "mlp_ratios": ([1e308] * 4, [1e-9] * 4, [float("inf")] * 4, [float("nan")] * 4, [-1] * 4),
        "num_attention_heads": ([3, 5, 7, 9], [10**9] * 4, [0] * 4),
        "patch_sizes": ([10**5] * 4, [0] * 4),
        "strides": ([10**5] * 4, [0] * 4),
        "decoder_hidden_size": (10**9, 2**63, 0, -1, 1.5, "a", [8]),
        "drop_path_rate": (float("inf"), float("nan"), -1, 1, 2**63, "a"),
        "classifier_dropout_prob": (float("inf"), float("nan"), -1, 1, "a"),
        "semantic_loss_ignore_index": (2**63, 10**30, -1, 1.5, "a", None),
        "num_encoder_blocks": (10**9, 0, -1, "4", 1.5, 3),
        "num_labels": (10**9, 2**63, 0, -1, "a", 1.5),
        "id2label": ({"x": "a"}, {HUGE: "a"}, {"1.5": "a"}, ["a"], "ab", 5,
                     {str(i): "a" for i in range(70_000)}),
        "model_type": ("bert", 1, None, ["segformer"], {}),
        "hidden_act": ("relu", 1, ["gelu"], {}),
    },
    "segformer.json": {
        "hidden_sizes": ([8000] * 4, "abcd", 8, [8, 16, 24, 0], [1.5] * 4, {"0": 8}, None),
        "depths": ([10**6] * 4, [], [0, 1, 1, 1], 10**9),
        "num_channels": (10**6, 2**63, 1.5, "3", None),
        "num_classes": (10**10, 2**63, 0, -1, 1.5, "3", None, [3], {}),
        "mlp_ratios": ([1e308] * 4, [float("inf")] * 4, [float("nan")] * 4),
        "layer_norm_eps": (float("inf"), float("nan"), -1, "a", None, [1]),
        "drop_path_rate": (float("inf"), float("nan"), 1, "a", None),
        "decoder_hidden_size": (10**9, 0, "a", None),
        "loss": ({"_target_": "os.system"}, "a", 5, {"name": "x"}, [1]),
        "ignore_index": (2**63, 1.5, "a", [1], {}),
        "pretrained_model_path": ("/etc/passwd",),
        "_target_": ("os.system",),
        "__class__": ("x",),
        "": (1,),
    },
}  # fmt: skip
SETTINGS = [(file, key, value) for file, keys in VALUES.items() for key in keys
            for value in keys[key]]  # fmt: skip


def changed(folder: Path, file: str, key: str, value) -> Path:
    content = json.loads((folder / file).read_text())
    settings = content["settings"] if file == "segformer.json" else content
    settings[key] = value
    if key == "num_labels":
        del settings["id2label"]
    write_json(folder / file, content)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["load", "convert"])
@pytest.mark.parametrize(
    "file, key, value", SETTINGS, ids=[f"{f[:3]}-{k}-{str(v)[:20]}" for f, k, v in SETTINGS]
)
def test_settings_beside_weights(originals, tmp_path, file, key, value, tool):
    kind = "huggingface" if file == "config.json" else "libai"
    folder = changed(copied(originals, tmp_path, kind), file, key, value)
    target = ["--to", "libai" if kind == "huggingface" else "huggingface"]
    command = ["--from", str(folder), *target, "--output", str(tmp_path / "output")]
    try:
        with memory_within(MEMORY):
            load_weights(TINY, str(folder)) if tool == "load" else convert_weights.main(command)
    except InputError as error:
        assert str(folder) in str(error) and len(str(error)) < 2000
    else:
        assert key in OF_NO_CONSEQUENCE


# The weights do not show that these are wrong, or the model does not have them.
OF_NO_CONSEQUENCE = (
    *("semantic_loss_ignore_index", "ignore_index", "pretrained_model_path", "num_labels"),
    *("num_attention_heads", "layer_norm_eps", "id2label", "loss"),
)


@contextmanager
def memory_within(more: int):
    """MemoryError for what wants `more` bytes of address space."""
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    "content",
    [{"classes": 5}, {"classes": None}, {"classes": [[1], [2], [3]]}, {"classes": {"a": 1}},
     {"classes": [{}, {}, {}]}, {"image_processor": 5}, {"image_processor": [[[[]]]]},
     {"settings": {"num_classes": 3}}, {"settings": {}}, {"settings": 5}, {"settings": None},
     {"settings": [1]}, {"classes": "abc"}, {"classes": [1, 2, 3]}, {"classes": ["a", "a", "a"]}],
)  # fmt: skip
@pytest.mark.parametrize("target", ["huggingface", "official", "libai"])
def test_descriptions_beside_weights(originals, tmp_path, target, content):
    folder = copied(originals, tmp_path, "libai")
    whole = json.loads((folder / "segformer.json").read_text())
    write_json(folder / "segformer.json", whole | content)
    try:
        convert_weights.main(
            ["--from", str(folder), "--to", target, "--output", str(tmp_path / "output")]
        )
    except InputError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "segformer.json"])
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"[" * 100_000, b'{"a":' * 500 + b"1" + b"}" * 500, b"\xff\xfe{",
                b'{"a": 1e999}', b'{"a": ' + HUGE.encode() + b"}", b"null", b"NaN"]
)  # fmt: skip
def test_json_of_all_kinds(originals, tmp_path, name, content):
    kind = "libai" if name == "segformer.json" else "huggingface"
    folder = copied(originals, tmp_path, kind)
    (folder / name).write_bytes(content)
    for work in (
        lambda: load_weights(TINY, str(folder)),
        lambda: convert_weights.main(
            ["--from", str(folder), "--to", "huggingface", "--output", str(tmp_path / "output")]
        ),
    ):
        try:
            work()
        except InputError as error:
            assert str(folder) in str(error)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (), (2**20,)])
def test_shapes_of_no_model(tmp_path, shape):
    """The paper's file, whose sizes are read off its tensors."""
    state = {
        f"backbone.{name}.{leaf}": torch.zeros(8)
        for i in range(1, 5)
        for name in (f"norm{i}", f"block{i}.0.norm1", f"block{i}.0.norm2")
        for leaf in ("weight", "bias")
    }
    state |= {f"backbone.patch_embed{i}.proj.weight": torch.zeros(8, 3, 3, 3) for i in range(1, 5)}
    state |= {f"backbone.block{i}.0.mlp.fc2.weight": torch.zeros(8, 8) for i in range(1, 5)}
    state["decode_head.linear_pred.weight"] = torch.zeros(3, 8, 1, 1)
    for key in state:
        torch.save({"state_dict": state | {key: torch.zeros(shape)}}, tmp_path / "x.pth")
        refused(
            lambda: convert_weights.main(
                ["--from", f"{tmp_path}/x.pth", "--to", "libai", "--output", f"{tmp_path}/out"]
            ),
            tmp_path / "x.pth",
        )


def test_config_beside_a_checkpoint_runs_no_code(originals, tmp_path):
    """With the record of a checkpoint, without one, and with a damaged one."""
    marker = tmp_path / "marker"
    folder = copied(originals, tmp_path / "output", "libai")
    (folder / "segformer.json").unlink()
    config = "x: !!python/object/apply:os.system [touch MARKER]\ny: {_target_: os.system}\n"
    for place in (folder, folder / "model", folder.parent, tmp_path):
        (place / "config.yaml").write_text(config.replace("MARKER", str(marker)))
    for record in (None, "{}", finished(b"}").decode("latin1")):
        if record:
            (folder / "checkpoint.json").write_text(record)
        for source in (folder, folder / "model"):
            refused(
                lambda source=source: convert_weights.main(
                    ["--from", str(source), "--to", "libai", "--output", f"{tmp_path}/out"]
                ),
                folder,
            )
    assert not marker.exists()
