"""Pickles that would run code, or fill memory, or never end, in every file that holds one."""

import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from contained import MEMORY, contained
from hostile_files import (
    call,
    finished,
    get,
    mapping,
    named,
    number,
    put,
    storage,
    tensor,
    text,
    twice_nested,
    variable,
    write_legacy,
    write_libai,
    write_variable,
    write_zip,
)
from projects.SegFormer.engine.checkpoint import load_part
from projects.SegFormer.model_utils.segf_loader import open_in_any_format
from projects.SegFormer.model_utils.weight_files import read_meta
from projects.SegFormer.modeling.errors import InputError


def read(path: Path) -> dict:
    return dict(open_in_any_format(str(path))[0].read())


# ---- Where a pickle may stand: how it is written, and what is read ------------------------------


def in_a_folder(folder: Path, body: bytes) -> Path:
    folder.mkdir()
    write_zip(folder / "pytorch_model.bin", body)
    return folder


def bare(path: Path, body: bytes) -> Path:
    path.write_bytes(finished(body))
    return path


def as_model_of_a_checkpoint(folder: Path, body: bytes) -> Path:
    write_libai(folder / "model", body)
    return folder


PLACES = {
    "zip": (lambda folder, body: write_zip(folder / "x.pth", body), read),
    "bin": (lambda folder, body: in_a_folder(folder / "x", body), read),
    "legacy": (lambda folder, body: write_legacy(folder / "x.pth", body), read),
    "bare": (lambda folder, body: bare(folder / "x.pth", body), read),
    "meta": (lambda folder, body: write_zip(folder / "x.pth", body), lambda p: read_meta(str(p))),
    "LiBai": (lambda folder, body: as_model_of_a_checkpoint(folder / "x", body), read),
    "optimizer": (
        lambda folder, body: write_libai(folder / "x" / "optimizer", body),
        lambda path: load_part(str(path)),
    ),
}
everywhere = pytest.mark.parametrize("place", PLACES)


def refusal(place: str, folder: Path, body: bytes) -> str:
    """The one line that a file with this pickle is refused with."""
    write, reads = PLACES[place]
    path = write(folder, body)
    with pytest.raises(InputError) as caught:
        reads(path)
    message = str(caught.value)
    assert str(path) in message and len(message.splitlines()) == 1, message
    return message


# ---- Code -------------------------------------------------------------------------------------


def touch(marker: Path) -> bytes:
    return b"(" + text(f"touch {marker}") + b"t"


