"""Mean IoU against counting by hand and pixel by pixel."""

import json
import math

import numpy as np
import pytest

from projects.SegFormer.evaluation.mean_iou import (
    MeanIoUEvaluator,
    format_table,
    scores,
    write_json,
)
from projects.SegFormer.modeling.errors import InputError

CLASSES = ["sky", "road", "tree", "car"]


def random_maps(seed=0, shape=(3, 11, 13), classes=4):
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, classes, shape)
    label = rng.choice([*range(classes), 255], shape)
    return prediction, label


def by_sets_of_pixels(prediction, label, classes):
    """The definitions, read literally: intersection and union of sets of places."""
    counted = {place for place in np.ndindex(label.shape) if label[place] != 255}
    iou, acc, dice = {}, {}, {}
    for index, name in enumerate(classes):
        truth = {place for place in counted if label[place] == index}
        guess = {place for place in counted if prediction[place] == index}
        iou[name] = 100 * len(truth & guess) / len(truth | guess) if truth | guess else None
        acc[name] = 100 * len(truth & guess) / len(truth) if truth else None
        sizes = len(truth) + len(guess)
        dice[name] = 100 * 2 * len(truth & guess) / sizes if sizes else None
    right = [place for place in counted if prediction[place] == label[place]]
    by_truth = [iou[classes[label[place]]] for place in counted]
    return {
        "mIoU": np.mean([value for value in iou.values() if value is not None]),
        "mAcc": np.mean([value for value in acc.values() if value is not None]),
        "aAcc": 100 * len(right) / len(counted),
        "fwIoU": np.mean(by_truth),
        "mDice": np.mean([value for value in dice.values() if value is not None]),
        "IoU": iou,
        "Acc": acc,
        "Dice": dice,
    }


def assert_equal_results(result, expected):
    assert result.keys() == expected.keys()
    for key in ("mIoU", "mAcc", "aAcc", "fwIoU", "mDice"):
        assert isinstance(result[key], float)
        assert result[key] == pytest.approx(expected[key], rel=1e-12)
    for key in ("IoU", "Acc", "Dice"):
        assert result[key] == pytest.approx(expected[key], rel=1e-12)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_random_maps(dtype):
    prediction, label = random_maps()
    evaluator = MeanIoUEvaluator(CLASSES)
    evaluator.update(prediction.astype(dtype), label.astype(np.uint8))
    assert evaluator.counts.dtype == np.int64
    assert_equal_results(evaluator.evaluate(), by_sets_of_pixels(prediction, label, CLASSES))


def test_counts_are_label_by_prediction():
    evaluator = MeanIoUEvaluator(["a", "b"])
    evaluator.update(np.array([[0, 1, 1, 1, 255]]), np.array([[0, 0, 0, 1, 1]]))
    np.testing.assert_array_equal(evaluator.counts, [[1, 2, 0], [0, 1, 1]])


def test_by_hand():
    # a: 1 right, 2 taken for b; b: 1 right.
    result = scores(np.array([[1, 2, 0], [0, 1, 0]]), ["a", "b"])
    assert_equal_results(
        result,
        {
            "mIoU": 100 / 3,
            "mAcc": 200 / 3,
            "aAcc": 50,
            "fwIoU": 100 / 3,
            "mDice": 50,
            "IoU": {"a": 100 / 3, "b": 100 / 3},
            "Acc": {"a": 100 / 3, "b": 100},
            "Dice": {"a": 50, "b": 50},
        },
    )


def test_a_perfect_prediction():
    label = np.array([[0, 1], [2, 3]])
    evaluator = MeanIoUEvaluator(CLASSES)
    evaluator.update(label, label)
    result = evaluator.evaluate()
    assert (result["mIoU"], result["mAcc"], result["aAcc"]) == (100, 100, 100)


def test_classes_in_neither_label_only_and_prediction_only():
    # sky is right, road is only in the label, tree only in the prediction, car in neither
    evaluator = MeanIoUEvaluator(CLASSES)
    evaluator.update(np.array([[0, 0, 0, 2]]), np.array([[0, 0, 0, 1]]))
    result = evaluator.evaluate()
    assert result["IoU"] == {"sky": 100.0, "road": 0.0, "tree": 0.0, "car": None}
    assert result["Acc"] == {"sky": 100.0, "road": 0.0, "tree": None, "car": None}
    assert result["mIoU"] == pytest.approx(100 / 3)
    assert result["mAcc"] == 50
    assert result["aAcc"] == 75


