"""Weight files, between disk and NumPy: safetensors, torch files, folders of LiBai's trainer."""

import json
import os
import reprlib
from contextlib import contextmanager

import numpy as np

from projects.SegFormer.model_utils.lazy_state import LazyState, is_shape
from projects.SegFormer.model_utils.oneflow_folders import load_oneflow
from projects.SegFormer.model_utils.safe_pickle import Array, Refused
from projects.SegFormer.model_utils.torch_files import StoredTensor, load_torch
from projects.SegFormer.modeling.bounds import HEADER_BYTES, TENSORS
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_json, reason

# A folder is looked through in this order; then for a single file that ends on .pth.
FILE_NAMES = ("model.safetensors", "pytorch_model.bin")
LIBAI_FOLDER = "model"  # in a checkpoint of LiBai's trainer, beside optimizer and lr_scheduler
SETTINGS_FILE = "segformer.json"  # beside it in a checkpoint that was converted

# The names in the header of a safetensors file.
SAFETENSORS_DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"},
        **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1"},
        **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?"},
    }.items()
}

SAFETENSORS_FLOATS = ("F64", "F32", "F16", "BF16")


def find_weight_files(path: str) -> list[str]:
    """The weight files at `path`: itself, or what a folder holds, all its shards if sharded.

    A folder of LiBai's trainer counts as one file. Raises InputError when there is none, when
    there are several to choose from, or when an index names a shard that is missing.
    """
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise InputError(f"no weights at {path}: neither a file nor a folder")
    for folder in (path, os.path.join(path, LIBAI_FOLDER)):
        if os.path.isfile(os.path.join(folder, "pickled_data")):
            return [folder]
    for name in FILE_NAMES:
        file = os.path.join(path, name)
        if os.path.isfile(file):
            return [file]
        if os.path.isfile(file + ".index.json"):
            return _shards(file + ".index.json")
    try:
        files = sorted(name for name in os.listdir(path) if name.endswith(".pth"))
    except OSError as error:
        raise InputError(f"cannot read the folder {path}: {error.strerror}") from error
    if len(files) > 1:
        raise InputError(f"{path} holds {', '.join(files)}: say which, by the path of the file")
    if not files:
        raise InputError(
            f"no weights in {path}: expected {', '.join(FILE_NAMES)}, one file that ends on .pth, "
            f"or a checkpoint of LiBai's trainer with its folder `{LIBAI_FOLDER}`"
        )
    return [os.path.join(path, files[0])]


def _shards(index: str) -> list[str]:
    """The files that an index names: file names beside it, nothing elsewhere."""
    weight_map = read_json(index, "weight_map")["weight_map"]
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise InputError(f"{index} has a weight_map that names no files: download it again")
    files = []
    for name in sorted(set(names)):
        files.append(os.path.join(os.path.dirname(index), name))
        if os.path.basename(name) != name:
            raise InputError(f"{index} names {name}: expected the names of files beside it")
        if not os.path.isfile(files[-1]):
            raise InputError(f"{index} names {name}, which is not there: download it as well")
    return files


def open_weights(path: str) -> LazyState:
    """The tensors at `path`; floating point ones are read as float32.

    Raises InputError, now or while they are read, when there are none or they are broken.
    """
    states = {}
    shapes: dict[str, tuple] = {}
    for file in find_weight_files(path):
        with told_by_file(file):
            states[file] = _open_file(file)
        twice = sorted(shapes.keys() & states[file].shapes.keys())
        if twice:
            raise InputError(f"{path} has {twice[0]} in two files, {file} and another")
        shapes |= states[file].shapes

    def read():
        for file, state in states.items():
            with told_by_file(file):
                for key, value in state.read():
                    is_float = np.issubdtype(value.dtype, np.floating)
                    yield key, value.astype(np.float32, copy=False) if is_float else value

    return LazyState(shapes, read)


def read_weights(path: str) -> dict[str, np.ndarray]:
    """All tensors at `path` at once. Raises InputError like `open_weights`."""
    return dict(open_weights(path).read())


