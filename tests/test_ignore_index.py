"""One number for pixels that count nowhere: files, padding, loss and metrics against PyTorch's."""

import json

import numpy as np
import oneflow as flow
import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from conftest import CONFIG, run_tool, tiny_run
from data_files import noise, save
from projects.SegFormer.dataset.build import Loader, build_train_loader
from projects.SegFormer.dataset.cityscapes import Cityscapes
from projects.SegFormer.dataset.classification import ClassificationFolder
from projects.SegFormer.dataset.folder import SegmentationFolder
from projects.SegFormer.dataset.sampler import EvaluationSampler
from projects.SegFormer.dataset.transforms import Normalize, Pad
from projects.SegFormer.evaluation.boundary_iou import BoundaryIoUEvaluator
from projects.SegFormer.evaluation.mean_iou import MeanIoUEvaluator
from projects.SegFormer.modeling.losses import SegmentationLoss

INDICES = (0, 2, 200, 254, -100)
NAMES = ["a", "b", "c", "d"]
LOSSES = {
    "plain": {},
    "weights": dict(class_weights=[0.5, 2.0, 1.0, 3.0]),
    "smoothing": dict(label_smoothing=0.2),
    "ohem": dict(ohem_threshold=0.5, ohem_min_kept=20),
    "dice": dict(dice_weight=0.5),
}
EVERYWHERE = dict(placement=flow.placement("cpu", ranks=[0]), sbp=flow.sbp.broadcast)


def labels_of(ignore_index: int, shape=(24, 32), seed=0):
    """A label file's values: classes, 255, and the class that is ignored."""
    values = [*range(4), 255, *([ignore_index] if ignore_index >= 0 else [])]
    return np.random.default_rng(seed).choice(values, shape).astype(np.uint8)


def left_out(label, ignore_index: int):
    return (label == 255) | (label == ignore_index)


def put(root, ignore_index: int, count=3):
    for index in range(count):
        save(noise(seed=index), root / f"images/train/{index}.png")
        save(labels_of(ignore_index, seed=index), root / f"annotations/train/{index}.png")
    return root


def folder(root, ignore_index: int):
    transforms = [Normalize(), Pad((32, 32))]
    return SegmentationFolder(root, "train", NAMES, transforms, ignore_index=ignore_index)


@pytest.mark.parametrize("ignore_index", INDICES)
def test_batches_have_the_models_number(tmp_path, ignore_index):
    """For ignored pixels of the file, for padding, and for samples that only fill up a batch."""
    dataset = folder(put(tmp_path, ignore_index), ignore_index)
    for index in range(3):
        label = labels_of(ignore_index, seed=index)
        expected = np.where(left_out(label, ignore_index), 255, label)
        np.testing.assert_array_equal(dataset.load(index)[1], expected)
    loader, _, _ = build_train_loader(dataset, 3, num_workers=0)
    batch = next(iter(loader)).labels.tensor.numpy()
    assert batch.dtype == np.int64 and (batch[:, 24:] == ignore_index).all()
    kept = sorted(set(range(4)) - {ignore_index})
    assert np.unique(batch).tolist() == sorted({*kept, ignore_index})
    sampler = EvaluationSampler(3, 2, 1, 2)
    last = [*Loader(dataset, sampler, num_workers=1)][-1].labels.tensor.numpy()
    assert (last[-1] == ignore_index).all()  # of the second of two ranks, the fourth of three


def test_other_numbers_are_no_classes(tmp_path):
    save(noise(), tmp_path / "images/train/0.png")
    save(np.full((24, 32), 200, np.uint8), tmp_path / "annotations/train/0.png")
    assert (folder(tmp_path, 200).load(0)[1] == 255).all()
    for ignore_index in (255, 0, 201):
        with pytest.raises(ValueError, match="label value 200 stands for none of the 4 classes"):
            folder(tmp_path, ignore_index).load(0)


def test_ids_that_do_not_exist_stay_an_error(tmp_path):
    """Where a table maps the values of the files, the number means a class, never a value."""
    for folder_name, name, array in (
        ("leftImg8bit", "leftImg8bit", noise()),
        ("gtFine", "gtFine_labelIds", np.full((24, 32), 77, np.uint8)),
    ):
        save(array, tmp_path / f"{folder_name}/train/a/a_{name}.png")
    for ignore_index in (255, 254, 77):
        with pytest.raises(ValueError, match="label value 77 stands for none"):
            Cityscapes(tmp_path, "train", [], ignore_index=ignore_index).load(0)


def test_a_class_of_number_255_is_one(tmp_path):
    """Of images of classes nothing is ignored in a batch."""
    for index in range(256):
        save(noise(4, 4), tmp_path / f"train/{index:03d}/a.png")
    dataset = ClassificationFolder(tmp_path, "train", [])
    batch = next(iter(Loader(dataset, EvaluationSampler(256, 256, 0, 1), 0)))
    assert batch.labels.tensor.numpy().tolist() == list(range(256))


# ---- Loss ---------------------------------------------------------------------------------------


