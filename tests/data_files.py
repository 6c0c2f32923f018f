"""Image files for tests of data sets."""

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


def raises_line(match: str):
    """InputError in one line that matches."""
    return pytest.raises(InputError, match=r"\A(?-s:.*)" + match + r"(?-s:.*)\Z")


def config_datasets(name: str, root: Path) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The data sets of configs/data/{name}.py for training and for evaluation, found in `root`."""
    config = LazyConfig.load(str(ROOT / f"configs/data/{name}.py"))
    config.data.root = str(root)
    dataloader = config.dataloader
    return instantiate(dataloader.train.dataset), instantiate(dataloader.test[0].dataset)
