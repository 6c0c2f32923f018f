"""The evaluation's figures against cityscapesScripts' and torchmetrics' on random maps."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from conftest import run_tool
from projects.SegFormer.dataset.cityscapes import CATEGORIES, CLASSES, TRAIN_IDS
from projects.SegFormer.evaluation.mean_iou import MeanIoUEvaluator

IDS = range(34)


def blocks(rng, ids, height=64, width=128, cell=8):
    """A label map of cells, each of one id."""
    cells = rng.choice(ids, (height // cell, width // cell)).astype(np.uint8)
    return cells.repeat(cell, 0).repeat(cell, 1)


@pytest.fixture(scope="module")
def cityscapes_files(tmp_path_factory):
    """Label and prediction PNGs in Cityscapes' names and ids, and the maps themselves.

    Labels hold all ids, also those of no training class; predictions too, as a network's that was
    trained on all ids. One class is in no label, one nowhere.
    """
    root = tmp_path_factory.mktemp("cityscapes")
    rng = np.random.default_rng(0)
    in_labels = [i for i in IDS if i not in (17, 31)]
    in_predictions = [i for i in IDS if i != 31]
    pairs = []
    for index in range(6):
        label = blocks(rng, in_labels)
        prediction = np.where(
            rng.random(label.shape) < 0.6, label, blocks(rng, in_predictions, cell=4)
        ).astype(np.uint8)
        name = f"teststadt_{index:06d}_000019"
        (root / "gtFine/val/teststadt").mkdir(parents=True, exist_ok=True)
        (root / "results").mkdir(exist_ok=True)
        Image.fromarray(label).save(root / f"gtFine/val/teststadt/{name}_gtFine_labelIds.png")
        Image.fromarray(prediction).save(root / f"results/{name}_leftImg8bit.png")
        pairs.append((prediction, label))
    return root, pairs


def test_class_and_category_iou_are_cityscapesscripts(cityscapes_files, tmp_path):
    root, pairs = cityscapes_files
    script = (
        "import sys\n"
        "from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official\n"
        f"official.args.exportFile = {str(tmp_path / 'official.json')!r}\n"
        "official.args.evalInstLevelScore = False\n"
        "official.main()\n"
    )
    environment = dict(
        CITYSCAPES_DATASET=str(root), CITYSCAPES_RESULTS=str(root / "results"), PYTHONPATH=""
    )
    process = run_tool("-c", script, **environment)
    assert process.returncode == 0, process.stdout + process.stderr
    official = json.loads((tmp_path / "official.json").read_text())

    evaluator = MeanIoUEvaluator(CLASSES, categories=CATEGORIES)
    for prediction, label in pairs:
        evaluator.update(TRAIN_IDS[prediction], TRAIN_IDS[label])
    result = evaluator.evaluate()

    for ours, theirs in (("IoU", "classScores"), ("category_IoU", "categoryScores")):
        for name, value in result[ours].items():
            expected = official[theirs][name]
            if value is None:
                assert np.isnan(expected), name
            else:
                assert value / 100 == pytest.approx(expected, abs=1e-6), name
    assert result["IoU"]["train"] is None
    assert result["mIoU"] / 100 == pytest.approx(official["averageScoreClasses"], abs=1e-6)
    assert result["category_mIoU"] / 100 == pytest.approx(
        official["averageScoreCategories"], abs=1e-6
    )
    assert len(result["category_IoU"]) == 7


@pytest.mark.parametrize("seed", range(5))
def test_means_are_torchmetrics(seed):
    """With pixels to ignore and classes that are absent from label, prediction or both."""
    rng = np.random.default_rng(seed)
    classes = 12
    present = rng.permutation(classes)
    label = blocks(rng, [*present[:8], 255])
    prediction = blocks(rng, present[1:10], cell=4)
    evaluator = MeanIoUEvaluator([f"class {i}" for i in range(classes)])
    evaluator.update(prediction, label)
    result = evaluator.evaluate()

    maps = [torch.from_numpy(values.astype(np.int64)) for values in (prediction, label)]
    theirs = {
        name: kind(classes, average=average, ignore_index=255)
        for name, kind, average in (
            ("mIoU", MulticlassJaccardIndex, "macro"),
            ("IoU", MulticlassJaccardIndex, "none"),
            ("aAcc", MulticlassAccuracy, "micro"),
            ("fwIoU", MulticlassJaccardIndex, "weighted"),
        )
    }
    for name in ("mIoU", "aAcc", "fwIoU"):
        assert result[name] / 100 == pytest.approx(float(theirs[name](*maps)), abs=1e-6), name
    for ours, expected in zip(result["IoU"].values(), theirs["IoU"](*maps), strict=True):
        # torchmetrics has 0 for a class that is in neither
        assert (ours or 0) / 100 == pytest.approx(float(expected), abs=1e-6)
    assert sum(value is None for value in result["IoU"].values()) >= 2