def test_ignored_pixels_count_nowhere():
    # an ignored pixel may hold any prediction, even one of no class
    evaluator = MeanIoUEvaluator(CLASSES)
    evaluator.update(np.array([[0, 1, 99]]), np.array([[0, 255, 255]]))
    assert evaluator.counts.sum() == 1
    assert evaluator.evaluate()["IoU"]["road"] is None
    other = MeanIoUEvaluator(CLASSES, ignore_index=3)
    other.update(np.array([[0, 1]]), np.array([[0, 3]]))
    assert other.counts.sum() == 1


def test_nothing_counted():
    evaluator = MeanIoUEvaluator(CLASSES)
    evaluator.update(np.zeros((2, 2), int), np.full((2, 2), 255))
    result = evaluator.evaluate()
    means = ("mIoU", "mAcc", "aAcc", "fwIoU", "mDice")
    assert all(math.isnan(result[key]) for key in means)
    assert set(result["IoU"].values()) == {None}


def test_batches_and_ranks_add_up():
    prediction, label = random_maps(shape=(6, 9, 9))
    whole = MeanIoUEvaluator(CLASSES)
    whole.update(prediction, label)
    ranks = [MeanIoUEvaluator(CLASSES) for _ in range(2)]
    for i in range(6):
        ranks[i % 2].update(prediction[i], label[i])
    np.testing.assert_array_equal(ranks[0].counts + ranks[1].counts, whole.counts)


def test_reset():
    evaluator = MeanIoUEvaluator(CLASSES)
    evaluator.update(*random_maps())
    evaluator.reset()
    assert evaluator.counts.sum() == 0


def test_counts_beyond_32_bits():
    # 500 images of Cityscapes are 10**9 pixels: a few such sums must not overflow
    result = scores(np.array([[2**40, 2**40, 0], [0, 0, 0]]), ["a", "b"])
    assert result["IoU"] == {"a": 50.0, "b": 0.0}


@pytest.mark.parametrize(
    "prediction, label, message",
    [
        (np.zeros((1, 2, 2), int), np.zeros((2, 2), int), r"shape \(1, 2, 2\) .* \(2, 2\)"),
        (np.zeros((2, 3), int), np.full((2, 3), 4), "label values from 4 to 4; expected 0 to 3"),
        (np.full((2, 3), 4), np.zeros((2, 3), int), "prediction values from 4 to 4; expected"),
        (np.full((2, 3), -1), np.zeros((2, 3), int), "prediction values from -1 to -1; expected"),
    ],
)
def test_errors(prediction, label, message):
    evaluator = MeanIoUEvaluator(CLASSES)
    with pytest.raises(InputError, match=message) as error:
        evaluator.update(prediction, label)
    assert "\n" not in str(error.value)
    assert evaluator.counts.sum() == 0


def test_table():
    evaluator = MeanIoUEvaluator(["sky", "traffic light", "car"])
    evaluator.update(np.array([[0, 0, 0, 1]]), np.array([[0, 0, 0, 0]]))
    assert format_table(evaluator.evaluate()).splitlines() == [
        "class                  IoU     Acc    Dice",
        "------------------------------------------",
        "sky                  75.00   75.00   85.71",
        "traffic light         0.00       -    0.00",
        "car                      -       -       -",
        "------------------------------------------",
        "mean                 37.50   75.00   42.86",
        "all pixels                   75.00        ",
        "weighted by pixels   75.00                ",
    ]


def test_json(tmp_path):
    result = scores(np.array([[3, 0, 0], [0, 0, 0]]), ["sky", "car"])
    write_json(result, tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == result


def test_json_has_no_nan(tmp_path):
    write_json(scores(np.zeros((2, 3), int), ["天空", "car"]), tmp_path / "result.json")
    text = (tmp_path / "result.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=pytest.fail)
    assert read["mIoU"] is None and read["IoU"] == {"天空": None, "car": None}
    write_json({"a": {"mIoU": math.nan}}, tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": {"mIoU": None}}


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    write_json({"mIoU": 1.0}, path)
    with pytest.raises(TypeError):
        write_json({"mIoU": 2.0, "IoU": object()}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"mIoU": 1.0}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