def loss_of(logits, labels, ignore_index, settings) -> dict[str, float]:
    tensors = (flow.tensor(logits, **EVERYWHERE), flow.tensor(labels, **EVERYWHERE))
    losses = SegmentationLoss(4, ignore_index, **settings)(*tensors)
    return {name: value.to_local().numpy().item() for name, value in losses.items()}


@pytest.mark.parametrize("ignore_index", INDICES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_leaves_these_pixels_out(tmp_path, ignore_index, name):
    """With the labels of a loader, padding among them: the loss of the others alone."""
    dataset = folder(put(tmp_path, ignore_index), ignore_index)
    loader, _, _ = build_train_loader(dataset, 2, num_workers=0)
    labels = next(iter(loader)).labels.tensor.numpy()
    logits = np.random.default_rng(0).normal(0, 2, (2, 32, 32, 4)).astype(np.float32)
    found = loss_of(logits, labels, ignore_index, LOSSES[name])
    as_255 = np.where(labels == ignore_index, 255, labels)
    assert found == pytest.approx(loss_of(logits, as_255, 255, LOSSES[name]), rel=1e-6)
    if name in ("plain", "weights", "smoothing"):
        counted = torch.from_numpy(labels != ignore_index)
        settings = dict(LOSSES[name])
        if "class_weights" in settings:
            settings = {"weight": torch.tensor(settings["class_weights"])}
        expected = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits)[counted], torch.from_numpy(labels)[counted], **settings
        )
        assert found["losses"] == pytest.approx(expected.item(), rel=1e-5)


# ---- Metrics ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore_index", INDICES)
def test_metrics_leave_these_pixels_out(ignore_index):
    """As torchmetrics does: a class that is ignored has no IoU and is not in the mean."""
    rng = np.random.default_rng(1)
    label = rng.choice([*{*range(4), ignore_index}], (3, 24, 32))
    prediction = rng.integers(0, 4, label.shape)
    evaluator = MeanIoUEvaluator(NAMES, ignore_index)
    evaluator.update(prediction, label)
    result = evaluator.evaluate()
    maps = torch.from_numpy(prediction), torch.from_numpy(label)
    options = dict(num_classes=4, ignore_index=ignore_index)
    expected = MulticlassJaccardIndex(**options, average=None)(*maps).numpy() * 100
    kept = [index for index in range(4) if index != ignore_index]
    for index in kept:
        assert result["IoU"][NAMES[index]] == pytest.approx(expected[index], rel=1e-5)
    mean = MulticlassJaccardIndex(**options, average="macro")(*maps).item()
    assert result["mIoU"] == pytest.approx(100 * mean, rel=1e-5)
    counts = MulticlassConfusionMatrix(**options)(*maps).numpy()
    assert (
        evaluator.counts[:, :4][np.ix_(kept, kept)].tolist() == counts[np.ix_(kept, kept)].tolist()
    )
    if ignore_index in range(4):
        assert result["IoU"][NAMES[ignore_index]] is None


@pytest.mark.parametrize("ignore_index", INDICES)
def test_boundaries_leave_these_pixels_out(ignore_index):
    rng = np.random.default_rng(2)
    blocks = rng.choice([1, 3, 255], (4, 5)).repeat(12, axis=0).repeat(12, axis=1)
    prediction = np.roll(np.where(blocks == 255, 1, blocks), 1, axis=1)
    figures = []
    for number in (255, ignore_index):
        evaluator = BoundaryIoUEvaluator(NAMES, number)
        evaluator.update(prediction, np.where(blocks == 255, number, blocks))
        figures.append(evaluator.evaluate())
    assert figures[0] == figures[1] and 0 < figures[0]["boundary_mIoU"] < 100


def test_a_class_that_is_ignored_has_no_boundary():
    label = np.array([0, 1, 2]).repeat(8)[None].repeat(24, 0)
    evaluator = BoundaryIoUEvaluator(["a", "b", "c"], ignore_index=0)
    evaluator.update(np.where(label == 1, 0, label), label)  # predicted where another class counts
    assert evaluator.evaluate() == {
        "boundary_mIoU": 50.0,
        "boundary_IoU": {"a": None, "b": 0.0, "c": 100.0},
    }


# ---- All together -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_training_with_another_number_is_the_same(folder_data, tmp_path):
    """Losses and evaluation, bit for bit, with padding and ignored pixels in the data."""
    lines = []
    for number in (255, 200):
        output = tmp_path / str(number)
        overrides = tiny_run(
            folder_data,
            output,
            *(f"cfg.ignore_index={number}", "train.train_iter=3", "train.evaluation.eval_period=3"),
            "dataloader.train.dataset.transforms.0.size=[40,48]",
            "train.evaluation.boundary_iou=True",
        )
        process = run_tool("tools/train_net.py", "--config-file", CONFIG, *overrides)
        assert process.returncode == 0, process.stderr
        metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
        keep = ("total_loss", "iteration", "mIoU", "boundary_mIoU")
        lines.append([{key: line[key] for key in keep if key in line} for line in metrics])
    assert lines[0] == lines[1] and any("mIoU" in line for line in lines[0])
