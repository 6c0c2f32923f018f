"""Images, lists, MATLAB files and ONNX graphs that start programs, fill memory, or never end."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from contained import MEMORY, contained, limit
from projects.SegFormer.dataset.image_files import FORMATS, image_size, read_image, read_label
from projects.SegFormer.dataset.list_files import read_names, read_rows
from projects.SegFormer.dataset.matlab_files import read_matrix
from projects.SegFormer.evaluation.onnx_model import OnnxModel
from projects.SegFormer.modeling.errors import InputError

pytestmark = pytest.mark.slow

# ---- Images -------------------------------------------------------------------------------------

READERS = {"image": read_image, "label": read_label, "size": image_size}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["x.png", "x.eps", "x.jpg", "x.tif"])
def test_ghostscript_is_not_started(tmp_path, monkeypatch, reader, name):
    """With a program of that name first on the PATH, which Pillow starts for EPS."""
    marker, programs = tmp_path / "marker", tmp_path / "programs"
    programs.mkdir()
    for program in ("gs", "gswin32c", "gswin64c", "djpeg", "ppmtogif"):
        (programs / program).write_text(f"#!/bin/sh\ntouch {marker}\n")
        (programs / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    Image.new("RGB", (8, 8)).save(tmp_path / "x", "EPS")
    os.rename(tmp_path / "x", tmp_path / name)
    with pytest.raises(InputError, match=name):
        READERS[reader](tmp_path / name)
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017
        Image.open(tmp_path / name).load()
    assert marker.exists() or FORMATS  # what Pillow alone would have done


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colours: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def packed_zeros(size: int) -> bytes:
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(2**20)) for _ in range(size // 2**20)]
    return b"".join([*parts, packer.compress(bytes(size % 2**20)), packer.flush()])


BOMBS = {
    "large grey": lambda: png(45_000, 45_000, 1, 0, chunk(b"IDAT", packed_zeros(45_000 * 5626))),
    "large colours": lambda: png(30_000, 20_000, 8, 2, chunk(b"IDAT", packed_zeros(2**20))),
    "claims alone": lambda: png(2**31 - 1, 2**31 - 1, 16, 6),
    "wide": lambda: png(2**31 - 1, 1, 8, 2, chunk(b"IDAT", packed_zeros(2**20))),
    "text": lambda: png(1, 1, 8, 0, chunk(b"zTXt", b"a\0\0" + packed_zeros(2**30))),
    "international text": lambda: png(
        1, 1, 8, 0, chunk(b"iTXt", b"a\0\1\0\0\0" + packed_zeros(2**30))
    ),
    "profile": lambda: png(1, 1, 8, 0, chunk(b"iCCP", b"a\0\0" + packed_zeros(2**30))),
    "more data than pixels": lambda: png(1, 1, 8, 0, chunk(b"IDAT", packed_zeros(2**30))),
    "many chunks": lambda: png(1, 1, 8, 0, chunk(b"tEXt", b"a\0b") * 1_000_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("reader", READERS)
def test_bombs_of_png(tmp_path, reader, bomb):
    file = tmp_path / "x.png"
    file.write_bytes(BOMBS[bomb]())
    outcome = contained(lambda: READERS[reader](file))
    assert outcome.kind in ("refused", "value"), outcome
    assert outcome.kind == "value" or str(file) in outcome.text
    assert outcome.peak < MEMORY


def directory(following: int, tags: dict[int, int]) -> bytes:
    """Of a TIFF file: tags of one number each, and where the next directory is."""
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())
    )
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)


GREY = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 64, 279: 4096}
SIZE = len(directory(0, GREY))


def pages(count: int, last: int) -> bytes:
    """A TIFF file of pages of the same pixels; after the last comes the directory at `last`."""
    places = [4104 + SIZE * index for index in range(count)]
    parts = (directory(following, GREY) for following in [*places[1:], last])
    return struct.pack("<2sHI", b"II", 42, places[0]) + bytes(4096) + b"".join(parts)


def strips(**tags: int) -> bytes:
    body = directory(0, GREY | {int(tag[1:]): value for tag, value in tags.items()})
    return struct.pack("<2sHI", b"II", 42, 4104) + bytes(4096) + body


DIRECTORIES = {
    "a circle of pages": lambda: pages(3, 4104),
    "a page of itself": lambda: pages(1, 4104),
    "pages": lambda: pages(100_000, 0),
    "as many pages as are read": lambda: pages(1000, 0),
    "bands": lambda: strips(t277=65535),
    "bands without end": lambda: strips(t277=2**32 - 1),
    "planes": lambda: strips(t277=4, t284=2),
    "a strip beyond the end": lambda: strips(t273=2**31),
    "a strip of everything": lambda: strips(t279=2**32 - 1),
    "rows without end": lambda: strips(t278=2**32 - 1),
    "tiles of no width": lambda: strips(t322=0, t323=0, t324=8, t325=4096),
    "tiles without end": lambda: strips(t322=2**31, t323=2**31, t324=8, t325=4096),
    "no rows": lambda: strips(t257=0),
    "no bits": lambda: strips(t258=0),
    "many bits": lambda: strips(t258=2**31),
    "an orientation": lambda: strips(t274=2**31),
    "no directory": lambda: struct.pack("<2sHI", b"II", 42, 2**32 - 1),
    "a large one": lambda: struct.pack("<2sHHHQ", b"II", 43, 8, 0, 2**64 - 1),
}


@pytest.mark.parametrize("kind", DIRECTORIES)
@pytest.mark.parametrize("reader, deflated", [("image", False), ("image", True), ("label", False)])
def test_directories_of_tiff(tmp_path, reader, kind, deflated):
    file = tmp_path / "x.tif"
    data = DIRECTORIES[kind]()
    if deflated:  # of what is no such data
        data = data.replace(struct.pack("<HHII", 259, 4, 1, 1), struct.pack("<HHII", 259, 4, 1, 8))
    file.write_bytes(data)
    outcome = contained(lambda: READERS[reader](file).__class__)
    assert outcome.kind in ("refused", "value"), outcome
    assert outcome.kind == "value" or str(file) in outcome.text
    assert outcome.peak < MEMORY


ARRAYS = {
    "claims": "{'descr': '|u1', 'fortran_order': False, 'shape': (2147483647, 2147483647, 3)}",
    "negative": "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -1)}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (4, 4)}",
    "records": "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (4, 4)}",
    "nested": "(" * 5000,
    "a call": "__import__('os').system('touch marker')",
    "no shape": "{'descr': '|u1', 'fortran_order': False, 'shape': ()}",
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("reader", READERS)
def test_arrays(tmp_path, monkeypatch, reader, kind):
    monkeypatch.chdir(tmp_path)
    header = (ARRAYS[kind] + "\n").encode()
    file = tmp_path / "x.npy"
    file.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(64))
    outcome = contained(lambda: READERS[reader](file))
    assert outcome.kind == "refused" and str(file) in outcome.text, outcome
    assert outcome.peak < MEMORY and not (tmp_path / "marker").exists()


# ---- Lists --------------------------------------------------------------------------------------

TABLES = {
    "lines of two letters": lambda: b"ab\n" * (2**26 // 3),
    "empty lines": lambda: b"\n" * 2**26,
    "empty fields": lambda: b",\n" * 2**25,
    "commas": lambda: b"," * 2**26,
    "one line": lambda: b"a" * 2**26,
    "one quote": lambda: b'"' + b"a\n" * 2**25,
    "above the bound": lambda: b"a\n" * (2**25 + 1),
    "null": lambda: b"a\0b\n",
    "no text": lambda: b"\xff\xfe\n",
    "wide": lambda: "\U0001f600\n".encode() * (2**26 // 5),
    "path": lambda: b"/etc/passwd\n../../x\n",
}


@pytest.mark.parametrize("reader", ["names", "rows"])
@pytest.mark.parametrize("table", TABLES)
def test_tables(tmp_path, reader, table):
    file = tmp_path / "x.txt"
    file.write_bytes(TABLES[table]())
    read = {"names": lambda: read_names(file), "rows": lambda: read_rows(file, "a table")}
    outcome = contained(read[reader])
    assert outcome.kind in ("refused", "value"), outcome
    assert outcome.kind == "value" or str(file) in outcome.text
    assert outcome.peak < MEMORY


# ---- MATLAB files -------------------------------------------------------------------------------


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(values: bytes, *shape: int, name: bytes = b"S", number: int = 2) -> bytes:
    axes = struct.pack(f"<{len(shape)}i", *shape)
    parts = (struct.pack("<II", 9, 0), axes, name, values)
    kinds = (6, 5, 1, number)
    return element(14, b"".join(element(kind, part) for kind, part in zip(kinds, parts)))


def packed(data: bytes) -> bytes:
    data = zlib.compress(data, 9)
    return struct.pack("<II", 15, len(data)) + data


MATRICES = {
    "bomb": lambda: packed(element(14, bytes(2**28))),
    "bomb in a bomb": lambda: packed(packed(element(14, bytes(2**28)))),
    "many packed": lambda: packed(matrix(b"a", 1, 1, name=b"x")) * 1_000_000,
    "many": lambda: matrix(b"a", 1, 1, name=b"x") * 1_000_000,
    "claims": lambda: struct.pack("<II", 14, 2**32 - 1),
    "huge axes": lambda: matrix(b"a", 2**31 - 1, 2**31 - 1),
    "no elements of huge axes": lambda: matrix(b"", 2**31 - 1, 0),
    "negative axes": lambda: matrix(b"a", -1, -1),
    "a hundred axes": lambda: matrix(b"a", *[1] * 100),
    "no axes": lambda: matrix(b"a"),
    "an unknown number": lambda: matrix(b"a", 1, 1, number=99),
    "half a number": lambda: matrix(b"abc", 1, 1, number=9),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("kind", MATRICES)
def test_matrices(tmp_path, kind):
    file = tmp_path / "x.mat"
    file.write_bytes(bytes(124) + b"\0\1IM" + MATRICES[kind]())
    outcome = contained(lambda: read_matrix(file, "S"))
    assert outcome.kind in ("refused", "value"), outcome
    assert outcome.kind == "value" or str(file) in outcome.text
    assert outcome.peak < MEMORY


# ---- ONNX ---------------------------------------------------------------------------------------

IMAGES, LOGITS = "images", "prediction_scores"


def graph(
    nodes, initializers=(), shape=("n", 3, "h", "w"), outputs=((LOGITS, ("n", 3, "h", "w")),)
):
    infos = [helper.make_tensor_value_info(*info) for info in (
        (IMAGES, TensorProto.FLOAT, shape),
        *((name, TensorProto.FLOAT, dims) for name, dims in outputs),
    )]  # fmt: skip
    made = helper.make_graph(nodes, "g", infos[:1], infos[1:], list(initializers))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def relu(name=IMAGES):
    return helper.make_node("Relu", [name], [LOGITS])


def external(location: str) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return graph([helper.make_node("MatMul", [IMAGES, "w"], [LOGITS])], [weight])


def doubled(first: str, count: int, axis: int) -> list:
    return [
        helper.make_node("Concat", [f"{first}{i}"] * 8, [f"{first}{i + 1}"], axis=axis)
        for i in range(count)
    ]


def of_static_shape() -> onnx.ModelProto:
    nodes = [helper.make_node("Shape", [IMAGES], ["s0"]), *doubled("s", 12, 0), relu()]
    shape = (1, 3, 64, 64)
    model = graph(nodes, shape=shape, outputs=[(LOGITS, shape)])
    model.graph.output.append(helper.make_tensor_value_info("s12", TensorProto.INT64, None))
    return model


def of_constants(operator: str, **attributes) -> onnx.ModelProto:
    size = numpy_helper.from_array(np.array([2**18, 2**18], np.int64), "size")
    nodes = [helper.make_node(operator, ["size"], ["c"], **attributes), relu()]
    return graph(nodes, [size])


def custom_domain() -> onnx.ModelProto:
    model = graph([helper.make_node("Evil", [IMAGES], [LOGITS], domain="com.evil")])
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    return model


def message(tag: int, data: bytes) -> bytes:
    length, varint = len(data), b""
    while length > 127:
        varint, length = varint + bytes([length & 127 | 128]), length >> 7
    return bytes([tag]) + varint + bytes([length]) + data


GRAPHS = {
    "relative": lambda: external("secret"),
    "absolute": lambda: external("/etc/passwd"),
    "above": lambda: external("../secret"),
    "custom domain": custom_domain,
    "ConstantOfShape": lambda: of_constants("ConstantOfShape"),
    "RandomUniform": lambda: graph(
        [helper.make_node("RandomUniform", [], ["c"], shape=[2**18, 2**18]), relu()]
    ),
    "Expand": lambda: graph(
        [helper.make_node("Expand", [IMAGES, "size"], [LOGITS])],
        [numpy_helper.from_array(np.array([1, 3, 2**18, 2**18]), "size")],
    ),
    "Resize of constants": lambda: graph(
        [helper.make_node("Resize", ["x", "", "s"], ["c"], mode="linear"), relu()],
        [numpy_helper.from_array(np.zeros((1, 1, 8, 8), np.float32), "x"),
         numpy_helper.from_array(np.float32([1, 1, 2**15, 2**15]), "s")],
    ),
    "Concat of a shape": of_static_shape,
    "If": lambda: graph(
        [helper.make_node("If", [IMAGES], [LOGITS], then_branch=graph([relu()]).graph,
                          else_branch=graph([relu()]).graph)]
    ),
    "one axis": lambda: graph([relu()], outputs=[(LOGITS, ("n",))]),
    "no nodes": lambda: graph([]),
    "empty nodes": lambda: b"\x08\x08" + message(0x3A, b"\x0a\0" * 8_000_000),
    "empty outputs": lambda: b"\x08\x08" + message(0x3A, b"\x62\0" * 8_000_000),
    "empty metadata": lambda: b"\x08\x08" + b"\x72\0" * 8_000_000,
    "nothing": lambda: b"",
    "ORT's own form": lambda: b"\x08\1\x12\x04ORTM" + bytes(100),
    "text": lambda: b"ir_version: 8",
}  # fmt: skip


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs(tmp_path, kind):
    file, model = tmp_path / "x.onnx", GRAPHS[kind]()
    (tmp_path / "secret").write_bytes(bytes(64 * 64 * 4))
    file.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    outcome = contained(lambda: OnnxModel(str(file)))
    assert outcome.kind == "refused" and str(file) in outcome.text, outcome
    assert "std::bad_alloc" not in outcome.text and outcome.peak < MEMORY


def test_a_small_file_takes_a_small_part_of_the_address_space(tmp_path):
    """Of what the bound of its kind allows; or `ulimit -v` makes it a MemoryError."""
    file = tmp_path / "x.onnx"
    file.write_bytes(graph([relu()]).SerializeToString())
    outcome = contained(lambda: within(2**29, lambda: OnnxModel(str(file))))
    assert outcome.kind == "value", outcome


def within(more: int, work):
    limit(more)
    return work()


RUNS = {
    "Resize": lambda: graph(
        [helper.make_node("Resize", [IMAGES, "", "s"], [LOGITS], mode="linear",
                          coordinate_transformation_mode="half_pixel")],
        [numpy_helper.from_array(np.float32([1, 1, 2000, 2000]), "s")],
    ),
    "Concat": lambda: graph(
        [helper.make_node("Concat", [IMAGES] * 8, ["x1"], axis=2),
         *doubled("x", 12, 2)[1:], relu("x12")]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_what_a_graph_asks_for_while_it_runs(tmp_path, kind):
    """An image of 64x64 is segmented, or the file is refused."""
    file: Path = tmp_path / "x.onnx"
    file.write_bytes(RUNS[kind]().SerializeToString())
    image = np.zeros((1, 3, 64, 64), np.float32)
    outcome = contained(lambda: OnnxModel(str(file)).session.run([LOGITS], {IMAGES: image}))
    assert outcome.kind in ("refused", "value"), outcome
    assert outcome.peak < MEMORY
