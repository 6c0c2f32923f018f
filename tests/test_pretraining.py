"""ImageNet pre-training as a person runs it, and what fine-tuning makes of its checkpoint."""

import json
from pathlib import Path

import cv2
import numpy as np
import oneflow as flow
import pytest
from libai.config import instantiate

from conftest import CONFIG, TINY_MODEL, losses, run_here, tiny_run
from projects.SegFormer.engine.checkpoint import read_record
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.evaluation.classifier import Classifier
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.segf_loader import SegFLoaderLiBai
from projects.SegFormer.model_utils.weight_files import read_weights
from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification

pytestmark = pytest.mark.slow

PRETRAINING = "configs/segformer_imgnet1k_pretrain.py"
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


@pytest.fixture(scope="module")
def pretrained(pattern_images, tmp_path_factory) -> Path:
    """The output folder of the recipe, its augmentation, mixing and drop path on, in small."""
    output = tmp_path_factory.mktemp("pretrained")
    process = run_here(
        *("tools/train_net.py", "--config-file", PRETRAINING, *TINY_ENCODER),
        f"data.root={pattern_images}",
        f"cfg.num_classes={len(PATTERNS)}",
        f"dataloader.train.dataset.transforms.0.size={SIDE}",
        "dataloader.test.0.dataset.transforms.0.size=72",
        f"dataloader.test.0.dataset.transforms.1.size={SIDE}",
        "dataloader.train.num_workers=0",
        "dataloader.test.0.num_workers=0",
        f"train.output_dir={output}",
        "train.global_batch_size=16",
        "train.test_micro_batch_size=16",
        "train.train_iter=250",
        "train.evaluation.eval_period=50",
        "optim.params.lr=8e-3",
    )
    assert process.returncode == 0, process.stderr
    return output


def test_classifier_in_a_program_of_ones_own(pretrained, pattern_images):
    """It is right as often as the evaluation of the training says, and knows the classes."""
    classifier = Classifier(pretrained / "model_final")
    files = sorted((pattern_images / "val").glob("*/*.png"))
    best = [result.top(1)[0][0] for result in classifier(files)]
    right = [name == file.parent.name for name, file in zip(best, files)]
    truth = json.loads((pretrained / "evaluation.json").read_text())
    assert len(right) == 32 and 100 * np.mean(right) == pytest.approx(truth["top1"])
    assert classifier.classes == sorted(PATTERNS)


def test_accuracy(pretrained):
    """From 25% by chance."""
    result = json.loads((pretrained / "evaluation.json").read_text())
    assert list(result["Acc"]) == sorted(PATTERNS)
    assert result["top1"] >= 90 and result["top5"] == 100
    assert read_record(pretrained / "model_best")["top1"] >= result["top1"]


def checkpoint_of(pretrained: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The best checkpoint and its tensors by name."""
    path = str(pretrained / "model_best")
    return path, read_weights(path)


def test_encoder_of_a_fine_tuning_is_that_of_the_checkpoint(pretrained, folder_data, tmp_path):
    path, saved = checkpoint_of(pretrained)
    states = {}
    for start in ("null", path):
        overrides = tiny_run(folder_data, tmp_path, f"cfg.pretrained_model_path={start}")
        flow.manual_seed(0)
        states[start] = state_of(instantiate(load_config(CONFIG, overrides).model))
    encoder = {name for name in states[path] if name.startswith("segformer.")}
    assert encoder == set(saved) - {"head.weight", "head.bias"}
    for name, value in states[path].items():
        expected = saved[name] if name in encoder else states["null"][name]
        assert np.array_equal(value, expected), name
    # Or the comparison would hold for a checkpoint that is not read.
    changed = [name for name in encoder if (saved[name] != states["null"][name]).any()]
    assert len(changed) == len(encoder)


def test_fine_tuning(pretrained, folder_data, tmp_path):
    path, _ = checkpoint_of(pretrained)
    more = (
        f"cfg.pretrained_model_path={path}",
        "train.train_iter=24",
        "train.evaluation.eval_period=24",
        "optim.params.lr=8e-3",
    )
    process = run_here(
        "tools/train_net.py", "--config-file", CONFIG, *tiny_run(folder_data, tmp_path, *more)
    )
    assert process.returncode == 0, process.stderr
    values = [loss for _, loss in sorted(losses(tmp_path).items())]
    assert len(values) == 24 and np.mean(values[-4:]) < 0.7 * np.mean(values[:4])
    assert json.loads((tmp_path / "evaluation.json").read_text())["mIoU"] > 30


def test_checkpoint_as_a_classifier(pretrained):
    path, saved = checkpoint_of(pretrained)
    settings = load_config(PRETRAINING, [*TINY_ENCODER, "cfg.num_classes=4"]).model.cfg
    model = SegFLoaderLiBai(SegformerForImageClassification, settings, path).load()
    state = state_of(model)
    assert set(state) == set(saved) and not model.training
    for name, value in state.items():
        assert np.array_equal(value, saved[name]), name
