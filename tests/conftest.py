"""What several tests use: a small data set on disk, a small model, and a run of the tools."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# A network of the same kind with few channels, as overrides of any segmentation config.
TINY_MODEL = (
    "cfg.hidden_sizes=[8,16,24,32]",
    "cfg.num_attention_heads=[1,2,3,4]",
    "cfg.depths=[1,1,1,1]",
    "cfg.decoder_hidden_size=16",
)
CLASSES = ("disc", "field", "sky")
COLOURS = np.array([[200, 30, 30], [40, 160, 60], [90, 140, 220]], np.uint8)


@pytest.fixture(scope="session")
def folder_data(tmp_path_factory) -> Path:
    """A folder data set of three classes: 12 images of 80x96 for training, 5 for validation."""
    root = tmp_path_factory.mktemp("folder_data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            label = np.full((80, 96), 2, np.uint8)
            label[rng.integers(30, 60) :] = 1
            centre = (int(rng.integers(15, 80)), int(rng.integers(15, 65)))
            cv2.circle(label, centre, int(rng.integers(8, 16)), 0, -1)
            noise = rng.normal(0, 12, (80, 96, 3))
            image = (COLOURS[label] + noise).clip(0, 255).astype(np.uint8)
            label[0] = 255
            cv2.imwrite(str(root / "images" / split / f"{index:02d}.png"), image[..., ::-1])
            cv2.imwrite(str(root / "annotations" / split / f"{index:02d}.png"), label)
    return root


def tiny_run(folder_data: Path, output: Path, *more: str) -> list[str]:
    """Overrides of configs/segformer_camvid.py for a training of seconds on `folder_data`."""
    return [
        *TINY_MODEL,
        f"data.root={folder_data}",
        f"train.output_dir={output}",
        "cfg.num_classes=3",
        f"dataloader.train.dataset.classes=[{','.join(CLASSES)}]",
        f"dataloader.test.0.dataset.classes=[{','.join(CLASSES)}]",
        "dataloader.train.dataset.palette=null",
        "dataloader.test.0.dataset.palette=null",
        "dataloader.train.dataset.transforms.0.size=[80,96]",
        "dataloader.train.dataset.transforms.1.size=[64,64]",
        "dataloader.train.dataset.transforms.5.size=[64,64]",
        "dataloader.train.num_workers=0",
        "dataloader.test.0.num_workers=0",
        "train.log_period=1",
        *more,
    ]


def run_tool(
    *command: str, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess:
    """Run `python tools/...` from the repository's root; its output as text."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
