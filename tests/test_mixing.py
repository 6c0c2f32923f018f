"""Mixup and CutMix: each pair blended as written out plainly, whatever the ranks and the resume."""

from itertools import islice
from types import SimpleNamespace

import cv2
import numpy as np
import oneflow as flow
import pytest
import torch
from scipy import stats

from projects.SegFormer.dataset import build
from projects.SegFormer.dataset.build import build_train_loader
from projects.SegFormer.dataset.classification import ClassificationFolder
from projects.SegFormer.dataset.classification_transforms import RandomResizedCrop
from projects.SegFormer.dataset.mixing import Mixing
from projects.SegFormer.dataset.transforms import Normalize
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification

PAIRS = 3000


def masks(mixing, pairs, size=(20, 30)):
    """What share of each pixel comes from the partner: for both images of each pair (2, H, W)."""
    images = np.zeros((2 * pairs, 3, *size), np.float32)
    images[1::2] = 1
    mixed, _ = mixing(images, np.zeros(2 * pairs, np.int64), range(2 * pairs))
    assert (mixed == mixed[:, :1]).all()  # the channels alike
    mixed = mixed[:, 0].reshape(pairs, 2, *size)
    mixed[:, 1] = 1 - mixed[:, 1]
    return mixed


def is_cut(mask):
    return len(np.unique(mask)) == 2


@pytest.mark.parametrize("switch_prob", [0.0, 1.0, 0.5])
def test_images_and_labels_are_blended_alike(switch_prob):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((12, 3, 20, 30)).astype(np.float32)
    labels = np.array([0, 4, 2, 2, 1, 3, 4, 0, 3, 1, 2, 0])
    mixing = Mixing(num_classes=5, switch_prob=switch_prob, seed=3)
    shares = masks(mixing, 6)
    mixed, targets = mixing(images.copy(), labels, range(12))
    assert mixed.dtype == targets.dtype == np.float32 and targets.shape == (12, 5)
    for index in range(12):
        partner = index + 1 if index % 2 == 0 else index - 1
        share = shares[index // 2, index % 2]
        expected = images[index] * (1 - share) + images[partner] * share
        np.testing.assert_allclose(mixed[index], expected, rtol=0, atol=1e-6)
        target = np.zeros(5)
        target[labels[index]] += 1 - share.mean()
        target[labels[partner]] += share.mean()
        np.testing.assert_allclose(targets[index], target, rtol=0, atol=1e-6)
    assert shares.mean(axis=(1, 2, 3)).std() > 0.05  # a blend of its own each


def test_mixup_shares_are_beta():
    shares = 1 - masks(Mixing(2, mixup_alpha=0.8, switch_prob=0), PAIRS, size=(1, 1)).reshape(-1, 2)
    np.testing.assert_allclose(shares[:, 0], shares[:, 1], rtol=0, atol=1e-6)
    assert stats.kstest(shares[:, 0], stats.beta(0.8, 0.8).cdf).pvalue > 0.01


def test_cut_boxes():
    """Against boxes painted pixel by pixel from Beta(1, 1) and a centre anywhere."""
    found = masks(Mixing(2, cutmix_alpha=1.0, switch_prob=1), PAIRS)
    assert (found[:, 0] == found[:, 1]).all()
    found = found[:, 0]
    rows, columns = found.max(2), found.max(1)
    assert (found == rows[:, :, None] * columns[:, None, :]).all()
    for edges in (rows, columns):  # one piece
        assert (np.abs(np.diff(edges, axis=1, prepend=0, append=0)).sum(1) <= 2).all()

    rng = np.random.default_rng(1)
    painted = np.zeros_like(found)
    y, x = np.mgrid[:20, :30]
    for mask in painted:
        side = np.sqrt(1 - rng.beta(1.0, 1.0))
        half_height, half_width = int(20 * side) // 2, int(30 * side) // 2
        down, right = y - rng.integers(20), x - rng.integers(30)  # from the centre
        inside = (down >= -half_height) & (down < half_height)
        mask[inside & (right >= -half_width) & (right < half_width)] = 1
    areas = found.mean(axis=(1, 2)), painted.mean(axis=(1, 2))
    assert stats.ks_2samp(*areas).pvalue > 0.01
    # How often each pixel is in a box, to four standard deviations of the difference.
    p = painted.mean(0)
    assert (np.abs(found.mean(0) - p) < 4 * np.sqrt(2 * p * (1 - p) / PAIRS)).all()


def test_probabilities():
    found = masks(Mixing(2, prob=0.7, switch_prob=0.25), PAIRS, size=(8, 8))[:, 0]
    untouched = np.mean([not mask.any() for mask in found])
    cut = np.mean([is_cut(mask) for mask in found])
    # Boxes narrower than two pixels, both halves of 0, change nothing.
    nothing = np.mean([int(8 * np.sqrt(1 - share)) < 2 for share in np.linspace(0, 1, 10001)])
    assert untouched == pytest.approx(0.3 + 0.7 * 0.25 * nothing, abs=0.035)
    assert cut == pytest.approx(0.7 * 0.25 * (1 - nothing), abs=0.035)


def test_seed_and_position_decide():
    def shares(seed, first):
        images = np.random.default_rng(0).random((4, 3, 6, 6), np.float32)
        positions = range(first, first + 4)
        return Mixing(3, seed=seed)(images, np.arange(4) % 3, positions)[0]

    np.testing.assert_array_equal(shares(1, 8), shares(1, 8))
    assert (shares(1, 8) != shares(2, 8)).any()
    assert (shares(1, 8) != shares(1, 10)).any()


@pytest.mark.parametrize("positions", [[0, 1, 2], [1, 2], [0, 1, 2, 6], [4]])
def test_half_a_pair(positions):
    images = np.zeros((len(positions), 3, 4, 4), np.float32)
    with pytest.raises(InputError, match=f"batch of {len(positions)} .*even train.train_micro_b"):
        Mixing(2)(images, np.zeros(len(positions), np.int64), positions)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_on_mixed_targets_is_that_of_mixed_smoothed_targets(smoothing):
    """timm mixes labels that are smoothed, the model smooths labels that are mixed."""
    rng = np.random.default_rng(0)
    labels, logits = np.array([0, 4, 2, 1]), rng.standard_normal((4, 5)).astype(np.float32)
    images = np.zeros((4, 3, 8, 8), np.float32)
    _, targets = Mixing(5, seed=1)(images, labels, range(4))
    assert ((targets > 0).sum(1) == 2).all()

    smooth = np.full((4, 5), smoothing / 5)
    smooth[np.arange(4), labels] += 1 - smoothing
    share = targets[np.arange(4), labels][:, None]
    mixed = torch.from_numpy(smooth * share + smooth[[1, 0, 3, 2]] * (1 - share))
    log_probabilities = torch.log_softmax(torch.from_numpy(logits).double(), -1)
    expected = -(mixed * log_probabilities).sum(-1).mean()

    model = SimpleNamespace(num_classes=5, label_smoothing=smoothing)
    loss = SegformerForImageClassification.loss(model, flow.tensor(logits), flow.tensor(targets))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


# ---- through the loader -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for name in "abc":
        (root / "train" / name).mkdir(parents=True)
        for index in range(3):
            image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(root / "train" / name / f"{index}.png"), image)
    transforms = [RandomResizedCrop(16), Normalize()]
    return ClassificationFolder(root, "train", transforms, seed=4)


