"""Top-1 and top-5 accuracy against torch.topk and counting by hand."""

import math

import numpy as np
import pytest
import torch

from projects.SegFormer.evaluation.accuracy import AccuracyEvaluator, format_table, scores
from projects.SegFormer.modeling.errors import InputError


def random_batch(size, samples=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, size, samples)
    logits = rng.standard_normal((samples, size)).astype(np.float32)
    logits[np.arange(samples), labels] += 1  # better than chance, and some classes better still
    logits[:, 0] += 0.5
    return logits, labels


def names(size):
    return [f"class {index}" for index in range(size)]


@pytest.mark.parametrize("size", [2, 4, 5, 12, 1000])
def test_against_torch_topk(size):
    logits, labels = random_batch(size)
    evaluator = AccuracyEvaluator(names(size))
    for part in range(0, 400, 64):
        evaluator.update(logits[part : part + 64], labels[part : part + 64])
    best = torch.topk(torch.from_numpy(logits), min(5, size)).indices.numpy()
    result = evaluator.evaluate()
    assert result["top1"] == pytest.approx(100 * np.mean(best[:, 0] == labels), rel=1e-12)
    in_five = [label in row for label, row in zip(labels, best, strict=True)]
    assert result["top5"] == pytest.approx(100 * np.mean(in_five), rel=1e-12)
    for index, name in enumerate(names(size)):
        right = best[labels == index, 0] == index
        if len(right):
            assert result["Acc"][name] == pytest.approx(100 * right.mean(), rel=1e-12)
        else:
            assert result["Acc"][name] is None


def test_counts_of_ranks_add_up():
    logits, labels = random_batch(7)
    whole, *parts = (AccuracyEvaluator(names(7)) for _ in range(3))
    whole.update(logits, labels)
    parts[0].update(logits[:150], labels[:150])
    parts[1].update(logits[150:], labels[150:])
    assert whole.counts.dtype == np.int64
    np.testing.assert_array_equal(parts[0].counts + parts[1].counts, whole.counts)
    np.testing.assert_array_equal(whole.counts[:, 0], np.bincount(labels, minlength=7))


def test_by_hand():
    evaluator = AccuracyEvaluator(["a", "b", "c"])
    evaluator.update(
        np.array([[3.0, 1, 2], [3, 1, 2], [0, 1, 2], [9, 8, 7]]), np.array([0, 1, 2, -1])
    )
    np.testing.assert_array_equal(evaluator.counts, [[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    result = evaluator.evaluate()
    assert result["top1"] == pytest.approx(200 / 3) and result["top5"] == 100
    assert result["Acc"] == {"a": 100, "b": 0, "c": 100}
    assert format_table(result) == "top1    66.67\ntop5   100.00"
    evaluator.reset()
    assert not evaluator.counts.any()


@pytest.mark.parametrize("value", [0.0, -3.0, math.inf, math.nan])
def test_equal_logits_are_no_better_than_chance(value):
    """torch.topk takes any of them; counting those that are higher would call all right."""
    evaluator = AccuracyEvaluator(names(10))
    evaluator.update(np.full((20, 10), value, np.float32), np.arange(20) % 10)
    result = evaluator.evaluate()
    assert (result["top1"], result["top5"]) == (10, 50)


def test_ties_are_in_stable_order():
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 3, (500, 9)).astype(np.float32), rng.integers(0, 9, 500)
    order = torch.sort(torch.from_numpy(logits), descending=True, stable=True).indices.numpy()
    evaluator = AccuracyEvaluator(names(9))
    evaluator.update(logits, labels)
    in_five = (order[:, :5] == labels[:, None]).any(1)
    right = np.sum(order[:, 0] == labels), np.sum(in_five)
    assert tuple(evaluator.counts.sum(0)) == (500, *right)


def test_nothing_counted():
    evaluator = AccuracyEvaluator(["a", "b"])
    evaluator.update(np.zeros((2, 2)), np.array([-1, -1]))
    result = evaluator.evaluate()
    assert math.isnan(result["top1"]) and math.isnan(result["top5"])
    assert result["Acc"] == {"a": None, "b": None}
    assert scores(np.zeros((2, 3), np.int64), ["a", "b"])["Acc"] == result["Acc"]


@pytest.mark.parametrize("shape, labels", [((2, 4), [0, 1]), ((3, 3), [0, 1]), ((2, 3, 1), [0, 1])])
def test_shapes_that_do_not_fit(shape, labels):
    with pytest.raises(InputError, match="against 2 labels and 3 classes"):
        AccuracyEvaluator(["a", "b", "c"]).update(np.zeros(shape), np.array(labels))


@pytest.mark.parametrize("label", [3, -2])
def test_label_of_no_class(label):
    with pytest.raises(InputError, match="expected 0 to 2 for the 3 classes"):
        AccuracyEvaluator(["a", "b", "c"]).update(np.zeros((1, 3)), np.array([label]))
