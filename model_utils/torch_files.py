"""Files of torch.save, read and written without PyTorch: as data, and one tensor at a time.

Since PyTorch 1.6 such a file is a zip archive: `data.pkl`, a pickle, and each storage uncompressed
as `data/KEY`. Before that it was pickles one after the other (a magic number, the protocol, the
system, the content, the keys of the storages), and then the storages. (torch/serialization.py)
"""

import collections
import io
import os
import pickle
import reprlib
import struct
import zipfile
from dataclasses import dataclass
from math import prod

import numpy as np

from projects.SegFormer.model_utils.lazy_state import is_shape
from projects.SegFormer.model_utils.safe_pickle import Record, load_pickle
from projects.SegFormer.modeling.bounds import (
    PICKLE_BYTES,
    TENSOR_BYTES_OF_A_FILE,
    TENSORS,
)
from projects.SegFormer.modeling.errors import InputError

ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # first bytes
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
CHUNK = 2**20

# By the first word of the storage's class; bfloat16 is the upper half of a float32.
STORAGE_DTYPES = {
    **{"Double": "<f8", "Float": "<f4", "Half": "<f2", "BFloat16": "<u2"},
    **{"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "<i1", "Byte": "<u1", "Bool": "?"},
    **{"ComplexDouble": "<c16", "ComplexFloat": "<c8"},
}
# Names of PyTorch that stand for themselves: classes of storages and tensors, dtypes.
RECORDS = (
    *(f"torch.{kind}Storage" for kind in STORAGE_DTYPES),
    *(f"torch.cuda.{kind}Storage" for kind in STORAGE_DTYPES),
    *("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"),
    *("torch.float64", "torch.float32", "torch.float16", "torch.bfloat16", "torch.int64"),
    *("torch.int32", "torch.int16", "torch.int8", "torch.uint8", "torch.bool", "torch.strided"),
)
BIG_ENDIAN = "its numbers are big-endian: save it on a little-endian machine"


@dataclass
class Storage:
    """A run of numbers in the file: the word for its dtype, number of elements, where it begins."""

    kind: str
    size: int
    start: int = 0

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(STORAGE_DTYPES[self.kind])


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file. `offset` and `stride` count elements of its storage."""

    file: str
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Of its values as they are read."""
        return np.dtype(np.float32) if self.storage.kind == "BFloat16" else self.storage.dtype

    @property
    def span(self) -> int:
        """Elements of the storage from the tensor's first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride))

    def numpy(self) -> np.ndarray:
        """Its values; those of bfloat16 as float32."""
        dtype = self.storage.dtype
        start = self.storage.start + self.offset * dtype.itemsize
        values = np.fromfile(self.file, dtype, self.span, offset=start)
        if len(values) != self.span:
            raise InputError("it is cut off")
        strides = [step * dtype.itemsize for step in self.stride]
        values = np.lib.stride_tricks.as_strided(values, self.shape, strides)
        if self.storage.kind == "BFloat16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return np.array(values, order="C")


def load_torch(file: str):
    """What torch.load would give, with a StoredTensor in the place of each tensor.

    Raises InputError, or another exception for a file that is broken.
    """
    with open(file, "rb") as stream:
        start = stream.read(4)
        if start == ZIP:
            return _load_zip(file)
        stream.seek(0)
        if start.startswith(PICKLE):
            return _load_legacy(file, stream)
    raise InputError(
        f"{file} is no PyTorch file, it begins with {start}: expected what torch.save writes, or "
        "safetensors"
    )


def is_torch(path: str) -> bool:
    """Whether `load_torch` is for it, by its first bytes."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as stream:
        start = stream.read(9)
    return start.startswith((ZIP, PICKLE)) and start[8:] != b"{"


def _load_zip(file: str):
    with zipfile.ZipFile(file) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "constants.pkl" in names:
            raise InputError(
                "it is refused: it is a TorchScript archive, a program and not weights. Save the "
                "state_dict of the model that it was made of"
            )
        if "data.pkl" not in names:
            if any(name.endswith(".npy") for name in archive.namelist()):
                raise InputError("it holds arrays of NumPy: write them as safetensors")
            raise InputError("it is a zip archive without PyTorch's data.pkl; unpack it first")
        if "byteorder" in names and _start(archive, names["byteorder"], 10) != b"little":
            raise InputError(BIG_ENDIAN)
        content = _Content(file)
        pickled = _start(archive, names["data.pkl"], PICKLE_BYTES + 1)
        value = content.load(io.BytesIO(pickled))
        for key, storage in content.storages.items():
            entry = archive.getinfo(names[f"data/{key}"])
            size = storage.size * storage.dtype.itemsize
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size:
                raise InputError(f"data/{key} in it is compressed, or has not {size} bytes")
            _check_crc(archive, entry)
            storage.start = _data_start(archive, entry)
    return value


def _start(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    """So many bytes of an entry. zipfile unpacks others than deflated ones without a bound."""
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{name} in it is packed in an unusual way: unzip it and zip it again")
    with archive.open(name) as stream:
        return stream.read(size)


def _check_crc(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read it through: zipfile compares the sum at its end. PyTorch may have left it out, as 0."""
    if entry.CRC:
        with archive.open(entry) as stream:
            while stream.read(CHUNK):
                pass


def _data_start(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Where an entry's data begin: behind its own header, name and extra field."""
    archive.fp.seek(entry.header_offset + 26)
    name, extra = struct.unpack("<HH", archive.fp.read(4))
    return entry.header_offset + 30 + name + extra


def _load_legacy(file: str, stream):
    first = load_pickle(stream)
    if first != LEGACY_MAGIC:  # a pickle that no torch.save wrote, of arrays
        return first
    load_pickle(stream)  # the protocol
    system = load_pickle(stream)
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise InputError(BIG_ENDIAN)
    content = _Content(file)
    value = content.load(stream)
    keys = load_pickle(stream)
    if sorted(keys) != sorted(content.storages):
        raise InputError("it has not the storages that its tensors are in")
    for key in keys:
        storage = content.storages[key]
        (size,) = struct.unpack("<q", stream.read(8))
        if size != storage.size:
            raise InputError(f"its storage {key} has not {storage.size} elements")
        storage.start = stream.tell()
        stream.seek(storage.start + size * storage.dtype.itemsize)
    if stream.tell() > os.path.getsize(file):
        raise InputError("it is cut off")
    return value


class _Content:
    """The content of a torch file as it is unpickled, with the storages that it names."""

    def __init__(self, file: str):
        self.file, self.storages = file, {}
        self._left = TENSOR_BYTES_OF_A_FILE * os.path.getsize(file)
        self._tensors = 0

    def load(self, stream):
        named = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
            "torch._tensor._rebuild_from_type_v2": self._typed,
        }
        return load_pickle(stream, named, self._storage, RECORDS)

    def _storage(self, reference) -> Storage:
        """From ("storage", class, key, device, number of elements, of a view None)."""
        word, kind, key, _, size, *view = reference
        kind = kind.name.rpartition(".")[2].removesuffix("Storage")
        if not isinstance(word, str) or word != "storage" or kind not in STORAGE_DTYPES:
            raise InputError(f"it has a storage of class {kind}; expected one of numbers")
        if not isinstance(key, str) or not is_shape([size]) or any(map(bool, view)):
            raise InputError(f"it has a storage of {reprlib.repr(size)} elements")
        storage = self.storages.setdefault(key, Storage(kind, size))
        if (storage.kind, storage.size) != (kind, size):
            raise InputError(f"its storage {key} is described in two ways")
        return storage

    def _tensor(self, storage: Storage, offset, shape, stride, *_) -> StoredTensor:
        if not isinstance(storage, Storage):
            raise InputError("it has a tensor without a storage")
        are_counts = is_shape(shape) and all(is_shape([step]) for step in (offset, *stride))
        if not are_counts or len(shape) != len(stride):
            raise InputError(f"it has a tensor of shape {reprlib.repr(shape)}")
        tensor = StoredTensor(self.file, storage, offset, tuple(shape), tuple(stride))
        if offset + tensor.span > storage.size or prod(shape) > storage.size:
            raise InputError(f"it has a tensor of shape {shape} in {storage.size} elements")
        self._tensors += 1
        self._left -= max(tensor.span, prod(shape)) * storage.dtype.itemsize
        if self._left < 0 or self._tensors > TENSORS:
            raise InputError("its tensors are more than the file can hold")
        return tensor

    def _typed(self, build, _, arguments, *state):
        """A tensor of a class of its own: what torch._tensor._rebuild_from_type_v2 gives."""
        if not isinstance(build, Record) or not build.name.startswith(
            "torch._utils._rebuild_tensor"
        ):
            raise InputError("it has a tensor of an unknown kind")
        return self._tensor(*arguments)


# ---- Writing ------------------------------------------------------------------------------------


def save_torch(file: str, content) -> None:
    """Write what torch.load gives back as `content`, with a tensor for each float32 or int64 array.

    Raises OSError when the disk does not take it.
    """
    serialised = io.BytesIO()
    pickler = _Pickler(serialised)
    pickler.dump(content)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", serialised.getvalue())
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(pickler.arrays):
            with archive.open(f"archive/data/{key}", "w", force_zip64=True) as entry:
                entry.write(array.tobytes())
        archive.writestr("archive/version", "3\n")


@dataclass(frozen=True)
class _Name:
    """A name in PyTorch, which is written and never looked up."""

    module: str
    attribute: str

    def __call__(self):
        raise TypeError("a name alone")  # pickle wants what it writes a call of to be callable


class _Pickler(pickle._Pickler):
    """Writes arrays as torch.save writes tensors; keeps them, in the order of their keys."""

    dispatch = pickle._Pickler.dispatch.copy()

    def __init__(self, stream):
        super().__init__(stream, protocol=2)
        self.arrays = []

    def save_name(self, name: _Name):
        self.write(pickle.GLOBAL + f"{name.module}\n{name.attribute}\n".encode())
        self.memoize(name)

    dispatch[_Name] = save_name

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        return (
            "storage",
            _Name("torch", f"{value.kind}Storage"),
            str(value.start),
            "cpu",
            value.size,
        )

    def reducer_override(self, value):
        if not isinstance(value, np.ndarray):
            return NotImplemented
        kind = {"<f4": "Float", "<i8": "Long"}[value.dtype.str]
        storage = Storage(kind, value.size, len(self.arrays))
        self.arrays.append(value)
        stride = [prod(value.shape[axis + 1 :]) for axis in range(value.ndim)]
        hooks = collections.OrderedDict()
        arguments = (storage, 0, value.shape, tuple(stride), False, hooks)
        return _Name("torch._utils", "_rebuild_tensor_v2"), arguments