def read_meta(path: str) -> dict:
    """What a torch file of mmsegmentation's trainer holds beside its weights, under `meta`."""
    files = find_weight_files(path)
    if len(files) > 1 or os.path.isdir(files[0]) or files[0].endswith(".safetensors"):
        return {}
    with told_by_file(files[0]):
        content = load_torch(files[0])
    meta = content.get("meta") if isinstance(content, dict) else None
    return meta if isinstance(meta, dict) else {}


@contextmanager
def told_by_file(file: str):
    """Whatever goes wrong within is an InputError that names the file."""
    try:
        yield
    except Refused as error:
        raise InputError(
            f"{file} is refused: {error}. Save its state_dict alone, or as .safetensors"
        ) from error
    except Exception as error:  # broken files fail in many ways
        text = str(error) if isinstance(error, InputError) else reason(error)
        if file in text:
            raise InputError(text) from error
        raise InputError(f"cannot read weights from {file}: {text}") from error


def _open_file(file: str) -> LazyState:
    if os.path.isdir(file):
        return _open_oneflow(file)
    if not os.access(file, os.R_OK):
        raise InputError(f"no permission to read {file}")
    if os.path.getsize(file) == 0:
        raise InputError(f"{file} is empty: download it again")
    return _open_safetensors(file) if file.endswith(".safetensors") else _open_torch(file)


def _check_float(file: str, key: str, dtype: str, is_float: bool) -> None:
    """Quantised weights, say, are not what this project computes with."""
    if not is_float and not key.endswith("num_batches_tracked"):
        raise InputError(f"{file}: {key} is of type {dtype}, expected floating point")


def _open_safetensors(file: str) -> LazyState:
    """The library checks the file, and has it mapped while it is open; every page that was read
    counts as memory of this process until then. So tensors are read here, by their offsets.
    """
    from safetensors import SafetensorError, safe_open

    with open(file, "rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        if HEADER_BYTES < header_size < os.path.getsize(file):
            raise InputError(f"its header has {header_size:,} bytes, more than {HEADER_BYTES:,}")
    try:
        with safe_open(file, "numpy"), open(file, "rb") as stream:
            stream.seek(8)
            entries = json.loads(stream.read(header_size))
    except SafetensorError as error:
        raise InputError(
            f"{file} is no whole safetensors file ({error}): download it again"
        ) from error
    entries.pop("__metadata__", None)
    if len(entries) > TENSORS:
        raise InputError(f"it has {len(entries):,} tensors, more than {TENSORS:,}")
    for key, entry in entries.items():
        if not is_shape(entry["shape"]):
            raise InputError(f"{key} in it is of shape {reprlib.repr(entry['shape'])}")
        _check_float(file, key, entry["dtype"], entry["dtype"] in SAFETENSORS_FLOATS)

    def read():
        for key, entry in entries.items():
            start, end = entry["data_offsets"]
            dtype = SAFETENSORS_DTYPES[entry["dtype"]]
            count = (end - start) // dtype.itemsize
            value = np.fromfile(file, dtype, count, offset=8 + header_size + start)
            if entry["dtype"] == "BF16":  # the upper half of a float32
                value = (value.astype(np.uint32) << 16).view(np.float32)
            yield key, value.reshape(entry["shape"])

    return LazyState({key: tuple(entry["shape"]) for key, entry in entries.items()}, read)


def _open_torch(file: str) -> LazyState:
    state = load_torch(file)
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, (StoredTensor, Array))
        for key, value in state.items()
    ):
        raise InputError(f"{file} holds no weights: expected a dict of tensors by name")
    for key, value in state.items():
        _check_float(file, key, value.dtype.name, value.dtype.kind == "f")

    def read():
        for key, value in state.items():
            yield key, value.numpy()

    return LazyState({key: value.shape for key, value in state.items()}, read)


def _open_oneflow(folder: str) -> LazyState:
    """What flow.save wrote to `folder`."""
    tensors = load_oneflow(folder)
    if not isinstance(tensors, dict) or not all(hasattr(t, "folder") for t in tensors.values()):
        raise InputError(f"{folder} holds no weights: expected tensors by name")
    for key, tensor in tensors.items():
        _check_float(folder, key, tensor.dtype.name, tensor.dtype.kind == "f")

    def read():
        for key, tensor in tensors.items():
            yield key, tensor.numpy()

    return LazyState({key: tensor.shape for key, tensor in tensors.items()}, read)