def batches(dataset, count, **kwargs):
    arguments = dict(seed=5, num_workers=0, mixing=Mixing(3, seed=5), repeated_augmentation=2)
    loader, _, _ = build_train_loader([dataset], **arguments | kwargs)
    return [
        (batch.get("images").tensor.numpy(), batch.get("labels").tensor.numpy())
        for batch in islice(loader, count)
    ]


def joined(parts):
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def assert_same(found, expected):
    for arrays, expected_arrays in zip(found, expected, strict=True):
        for array, expected_array in zip(arrays, expected_arrays, strict=True):
            np.testing.assert_array_equal(array, expected_array)


def test_batch_of_the_loader(dataset):
    loader, _, _ = build_train_loader(dataset, 4, mixing=Mixing(3), num_workers=0)
    batch = next(iter(loader))
    images, labels = batch.get("images"), batch.get("labels")
    assert images.tensor.dtype == labels.tensor.dtype == flow.float32
    assert images.tensor.shape == (4, 3, 16, 16) and labels.tensor.shape == (4, 3)
    assert (images.placement_idx, labels.placement_idx) == (0, -1)
    np.testing.assert_allclose(labels.tensor.numpy().sum(1), 1, rtol=1e-6)
    assert loader.mixup_func is None  # LiBai would call it again

    plain = next(iter(build_train_loader(dataset, 4, num_workers=0)[0])).get("labels").tensor
    assert plain.dtype == flow.int64 and plain.shape == (4,)


def test_ranks_workers_accumulation_and_resume_change_nothing(dataset, monkeypatch):
    whole = batches(dataset, 4, train_batch_size=8)
    assert_same(batches(dataset, 4, train_batch_size=8, num_workers=2), whole)
    assert_same(batches(dataset, 3, train_batch_size=8, consumed_samples=8), whole[1:])

    ranks, accumulated = [], []
    for rank in (0, 1):
        monkeypatch.setattr(build, "data_parallel_place", lambda rank=rank: (rank, 2))
        ranks.append(batches(dataset, 4, train_batch_size=4))
        steps = batches(dataset, 4, train_batch_size=4, num_accumulation_steps=2)
        accumulated.append(steps)
    assert_same([joined(parts) for parts in zip(*ranks, strict=True)], whole)
    for step, parts in enumerate(zip(*accumulated, strict=True)):
        micro = [tuple(array[k : k + 2] for array in part) for k in (0, 2) for part in parts]
        assert_same([joined(micro)], whole[step : step + 1])


def test_odd_micro_batches(dataset):
    with pytest.raises(InputError, match="choose an even train.train_micro_batch_size"):
        batches(dataset, 1, train_batch_size=3)
