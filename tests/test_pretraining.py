"""ImageNet pre-training as a person runs it, and what fine-tuning makes of its checkpoint."""

import json
from pathlib import Path

import cv2
import numpy as np
import oneflow as flow
import pytest
from libai.config import instantiate

from conftest import CONFIG, TINY_MODEL, losses, run_tool, tiny_run
from projects.SegFormer.engine.checkpoint import read_record
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.model_utils.segf_loader import SegFLoaderLiBai
from projects.SegFormer.model_utils.weight_files import read_weights
from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification

SIDE = 64
TINY_ENCODER = tuple(word for word in TINY_MODEL if "decoder" not in word)


# Whether a pixel is in front, by its row and column counted from somewhere near the middle.
PATTERNS = {
    "checks": lambda rows, columns: (rows // 8 + columns // 8) % 2 == 0,
    "columns": lambda rows, columns: columns // 8 % 2 == 0,
    "plain": lambda rows, columns: rows < -SIDE,
    "rows": lambda rows, columns: rows // 8 % 2 == 0,
}


@pytest.fixture(scope="module")
def pattern_images(tmp_path_factory) -> Path:
    """A folder a class, by pattern and not by colour: 24 images for training, 8 for validation."""
    root = tmp_path_factory.mktemp("patterns")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for name, pattern in PATTERNS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                middle = rng.integers(SIDE // 2 - 10, SIDE // 2 + 10, (2, 1, 1))
                is_front = pattern(*(np.indices((SIDE, SIDE)) - middle))
                colours = rng.integers(0, 100, 3) + np.array([[0, 0, 0], [120, 120, 120]])
                image = colours[is_front.astype(int)] + rng.normal(0, 10, (SIDE, SIDE, 3))
                cv2.imwrite(str(folder / f"{index:02d}.png"), image.clip(0, 255).astype(np.uint8))
    return root
