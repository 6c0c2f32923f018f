"""Folders of flow.save, read as data: `pickled_data`, and of each tensor a folder beside it.

flow.load unpickles whatever it finds. Here the pickle is read by `safe_pickle`, and no name in it
leads out of the folder.
"""

import io
import os
import reprlib
from math import prod

import numpy as np
import oneflow.core.framework.variable_meta_info_pb2 as variable_meta_info
from google.protobuf import text_format
from oneflow.core.common.data_type_pb2 import DataType

from projects.SegFormer.model_utils.lazy_state import is_shape
from projects.SegFormer.model_utils.safe_pickle import Refused, load_pickle
from projects.SegFormer.modeling.bounds import (
    META_BYTES,
    PICKLE_BYTES,
    TENSOR_BYTES_OF_A_FILE,
    TENSORS,
)
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes, reason

PICKLE = "pickled_data"
DTYPES = {
    **{"kFloat": "<f4", "kDouble": "<f8", "kFloat16": "<f2", "kBool": "?"},
    **{"kInt8": "<i1", "kInt32": "<i4", "kInt64": "<i8", "kUInt8": "<u1"},
}


class StoredVariable:
    """A tensor that is still in its file: its dtype and shape, and `numpy()`."""

    def __init__(self, folder: str):
        self.folder = folder

    def build(self, state: dict) -> None:
        """Find it, by the state that flow.save gave it. Raises InputError unless it is whole."""
        name = state["path"]
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".", ".."):
            raise InputError(f"it names the tensor {reprlib.repr(name)}: expected a folder in it")
        self.file, meta_file = (os.path.join(self.folder, name, part) for part in ("out", "meta"))
        for file in (self.file, meta_file):
            if not os.path.realpath(file).startswith(os.path.realpath(self.folder) + os.sep):
                raise InputError(f"{name} in it is a link that leads out of it")
        if not os.path.isfile(self.file):
            raise InputError(f"it is not whole: {name} in it has no values")
        meta = variable_meta_info.VariableMetaInfo()
        try:
            text_format.Parse(read_bytes(meta_file, META_BYTES).decode(), meta)
            self.dtype = np.dtype(DTYPES[DataType.Name(meta.data_type)])
        except (KeyError, UnicodeDecodeError, text_format.ParseError) as error:
            raise InputError(
                f"it is not whole: the description of {name} in it is damaged"
            ) from error
        self.shape = tuple(meta.shape.dim)
        self.status = os.stat(self.file)
        size = self.status.st_size
        if not is_shape(self.shape) or prod(self.shape) * self.dtype.itemsize != size:
            raise InputError(
                f"it is not whole: {name} in it is cut off, {size} bytes for shape {self.shape}"
            )

    def numpy(self) -> np.ndarray:
        return np.fromfile(self.file, self.dtype).reshape(self.shape)


def load_oneflow(folder: str):
    """What flow.load would give, with a StoredVariable in the place of each tensor.

    Raises InputError that names the folder.
    """
    read = []

    def tensor() -> StoredVariable:
        read.append(StoredVariable(folder))
        if len(read) > TENSORS:
            raise InputError(f"it has more than {TENSORS:,} tensors")
        return read[-1]

    try:
        pickled = io.BytesIO(read_bytes(os.path.join(folder, PICKLE), PICKLE_BYTES))
        content = load_pickle(pickled, {"oneflow.Tensor": tensor, "oneflow.nn.Parameter": tensor})
        sizes = [tensor.status.st_size for tensor in read]
        once = {tensor.status.st_ino: tensor.status.st_size for tensor in read}
        if sum(sizes) > TENSOR_BYTES_OF_A_FILE * sum(once.values()):
            raise InputError("it names the same tensors too often")
        return content["data"]
    except Refused as error:
        raise InputError(f"the checkpoint {folder} is refused: {error}") from error
    except InputError as error:
        raise InputError(f"cannot read the checkpoint {folder}: {error}") from error
    except Exception as error:  # a broken pickle fails in many ways
        raise InputError(
            f"the checkpoint {folder} is not whole: {PICKLE}: {reason(error)}"
        ) from error
