"""Files as a stranger would make them, byte by byte."""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

from projects.SegFormer.model_utils.torch_files import LEGACY_MAGIC

# ---- Pickles, by their opcodes --------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(name: str, *arguments: bytes) -> bytes:
    return named(name) + b"(" + b"".join(arguments) + b"tR"


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def twice_nested(depth: int, join: bytes = b"\x86", base: bytes = b")") -> bytes:
    """A tuple that holds another twice, which holds another twice, and so on."""
    return base + b"".join(put(i) + get(i) + join for i in range(depth))


def storage(key: str, size: int, kind: str = "Float") -> bytes:
    return (
        b"("
        + text("storage")
        + named(f"torch.{kind}Storage")
        + text(key)
        + text("cpu")
        + (number(size) + b"tQ")
    )


def tensor(stored: bytes, shape, stride, offset: int = 0) -> bytes:
    """As torch._utils._rebuild_tensor_v2 takes it."""
    shape, stride = (b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (shape, stride))
    hooks = call("collections.OrderedDict")
    arguments = (stored, number(offset), shape, stride, b"\x89", hooks)
    return call("torch._utils._rebuild_tensor_v2", *arguments)


def mapping(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def finished(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


# ---- Torch files ----------------------------------------------------------------------------


def write_zip(path: Path, body: bytes, storages: dict[str, bytes] | None = None, **entries) -> Path:
    """A file of torch.save whose pickle is `body`; `entries` are (data, how packed) by name."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", finished(body))
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, (data, packing) in entries.items():
            archive.writestr(f"archive/{name}", data, packing)
    return path


def write_legacy(path: Path, body: bytes, storages: dict[str, np.ndarray] | None = None) -> Path:
    """The same in the form before PyTorch 1.6."""
    storages = storages or {}
    parts = [pickle.dumps(part, 2) for part in (LEGACY_MAGIC, 1001, {"little_endian": True})]
    parts += [finished(body), pickle.dumps([*storages], 2)]
    for values in storages.values():
        parts += [struct.pack("<q", values.size), values.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def write_libai(folder: Path, body: bytes) -> Path:
    """A folder of flow.save whose `pickled_data` has `body` as its data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pickled_data").write_bytes(finished(b"}" + text("data") + body + b"s"))
    return folder


def variable(name: str) -> bytes:
    """A tensor in a folder of flow.save."""
    return call("oneflow.Tensor") + b"}" + text("path") + text(name) + b"sb"


def write_variable(folder: Path, name: str, values: np.ndarray, meta: str | None = None) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "out").write_bytes(values.tobytes())
    dims = "".join(f" dim: {size}" for size in values.shape)
    meta = meta or f"shape {{{dims} }}\ndata_type: kFloat\n"
    (folder / name / "meta").write_text(meta)


# ---- Others ---------------------------------------------------------------------------------


def write_safetensors(path: Path, header: dict | bytes, data: bytes = b"") -> Path:
    if isinstance(header, dict):
        header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def write_json(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path
