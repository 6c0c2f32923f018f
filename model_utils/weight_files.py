"""Weight files, between disk and NumPy: safetensors, torch files, folders of LiBai's trainer."""

import json
import os
import reprlib
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from projects.SegFormer.model_utils.lazy_state import LazyState, is_shape
from projects.SegFormer.model_utils.oneflow_folders import load_oneflow
from projects.SegFormer.model_utils.safe_pickle import Refused
from projects.SegFormer.model_utils.torch_files import PICKLE, ZIP, is_torch, load_torch
from projects.SegFormer.model_utils.unwrapping import flatten
from projects.SegFormer.model_utils.weight_paths import FIRST_BYTES, find_weight_files, other_kind
from projects.SegFormer.modeling.bounds import HEADER_BYTES, TENSORS
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason

# Beside weights in LiBai's form: what was converted, and what a training saved.
SETTINGS_FILE, RECORD_FILE = "segformer.json", "checkpoint.json"

# The names in the header of a safetensors file.
SAFETENSORS_DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"},
        **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1"},
        **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?"},
    }.items()
}


def stored_tensors(path: str) -> dict:
    """The tensors at `path`, which are still in their files, by their keys.

    They have `shape`, `dtype` and `numpy()`. What contains them in a torch file or a folder of
    LiBai stands before their keys, as `flatten` has it.
    Raises InputError when there are none or they are broken.
    """
    tensors = {}
    for file in find_weight_files(path):
        with told_by_file(file):
            found = _open_file(file)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise InputError(f"{path} has {twice[0]} in two files, {file} and another")
        tensors |= found
    return tensors


def as_state(tensors: dict, path: str) -> LazyState:
    """`stored_tensors` of `path` as a state; floating point ones are read as float32.

    Raises InputError, now or while they are read, when one is no floating point number: quantised
    weights, say, are not what this project computes with.
    """
    for key, tensor in tensors.items():
        with told_by_file(path):
            dtype = tensor.dtype
            if dtype.kind != "f" and not key.endswith("num_batches_tracked"):
                raise InputError(f"{path}: {key} is of type {dtype.name}, expected floating point")

    def read():
        for key, tensor in tensors.items():
            with told_by_file(path):
                value = tensor.numpy()
            is_float = np.issubdtype(value.dtype, np.floating)
            yield key, value.astype(np.float32, copy=False) if is_float else value

    return LazyState({key: tuple(tensor.shape) for key, tensor in tensors.items()}, read)


def open_weights(path: str) -> LazyState:
    """All tensors at `path`, as they are named there. Raises InputError like the two above."""
    return as_state(stored_tensors(path), path)


def read_weights(path: str) -> dict[str, np.ndarray]:
    """All tensors at `path` at once. Raises InputError like `open_weights`."""
    return dict(open_weights(path).read())


def read_meta(path: str) -> dict:
    """What a torch file of mmsegmentation's trainer holds beside its weights, under `meta`."""
    files = find_weight_files(path)
    if len(files) > 1 or not is_torch(files[0]):
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
    except InputError as error:
        if file in str(error):
            raise
        raise InputError(f"cannot read weights from {file}: {error}") from error
    except (OSError, MemoryError) as error:
        raise InputError(f"cannot read weights from {file}: {reason(error)}") from error
    except Exception as error:  # broken files fail in many ways
        raise InputError(
            f"cannot read weights from {file}: {reason(error)}: it is cut off or damaged, "
            "download it again"
        ) from error


def _open_file(file: str) -> dict:
    """The tensors in a file, whose kind is told by what it holds and not by its name."""
    if os.path.isdir(file):
        return _flattened(file, load_oneflow(file))
    if not os.access(file, os.R_OK):
        raise InputError(f"no permission to read {file}")
    if os.path.getsize(file) == 0:
        raise InputError(f"{file} is empty: download it again")
    with open(file, "rb") as stream:
        start = stream.read(FIRST_BYTES)
    if start[8:9] == b"{":  # a header of JSON, behind eight bytes with its length
        return _open_safetensors(file)
    if not start.startswith(ZIP) and (other := other_kind(file, start)):
        raise InputError(f"{file} is {other}")
    if file.endswith(".safetensors") and not start.startswith((ZIP, PICKLE)):
        return _open_safetensors(file)  # which says what is wrong with it
    return _flattened(file, load_torch(file))


def _flattened(file: str, content) -> dict:
    tensors = flatten(content)
    if isinstance(content, dict) and "StructuredToParameterName@@" in content:
        raise InputError(f"{file} is {other_kind('.pdparams')}")
    if not tensors and content != {}:
        raise InputError(f"{file} holds no weights: expected a dict of tensors by name")
    return tensors


@dataclass(frozen=True)
class _SafeTensor:
    """A tensor that is still in its file. `kind`: its type in the header. `start`: in the file."""

    file: str
    kind: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def dtype(self) -> np.dtype:
        """Of its values as they are read."""
        if self.kind not in SAFETENSORS_DTYPES:
            raise InputError(f"a tensor in it is of type {self.kind}, expected floating point")
        return np.dtype(np.float32) if self.kind == "BF16" else SAFETENSORS_DTYPES[self.kind]

    def numpy(self) -> np.ndarray:
        dtype = SAFETENSORS_DTYPES[self.kind]
        count = (self.end - self.start) // dtype.itemsize
        value = np.fromfile(self.file, dtype, count, offset=self.start)
        if self.kind == "BF16":  # the upper half of a float32
            value = (value.astype(np.uint32) << 16).view(np.float32)
        return value.reshape(self.shape)


def _open_safetensors(file: str) -> dict:
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
    tensors = {}
    for key, entry in entries.items():
        if not is_shape(entry["shape"]):
            raise InputError(f"{key} in it is of shape {reprlib.repr(entry['shape'])}")
        places = (8 + header_size + offset for offset in entry["data_offsets"])
        tensors[key] = _SafeTensor(file, entry["dtype"], tuple(entry["shape"]), *places)
    return tensors
