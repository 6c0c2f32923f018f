"""Image files for tests of data sets."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from libai.config import LazyConfig, instantiate
from PIL import Image

from conftest import ROOT
from projects.SegFormer.dataset.segmentation import SegmentationDataset
from projects.SegFormer.modeling.errors import InputError


def save(array: np.ndarray, path: Path, **kwargs) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kwargs)


def noise(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tiff(bands: np.ndarray, planar=False, deflate=False, photometric=1, order="<", **tags) -> bytes:
    """A TIFF file of (H, W, C) whole or floating-point numbers; `tags` as t338=(2,)."""
    height, width, count = bands.shape
    values = bands.astype(bands.dtype.newbyteorder(order))
    planes = np.moveaxis(values, 2, 0) if planar else [values]
    strips = [np.ascontiguousarray(plane).tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    offsets = np.cumsum([8, *map(len, strips)])
    entries = {
        **{256: (width,), 257: (height,), 258: (8 * bands.itemsize,) * count},
        **{259: (8 if deflate else 1,), 262: (photometric,), 273: offsets[:-1], 277: (count,)},
        **{278: (height,), 279: [*map(len, strips)], 284: (2 if planar else 1,)},
        339: ({"u": 1, "i": 2, "f": 3}[bands.dtype.kind],) * count,
        **{int(tag[1:]): value for tag, value in tags.items()},
    }
    start = int(offsets[-1])
    end = start + 2 + 12 * len(entries) + 4
    directory, outside = struct.pack(order + "H", len(entries)), b""
    for tag, numbers in sorted(entries.items()):
        data = struct.pack(f"{order}{len(numbers)}I", *numbers)
        directory += struct.pack(order + "HHI", tag, 4, len(numbers))
        directory += data if len(data) == 4 else struct.pack(order + "I", end + len(outside))
        outside += data if len(data) > 4 else b""
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return header + b"".join(strips) + directory + bytes(4) + outside


def raises_line(match: str):
    """InputError in one line that matches."""
    return pytest.raises(InputError, match=r"\A(?-s:.*)" + match + r"(?-s:.*)\Z")


def config_datasets(name: str, root: Path) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The data sets of configs/data/{name}.py for training and for evaluation, found in `root`."""
    config = LazyConfig.load(str(ROOT / f"configs/data/{name}.py"))
    config.data.root = str(root)
    config.model = dict(cfg=dict(num_channels=3, ignore_index=255))
    dataloader = config.dataloader
    return instantiate(dataloader.train.dataset), instantiate(dataloader.test[0].dataset)