# Ways to call os.system with the marker's command, or to build an object that would.
WAYS: dict[str, Callable[[Path], bytes]] = {
    "REDUCE": lambda marker: named("os.system") + touch(marker) + b"R",
    "posix": lambda marker: named("posix.system") + touch(marker) + b"R",
    "STACK_GLOBAL": lambda marker: text("os") + text("system") + b"\x93" + touch(marker) + b"R",
    "INST": lambda marker: b"(" + text(f"touch {marker}") + b"ios\nsystem\n",
    "OBJ": lambda marker: b"(" + named("os.system") + text(f"touch {marker}") + b"o",
    "memo": lambda marker: named("os.system") + put(5) + b"0" + get(5) + touch(marker) + b"R",
    "DUP": lambda marker: named("os.system") + b"2" + touch(marker) + b"R0",
    "map": lambda marker: named("builtins.list") + (
        b"(" + call("builtins.map", named("os.system"), b"(" + text(f"touch {marker}") + b"t")
    ) + b"tR",
    "getattr": lambda marker: call(
        "builtins.getattr", call("builtins.__import__", text("os")), text("system")
    ) + touch(marker) + b"R",
    "BUILD": lambda marker: call("builtins.type", text("T"), b")", b"}" + text("__setstate__") + (
        named("os.system") + b"s"
    )) + b")R" + text(f"touch {marker}") + b"b",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_attacks_work_on_pythons_own_unpickler(tmp_path, way):
    """Otherwise the tests below would show nothing."""
    marker = tmp_path / "marker"
    contained(lambda: pickle.loads(finished(WAYS[way](marker))))
    assert marker.exists() or way == "BUILD"  # os.system as a method gets no self


@everywhere
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_called(tmp_path, place, way):
    marker = tmp_path / "marker"
    for body in (WAYS[way](marker), mapping({"state_dict": mapping({"x": WAYS[way](marker)})})):
        folder = tmp_path / str(len(body))
        folder.mkdir()
        refusal(place, folder, body)
        assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_protocols(tmp_path, protocol):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/marker",)

    data = pickle.dumps({"x": Payload()}, protocol)
    contained(lambda: pickle.loads(data))
    assert (tmp_path / "marker").exists()  # it works
    (tmp_path / "marker").unlink()
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("archive/data.pkl", data)
    write_libai(tmp_path / "model", b"N")
    (tmp_path / "model" / "pickled_data").write_bytes(data)
    (tmp_path / "bare.pth").write_bytes(data)
    for path in (tmp_path / "x.pth", tmp_path / "bare.pth", tmp_path / "model"):
        with pytest.raises(InputError, match="x.pth|bare.pth|model"):
            read(path)
    assert not (tmp_path / "marker").exists()


NAMES = (
    *("os.system", "posix.system", "nt.system", "subprocess.Popen", "subprocess.check_output"),
    *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.getattr"),
    *("builtins.open", "builtins.__import__", "__builtin__.eval", "builtins.map"),
    *("builtins.filter", "io.open", "torch.load", "torch.save", "torch.from_file"),
    *("torch.jit.load", "torch.hub.load", "torch.storage._load_from_bytes"),
    *("torch._utils._import_dotted_name", "torch.ops.load_library", "torch.serialization.load"),
    *("torch.package.PackageImporter", "torch.nn.Module"),
    *("torch._utils._rebuild_tensor_v2.__globals__", "numpy.load", "numpy.fromfile"),
    *("numpy.memmap", "numpy.core.multiarray.fromfile"),
    *("numpy.testing._private.utils.runstring", "numpy.f2py.run_main", "functools.partial"),
    *("functools.reduce", "operator.methodcaller", "operator.attrgetter", "codecs.open"),
    *("_codecs.lookup", "codecs.decode", "types.FunctionType", "types.CodeType"),
    *("pydoc.locate", "pydoc.pipepager", "importlib.import_module", "runpy.run_path"),
    *("pty.spawn", "code.interact", "pickle.loads", "_pickle.loads", "marshal.loads"),
    *("ctypes.CDLL", "shutil.copy", "webbrowser.open", "tempfile.mktemp"),
    *("socket.create_connection", "urllib.request.urlopen", "copyreg.__newobj__"),
    *("copyreg._extension_registry", "copyreg.add_extension", "os.environ", "yaml.unsafe_load"),
    *("cloudpickle.cloudpickle._make_function", "dill._dill._create_function", "oneflow.load"),
    *("oneflow.save", "oneflow.Tensor.numpy", "oneflow.nn.Module", "timeit.timeit"),
    *("projects.SegFormer.tools.export.write", "projects.SegFormer.modeling.files.write_whole"),
    *("collections.OrderedDict.fromkeys", "collections.namedtuple", "collections._sys.modules"),
    *("argparse.Namespace.__init__", "argparse._os.system", "argparse.ArgumentParser"),
    *("typing.Any.__class__", "typing.sys.modules", "uuid.os.system", "decimal.sys.exit"),
    *("builtins.object.__reduce__", "builtins.dict.fromkeys", "builtins.type.mro"),
    *("yacs.config.eval", "detectron2.utils.env", "fvcore", "pathlib", "mmcvx.Config",),
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_are_refused_by_name(tmp_path, name):
    for place in PLACES:
        (tmp_path / place).mkdir()
        for part in (named(name), named(name) + b")R", b"(i" + named(name)[1:]):
            write, reads = PLACES[place]
            path = write(tmp_path / place, part) if place != "bin" else None
            if path is None:
                continue
            with pytest.raises(InputError) as caught:
                reads(path)
            assert str(path) in str(caught.value) and name in str(caught.value)


# Names that begin as those of records do: they stay names.
LOOKALIKES = (
    *("pathlib.os.system", "pathlib.io.open", "pathlib.Path.write_text", "pathlib.sys.modules"),
    *("datetime.sys.modules.get", "enum.sys.exit", "omegaconf._utils.os.system"),
    *("omegaconf.OmegaConf.load", "mmcv.Config.fromfile", "mmengine.runner.Runner"),
    *("addict.Dict.__setstate__", "easydict.os.system", "fvcore.common.config.os.system"),
    *("lightning.os.system", "pytorch_lightning.utilities.os.system"),
)


@pytest.mark.parametrize("name", LOOKALIKES)
@everywhere
def test_records_are_inert(tmp_path, place, name):
    marker = tmp_path / "marker"
    write, reads = PLACES[place]
    for body in (
        named(name) + touch(marker) + b"R",
        named(name) + touch(marker) + b"\x81",
        named(name) + touch(marker) + b"}\x92",
        b"(" + named(name) + text(f"touch {marker}") + b"o",
        named(name) + touch(marker) + b"R" + text(f"touch {marker}") + b"b",
        named(name) + touch(marker) + b"R" + text(f"touch {marker}") + b"a",
        named(name) + touch(marker) + b"R" + b"]" + text(f"touch {marker}") + b"s",
    ):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        with suppress(InputError):  # that it holds no weights
            reads(write(folder, mapping({"state_dict": mapping({}), "x": body})))
        assert not marker.exists()


@everywhere
@pytest.mark.parametrize(
    "body",
    [
        b"\x82\x01",  # EXT1, of copyreg's registry
        b"\x83\x01\x00",
        b"\x84\x01\x00\x00\x00",
        b"Pos.system\n",  # PERSID
        text("os.system") + b"Q",
        b"\x97",  # NEXT_BUFFER
        b"\x97\x98",
        b"(" + text("module") + named("torch.FloatStorage") + text("x.py") + text("src") + b"tQ",
        named("collections.OrderedDict") + named("torch.Tensor") + b"R",
        named("collections.OrderedDict") + b")}" + text("a") + b"Ns\x92",
        call("numpy.dtype", text("O")),
        call("numpy.dtype", text("f4,O")),
        call("numpy.dtype", b"]" + named("builtins.object") + b"a"),
        call("_codecs.encode", text("x"), text("zlib_codec")),
        call("builtins.bytes", number(2**40)),
        call("builtins.bytearray", number(2**40)),
        call("builtins.list", number(2**40)),
        call("builtins.set", b"]" + twice_nested(3) + b"a"),
        b"0",
        b"\x81",
        b"R" * 100,
        b"b",
        b"h\x07",
        b"\x94" * 10,
    ],
)
def test_opcodes_and_arguments_that_no_data_needs(tmp_path, place, body):
    refusal(place, tmp_path, body)


def test_a_name_cannot_forge_lines(tmp_path):
    forged = text("os\nerror: all is well\x1b[2J\r") + text("system") + b"\x93"
    for place in PLACES:
        (tmp_path / place).mkdir()
        message = refusal(place, tmp_path / place, forged)
        assert message.isprintable()


# ---- Memory and time ----------------------------------------------------------------------------

BOMB = 40  # levels: 2**40 parts when written out


def shared(items: bytes) -> bytes:
    """A list that stays as 1 in the memo alone."""
    return b"](" + items + b"e" + put(1) + b"0"


def many_ints_of_one_slot() -> bytes:
    """Keys whose search in Python's dict goes along the same half a million places."""
    size = 2**19
    chain, place = [], 1
    while len(chain) < size // 2:
        chain.append(place)
        place = (5 * place + 1) % size
    taken = np.zeros(size, bool)
    taken[chain] = True
    late = np.zeros(size, bool)  # a long way is still to go
    late[chain[: size // 8]] = True
    keys = np.arange(size, 32 * size)
    slot, rest = keys % size, keys >> 5
    good = taken[slot]
    for _ in range(5):
        slot = (slot * 5 + rest + 1) % size
        good &= taken[slot]
        rest >>= 5
    found = keys[good & late[slot]][: size // 8]
    return b"}(" + b"".join(number(int(key)) + b"N" for key in [*chain, *found]) + b"u"


def one_step(items: int, item: bytes) -> bytes:
    return b"](" + item * items + b"e"


def many_tensors(count: int, elements: int, step: int) -> bytes:
    stored = storage("0", elements) + put(7) + b"0"
    return stored + mapping(
        {
            f"backbone.norm{i}.weight": tensor(get(7), (elements,), (step,))
            for i in range(1, count + 1)
        }
    )


RESOURCES: dict[str, Callable[[Path], Path]] = {
    # What an opcode claims.
    "LONG_BINPUT": lambda p: write_zip(p, b"]r\xff\xff\xff\xff"),
    "PUT": lambda p: write_zip(p, b"]p99999999999999\n"),
    "PUT of many digits": lambda p: write_zip(p, b"]p" + b"9" * 10_000_000 + b"\n"),
    "BINBYTES8": lambda p: write_zip(p, b"\x8e" + struct.pack("<Q", 2**40)),
    "BINBYTES8 above all": lambda p: write_zip(p, b"\x8e" + b"\xff" * 8),
    "BYTEARRAY8": lambda p: write_zip(p, b"\x96" + struct.pack("<Q", 2**40)),
    "BINUNICODE8": lambda p: write_zip(p, b"\x8d" + struct.pack("<Q", 2**40)),
    "LONG4": lambda p: write_zip(p, b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "LONG4 negative": lambda p: write_zip(p, b"\x8b" + struct.pack("<i", -1)),
    "FRAME": lambda p: write_zip(p, b"\x95" + struct.pack("<Q", 2**60)),
    "INT of many digits": lambda p: write_zip(p, b"I" + b"9" * 10_000_000 + b"\n"),
    "LONG of many digits": lambda p: write_zip(p, b"L" + b"9" * 10_000_000 + b"L\n"),
    "large LONG4 in a message": lambda p: write_zip(
        p, b"(" + text("storage") + named("torch.FloatStorage") + text("0") + text("cpu")
        + b"\x8b" + struct.pack("<i", 10**7) + b"\x7f" * 10**7 + b"tQ"
    ),
    # Values that hold each other.
    "nested": lambda p: write_zip(p, twice_nested(BOMB)),
    "nested lists": lambda p: write_zip(p, b"]" + put(0) + b"(" + get(0) * 2 + b"e"),
    "product of lists": lambda p: write_zip(
        p, shared(b")" * 300_000) + b"](" + get(1) * 300_000 + b"e"
    ),
    "product of three": lambda p: write_zip(
        p, shared(b")") + b"](" + get(1) * 300_000 + b"e" + put(2) + b"0](" + get(2) * 300_000
        + b"e"
    ),
    "deep": lambda p: write_zip(p, b"]" + b"\x85" * 2_000_000),
    "nested as a name": lambda p: write_zip(p, twice_nested(BOMB) + text("x") + b"\x93"),
    "nested as a word": lambda p: write_zip(
        p, b"(" + twice_nested(BOMB) + named("torch.FloatStorage") + text("0") + text("cpu")
        + number(1) + b"tQ"
    ),
    "nested as a key": lambda p: write_zip(
        p, b"(" + text("storage") + named("torch.FloatStorage") + twice_nested(BOMB) + text("cpu")
        + number(1) + b"tQ"
    ),
    "nested as a shape": lambda p: write_zip(
        p, call("torch._utils._rebuild_tensor_v2", storage("0", 1), number(0), twice_nested(BOMB),
                b")", b"\x89", b"N")
    ),
    "nested as a path": lambda p: write_libai(
        p, call("oneflow.Tensor") + b"}" + text("path") + twice_nested(BOMB) + b"sb"
    ),
    "nested as a dict's key": lambda p: write_zip(p, b"}" + twice_nested(60) + b"Ns"),
    "nested in a set": lambda p: write_zip(p, b"\x8f(" + twice_nested(60) + b"\x90"),
    "nested as a set's item": lambda p: write_zip(p, b"\x8f" + text("k") + twice_nested(60) + b"s"),
    "nested in a frozenset": lambda p: write_zip(p, b"(" + twice_nested(60) + b"\x91"),
    "two that are compared": lambda p: write_legacy(
        p, shared(b"") + twice_nested(30) + twice_nested(30, base=b"N")
    ),
    "keys of one slot": lambda p: write_zip(p, many_ints_of_one_slot()),
    # Copies.
    "copies of a dict": lambda p: write_zip(
        p, b"}(" + b"".join(number(i) + b"N" for i in range(100_000)) + b"u" + put(1) + b"0"
        + one_step(640, named("collections.OrderedDict") + get(1) + b"\x85R")
    ),
    "copies of a set": lambda p: write_zip(
        p, shared(b"".join(map(number, range(100_000))))
        + one_step(640, named("builtins.set") + get(1) + b"\x85R")
    ),
    "copies of bytes": lambda p: write_zip(
        p, b"B" + struct.pack("<I", 10**7) + bytes(10**7) + put(1) + b"0"
        + one_step(2000, named("builtins.bytes") + get(1) + b"\x85R")
    ),
    # Steps.
    "lists": lambda p: write_zip(p, one_step(2_990_000, b"]")),
    "sets": lambda p: write_zip(p, one_step(2_990_000, b"\x8f")),
    "sets in a legacy file": lambda p: write_legacy_of(
        p, b"}" + text("a") + one_step(2_990_000, b"\x8f") + b"s", one_step(2_990_000, b"\x8f")
    ),
    # Tensors.
    "expanded": lambda p: write_zip(p, many_tensors(300, 10**6, 0), {"0": bytes(4 * 10**6)}),
    "overlapping": lambda p: write_zip(p, many_tensors(300, 10**6, 1), {"0": bytes(4 * 10**6)}),
    "expanded, legacy": lambda p: write_legacy(
        p, many_tensors(300, 10**6, 0), {"0": np.zeros(10**6, np.float32)}
    ),
    "huge shape": lambda p: write_zip(
        p, mapping({"norm1.weight": tensor(storage("0", 4), (2**40, 2**40), (0, 0))}),
        {"0": bytes(16)},
    ),
    "no elements of huge axes": lambda p: write_zip(
        p, mapping({"norm1.weight": tensor(storage("0", 4), (0, 2**47, 2**47), (1, 1, 1))}),
        {"0": bytes(16)},
    ),
    "storage of which the archive claims 400 GB": lambda p: claimed(p, 10**11),
    "190,000 keys": lambda p: many_keys(p, 190_000),
    "one tensor of LiBai under 2000 names": lambda p: same_variable(p, 2000),
    "tensor of LiBai without elements": lambda p: hollow_variable(p),
    # Archives.
    "byteorder, packed": lambda p: write_zip(
        p, b"}", byteorder=(bytes(2**30), zipfile.ZIP_DEFLATED)
    ),
    "data.pkl, packed": lambda p: packed_pickle(p, zipfile.ZIP_DEFLATED),
    "data.pkl, bzip2": lambda p: packed_pickle(p, zipfile.ZIP_BZIP2),
    "storages in storages": lambda p: nested_storages(p, 2000, 2 * 10**6),
}  # fmt: skip


def write_legacy_of(path: Path, system: bytes, rest: bytes) -> Path:
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001)]
    path.write_bytes(b"".join([*parts, *map(finished, (system, rest, rest))]))
    return path


def claimed(path: Path, elements: int) -> Path:
    prefix = "segformer.encoder.block.0.0.attention.self"
    side = int(elements**0.5)
    wide = tensor(storage("0", elements), (side, side), (0, 0))
    write_zip(path, mapping({f"{prefix}.{name}.weight": wide for name in ("key", "value")}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(64))
        entry = archive.getinfo("archive/data/0")
        entry.file_size = entry.compress_size = 4 * elements
        entry.CRC = 0
    return path


def many_keys(path: Path, count: int) -> Path:
    stored = storage("0", 4) + put(7) + b"0" + named("torch._utils._rebuild_tensor_v2") + put(8)
    one = get(8) + b"(" + get(7) + b"K\x00K\x01\x85K\x01\x85\x89}tR"
    items = b"".join(text(f"x{i}") + one for i in range(count))
    return write_zip(path, stored + b"0}(" + items + b"u", {"0": bytes(16)})


def same_variable(folder: Path, count: int) -> Path:
    write_variable(folder, "v", np.zeros(10**6, np.float32))
    names = (f"segformer.blocks.0.{i}.norm1.weight" for i in range(count))
    return write_libai(folder, mapping({name: variable("v") for name in names}))


def hollow_variable(folder: Path) -> Path:
    meta = "shape { dim: 0 dim: 4611686018427387904 dim: 4611686018427387904 }\ndata_type: kFloat\n"
    write_variable(folder, "v", np.empty(0, np.float32), meta)
    return write_libai(folder, mapping({"segformer.layer_norms.0.weight": variable("v")}))


def packed_pickle(path: Path, packing: int) -> Path:
    entry = zipfile.ZipInfo("archive/data.pkl")
    entry.compress_type = packing
    with zipfile.ZipFile(path, "w") as archive, archive.open(entry, "w", force_zip64=True) as file:
        for _ in range(1000 if packing == zipfile.ZIP_BZIP2 else 200):
            file.write(bytes(2**20))
    return path


def nested_storages(path: Path, count: int, size: int) -> Path:
    """Each entry holds all entries after it: a sum of their bytes is count times the file's."""

    def local(name: bytes) -> bytes:
        numbers = (20, 0, 0, 0, 33, 0, 0, 0, len(name), 0)
        return struct.pack("<4s5H3I2H", b"PK\3\4", *numbers) + name

    def central(name: bytes, data, offset: int) -> bytes:
        numbers = (20, 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name))
        return struct.pack("<4s6H3I5H2I", b"PK\1\2", *numbers, 0, 0, 0, 0, 0, offset) + name

    names = [b"a/data/%d" % i for i in range(count)]
    headers = [local(name) for name in names]
    lengths = [size + sum(map(len, headers[i + 1 :])) for i in range(count)]
    keys = (storage(str(i), length, "Byte") for i, length in enumerate(lengths))
    body = finished(b"](" + b"".join(keys) + b"e")
    data = local(b"a/data.pkl") + body + b"".join(headers) + bytes(size)
    directory, offset = central(b"a/data.pkl", body, 0), len(local(b"a/data.pkl") + body)
    view = memoryview(data)
    for name, header, length in zip(names, headers, lengths):
        start = offset + len(header)
        directory += central(name, view[start : start + length], offset)
        offset = start
    end = (0, 0, count + 1, count + 1, len(directory), len(data), 0)
    path.write_bytes(data + directory + struct.pack("<4s4H2IH", b"PK\5\6", *end))
    return path


LONG = ("lists", "sets", "sets in a legacy file", "190,000 keys", "storages in storages")


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in RESOURCES],
)
def test_little_memory_and_time(tmp_path, attack):
    path = RESOURCES[attack](tmp_path / "x.pth")
    outcome = contained(lambda: read(path))
    assert outcome.kind == "refused", outcome
    assert str(path) in outcome.text and len(outcome.text) < 2000
    assert outcome.peak < MEMORY
