"""Evaluation and what it leaves: result files, several weights, the worst images, two processes."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import oneflow as flow
import pytest
import torch
from libai.config import instantiate

from conftest import CLASSES, CONFIG, TINY_MODEL, run_tool, tensorboard_events, tiny_run
from data_files import raises_line, save
from projects.SegFormer.dataset.folder import distinct_palette
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.evaluation.boundary_iou import BoundaryIoUEvaluator
from projects.SegFormer.evaluation.mean_iou import MeanIoUEvaluator, scores
from projects.SegFormer.evaluation.mean_iou import mean_iou as miou
from projects.SegFormer.evaluation.report.record import read_record
from projects.SegFormer.evaluation.result_files import ResultFiles
from projects.SegFormer.evaluation.visualize import unused_colour
from projects.SegFormer.evaluation.worst_images import LowestScores
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.segf_loader import fill_model
from projects.SegFormer.tools.train_net import weight_paths

# ImageNet's mean and standard deviation, as everywhere.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

# cityscapesScripts' ids of the 19 classes that are evaluated.
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

# Tools, one command after the other in one process: it takes seconds to import OneFlow.
COMMANDS = """
import json, sys
from projects.SegFormer.tools import predict, train_net
for tool, arguments in json.load(open(sys.argv[1])):
    code = dict(train_net=train_net.run, predict=predict.main)[tool](arguments)
    if code:
        sys.exit(code)
"""


def blobs(rng: np.random.Generator, classes: int, height: int, width: int, ignored: float = 0.1):
    """A random label map of round shapes, some of it 255: int64 (height, width)."""
    label = np.zeros((height, width), np.uint8)
    for _ in range(3 * classes):
        centre = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(label, centre, int(rng.integers(2, 14)), int(rng.integers(classes)), -1)
    label[rng.random(label.shape) < ignored / 20] = 255
    label[: int(ignored * height)] = 255
    return label.astype(np.int64)


# --- boundary IoU -------------------------------------------------------------------------------


def near_the_edge(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that are at most 2% of the diagonal from one outside it, brute force.

    The distance is the larger of that in rows and that in columns. Cheng et al. erode by a 3x3
    square as many times, with a frame of zeros around the image.
    """
    height, width = mask.shape
    limit = max(1, round(0.02 * (height**2 + width**2) ** 0.5))
    framed = np.pad(mask, 1)
    outside = np.argwhere(~framed)
    found = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        distances = np.abs(outside - (row + 1, column + 1)).max(axis=1)
        found[row, column] = distances.min() <= limit
    return found


@pytest.mark.parametrize("size", [(40, 60), (70, 90), (130, 30), (20, 24)])
def test_boundary_iou_is_that_of_brute_force(size):
    """Limits of 1, 2 and 3 pixels; two images are counted together."""
    rng, classes = np.random.default_rng(size), 3
    evaluator = BoundaryIoUEvaluator([*CLASSES, "absent"])
    shared, either = np.zeros(classes), np.zeros(classes)
    for _ in range(2):
        label = blobs(rng, classes, *size)
        # Mostly right, as a prediction is: shapes moved by some pixels.
        prediction = np.roll(np.where(label == 255, 0, label), rng.integers(-2, 3, 2), (0, 1))
        evaluator.update(prediction, label)
        for index in range(classes):
            truth = near_the_edge(label == index)
            guess = near_the_edge((prediction == index) & (label != 255))
            shared[index] += (truth & guess).sum()
            either[index] += (truth | guess).sum()
    assert (shared > 0).all() and (shared < either).all()
    result = evaluator.evaluate()
    expected = dict(zip(CLASSES, 100 * shared / either, strict=True))
    assert result["boundary_IoU"].pop("absent") is None
    assert result["boundary_IoU"] == pytest.approx(expected, rel=1e-12)
    assert result["boundary_mIoU"] == pytest.approx(np.mean([*expected.values()]), rel=1e-12)


# --- worst images -------------------------------------------------------------------------------


def mean_iou(prediction: np.ndarray, label: np.ndarray) -> float:
    counted = label != 255
    ious = []
    for index in np.union1d(prediction[counted], label[counted]):
        guess, truth = (prediction == index) & counted, label == index
        ious.append((guess & truth).sum() / (guess | truth).sum())
    return 100 * float(np.mean(ious))


@pytest.mark.parametrize("count", [1, 5, 40])
def test_worst_images_are_those_of_lowest_miou(count):
    """Small maps, so that several have the same mIoU: the first of them is the worst.

    So it does not matter which rank looks at which image.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (30, 2, 2))
    predictions = rng.integers(0, 2, (30, 2, 2))
    labels[7] = 255
    scores = {i: mean_iou(predictions[i], labels[i]) for i in range(30) if i != 7}
    assert len(set(scores.values())) < 10
    expected = sorted(scores, key=lambda index: (scores[index], index))[:count]

    def entries_of(indices) -> list:
        worst = LowestScores(count)
        for index in indices:
            found = MeanIoUEvaluator(["a", "b"]).update(predictions[index], labels[index])
            worst.update(miou(found), index, predictions[index])
        return worst.entries()

    for entries in (
        entries_of(range(30)),
        sorted(entries_of(range(0, 30, 2)) + entries_of(range(1, 30, 2)), key=lambda e: e[:2]),
    ):
        assert [index for _, index, _ in entries[:count]] == expected
        for score, index, prediction in entries[:count]:
            assert score == pytest.approx(scores[index])
            np.testing.assert_array_equal(prediction, predictions[index])


# --- the tools ----------------------------------------------------------------------------------


def weights_that_see_all_classes(config, folder: Path) -> Path:
    """A checkpoint of the config's model, initial but for a classifier of strong opinions."""
    flow.manual_seed(0)
    state = state_of(instantiate(config.model))
    name = "head.linear_pred.weight"
    state[name] = np.random.default_rng(0).normal(size=state[name].shape).astype(np.float32)
    flow.save({name: flow.tensor(value) for name, value in state.items()}, str(folder / "model"))
    return folder


def arg_max(config, weights: Path, image: np.ndarray, flip: bool = False):
    """The class of each pixel of an RGB image, and where it is clear and not a matter of rounding.

    By PyTorch, from the logits of the network.
    """
    model = instantiate(config.model)
    fill_model(model, str(weights))
    model.eval()
    normalised = ((image - np.array(MEAN)) / STD).astype(np.float32).transpose(2, 0, 1)[None]
    total = 0
    for step in (1, -1) if flip else (1,):
        seen = np.ascontiguousarray(normalised[..., ::step])
        with flow.no_grad():
            logits = model(images=flow.tensor(seen))["prediction_scores"].numpy()
        logits = torch.from_numpy(logits)
        logits = torch.nn.functional.interpolate(logits, size=image.shape[:2], mode="bilinear")
        total = total + logits[0].softmax(0).numpy()[..., ::step]
    second, best = np.sort(total, axis=0)[-2:]
    return total.argmax(0), best - second > 1e-4


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """An RGB image of smooth colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


SIZES = {"a": (64, 96), "b": (48, 112)}  # of the images of a split
WHOLE = ("inference.resize=null", "inference.crop_size=null", "inference.stride=null")
# Data set: config, overrides, image file, label file or None for a split without.
BENCHMARKS = {
    "city_val": (
        "configs/segformer_city.py",
        WHOLE,
        "leftImg8bit/val/town/{}_leftImg8bit.png",
        "gtFine/val/town/{}_gtFine_labelIds.png",
    ),
    "city_test": (
        "configs/segformer_city.py",
        (*WHOLE, "dataloader.test.0.dataset.split=test"),
        "leftImg8bit/test/town/{}_leftImg8bit.png",
        None,
    ),
    "ade_validation": (
        "configs/segformer_ade20k.py",
        (*WHOLE, "inference.divisor=1"),
        "images/validation/{}.jpg",
        "annotations/validation/{}.png",
    ),
    "ade_testing": (
        "configs/segformer_ade20k.py",
        (*WHOLE, "inference.divisor=1", "dataloader.test.0.dataset.split=testing"),
        "images/testing/{}.jpg",
        None,
    ),
}


def several_weights(trained: Path) -> dict[str, str]:
    """What train.load_weight is given, by the name of the output folder."""
    return {
        "first": f"{trained}/model_0000007",
        "second": f"{trained}/model_0000015",
        "list": f"[{trained}/model_0000015,{trained}/model_final]",
        "pattern": f"{trained}/model_00000*",
    }


@pytest.fixture(scope="module")
def outputs(trained, folder_data, tmp_path_factory) -> Path:
    """The results of all commands below, each in a folder of its name in this one."""
    root = tmp_path_factory.mktemp("outputs")
    commands = []
    for name, (file, overrides, image, label) in BENCHMARKS.items():
        data = root / "data" / name
        for seed, (stem, size) in enumerate(SIZES.items()):
            save(picture(*size, seed), data / image.format(stem))
            if label:
                save(np.full(size, 7, np.uint8), data / label.format(stem))
        overrides = [*TINY_MODEL, *overrides, f"data.root={data}"]
        weights = weights_that_see_all_classes(
            load_config(file, overrides), root / "weights" / name
        )
        overrides += [f"train.load_weight={weights}", f"train.output_dir={root / name}"]
        commands.append(["train_net", ["--config-file", file, "--format-only", *overrides]])
    evaluate = ["--config-file", CONFIG, "--eval-only"]
    for name, weights in several_weights(trained).items():
        overrides = tiny_run(folder_data, root / name, f"train.load_weight={weights}")
        commands.append(["train_net", [*evaluate, *overrides]])
    more = (
        f"train.load_weight={trained}/model_final",
        "train.evaluation.worst_images=3",
        "train.evaluation.boundary_iou=True",
    )
    commands.append(["train_net", [*evaluate, *tiny_run(folder_data, root / "worst", *more)]])
    arguments = {
        "config": trained / "config.yaml",
        "weights": trained / "model_0000007",
        "output": root / "flip",
    }
    arguments = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    images = str(folder_data / "images" / "val")
    commands.append(["predict", [*arguments, images, "inference.flip=True"]])
    script, file = root / "commands.py", root / "commands.json"
    script.write_text(COMMANDS)
    file.write_text(json.dumps(commands))
    process = run_tool(str(script), str(file))
    assert process.returncode == 0, process.stderr
    return root


def evaluation(output: Path) -> dict:
    return json.loads((output / "evaluation.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_result_files_have_the_values_of_the_benchmark(outputs, name):
    file, overrides, image, _ = BENCHMARKS[name]
    config = load_config(file, [*TINY_MODEL, *overrides])
    data, results = outputs / "data" / name, outputs / name / "results"
    paths = {stem: data / image.format(stem) for stem in SIZES}
    assert {path.name for path in results.iterdir()} == {f"{p.stem}.png" for p in paths.values()}
    for stem, size in SIZES.items():
        rgb = cv2.imread(str(paths[stem]))[..., ::-1]
        best, is_clear = arg_max(config, outputs / "weights" / name, rgb)
        # Cityscapes' server wants label ids, ADE20K's counts from 1.
        values = np.array(LABEL_IDS)[best] if name.startswith("city") else best + 1
        result = cv2.imread(str(results / f"{paths[stem].stem}.png"), cv2.IMREAD_UNCHANGED)
        assert result.dtype == np.uint8 and result.shape == size
        assert is_clear.mean() > 0.95 and len(np.unique(best[is_clear])) > 3
        np.testing.assert_array_equal(result[is_clear], values[is_clear])
    assert not (outputs / name / "evaluation.json").exists()


def test_two_images_of_one_name(tmp_path):
    with raises_line("two images are called x"):
        ResultFiles(tmp_path, [Path("a/x.jpg"), Path("b/x.jpg")], np.arange(3, dtype=np.uint8))


def flat(result: dict) -> dict:
    """One figure a name, as several weights are written: {"IoU": {"sky": 1}} -> {"IoU/sky": 1}."""
    found = {}
    for name, value in result.items():
        nested = value if isinstance(value, dict) else None
        found |= {f"{name}/{n}": v for n, v in nested.items()} if nested else {name: value}
    return found


def test_several_weights_are_evaluated_one_after_the_other(outputs, trained):
    first, second, last = (
        flat(evaluation(folder)) for folder in (outputs / "first", outputs / "second", trained)
    )
    assert len({result["mIoU"] for result in (first, second, last)}) == 3
    assert evaluation(outputs / "list") == {
        f"{trained}/model_0000015": second,
        f"{trained}/model_final": last,
    }
    assert evaluation(outputs / "pattern") == {
        f"{trained}/model_0000007": first,
        f"{trained}/model_0000015": second,
    }


def test_weights_that_are_not_there(trained):
    pattern = f"{trained}/epoch_*"
    with raises_line(re.escape(f"train.load_weight={pattern}: nothing is called so")):
        weight_paths([f"{trained}/model_final", pattern])


def test_sheet_of_the_worst_images(outputs, trained, folder_data):
    assert evaluation(outputs / "worst").items() > evaluation(trained).items()
    assert 0 < evaluation(outputs / "worst")["boundary_mIoU"] < evaluation(trained)["mIoU"]
    sheet = cv2.imread(str(outputs / "worst" / "worst_images.png"))
    height, width = sheet.shape[:2]
    assert 3 * 240 < height < 4 * 240 and 4 * 360 < width < 5 * 360  # 3 rows of 4 pictures
    wrong = unused_colour(distinct_palette(len(CLASSES)))
    assert (sheet[..., ::-1] == wrong).all(axis=-1).any()
    page = (outputs / "worst" / "report.html").read_text()
    for iou in evaluation(outputs / "worst")["boundary_IoU"].values():
        assert f"<td>{iou:.2f}</td>" in page


def test_report_of_a_training(trained, folder_data):
    """Of its last evaluation; all 5 images are among the samples and among the worst."""
    result, evaluated = evaluation(trained), read_record(trained)
    assert evaluated.classes == list(CLASSES)
    assert scores(evaluated.counts, CLASSES) == result
    labels = {
        path.name: cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for path in (folder_data / "annotations" / "val").iterdir()
    }
    pixels = np.bincount(np.concatenate([label.ravel() for label in labels.values()]))
    assert evaluated.counts.sum(1).tolist() == pixels[:3].tolist()
    samples, worst = (evaluated.pictures[kind] for kind in ("samples", "worst"))
    assert {it.name for it in samples} == {it.name for it in worst} == set(labels)
    assert [it.name for it in samples] != [it.name for it in worst]
    found = [it.score for it in worst]
    assert found == sorted(it.score for it in samples) and min(found) > 0
    page = (trained / "report.html").read_text()
    for figure in ("IoU", "Acc", "Dice"):
        for value in result[figure].values():
            assert f">{value:.2f}</td>" in page
    assert "train.train_iter</code>" in page and "<code>24</code>" in page
    assert f"{flow.__version__}, " in page and "1 (data 1 x tensor 1 x pipeline 1)" in page
    log = (trained / "log.txt").read_text()
    assert "Training done: 24 iterations in 0:0" in log
    assert f"  report: {trained}/report.html" in log
    assert f"  next: python tools/predict.py --weights {trained}/model_best " in log


def test_pictures_among_the_events_of_tensorboard(trained, folder_data):
    found = {}
    for event in tensorboard_events(trained / "tensorboard"):
        for value in event.summary.value:
            if value.HasField("image"):
                found.setdefault(value.tag, []).append((event.step, value.image))
    names = {f"samples/{path.name}" for path in (folder_data / "images" / "val").iterdir()}
    assert found.keys() == {*names, "confusion matrix"}
    for images in found.values():
        assert [step for step, _ in images] == [12, 24]
        for _, image in images:
            encoded = np.frombuffer(image.encoded_image_string, np.uint8)
            assert cv2.imdecode(encoded, 1).shape == (image.height, image.width, 3)
    image = found["samples/00.png"][0][1]
    assert (image.height, image.width) == (40, 3 * 48)


@pytest.mark.slow
def test_prediction_with_flip(outputs, trained, folder_data):
    config = load_config(str(trained / "config.yaml"))
    without = 0
    for path in sorted((folder_data / "images" / "val").iterdir()):
        rgb = cv2.imread(str(path))[..., ::-1]
        best, is_clear = arg_max(config, trained / "model_0000007", rgb, flip=True)
        assert is_clear.mean() > 0.95
        result = cv2.imread(str(outputs / "flip" / f"{path.stem}_labels.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(result[is_clear], best[is_clear])
        plain, _ = arg_max(config, trained / "model_0000007", rgb)
        without += (plain != result)[is_clear].sum()
    assert without > 0  # or nothing would have been asked


# --- two processes ------------------------------------------------------------------------------

MODES = {
    "whole": (),
    "slide": ("inference.crop_size=[64,64]", "inference.stride=[40,48]"),
    "resize": ("inference.resize=[64,120]", "inference.divisor=32", "inference.flip=True"),
}


@pytest.mark.slow
def test_images_of_different_sizes_on_two_processes(trained, folder_data, run_ranks, tmp_path):
    """Which come in turns, so that neighbours cannot go through the network together."""
    for kind in ("images", "annotations"):
        for index in range(7):
            height, width = ((80, 96), (57, 91), (80, 64))[index % 3]
            source = folder_data / kind / "train" / f"{index:02d}.png"
            target = tmp_path / "data" / kind / "val" / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            cropped = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)[:height, :width]
            cv2.imwrite(str(target), cropped)
    for processes in (1, 2):
        commands = []
        for mode, overrides in MODES.items():
            more = (
                f"train.load_weight={trained}/model_0000007",
                f"train.dist.data_parallel_size={processes}",
                "train.evaluation.worst_images=3",
                "train.evaluation.boundary_iou=True",
                *overrides,
            )
            output = tmp_path / f"{mode}_{processes}"
            overrides = tiny_run(tmp_path / "data", output, *more)
            commands.append(["train_net", ["--config-file", CONFIG, "--eval-only", *overrides]])
        file = tmp_path / "commands.json"
        file.write_text(json.dumps(commands))
        run_ranks(processes, COMMANDS, file)
    figures = [evaluation(tmp_path / f"{mode}_1") for mode in MODES]
    assert len({result["aAcc"] for result in figures}) == len(MODES)
    for mode in MODES:
        one, two = tmp_path / f"{mode}_1", tmp_path / f"{mode}_2"
        assert evaluation(two) == evaluation(one)
        sheets = [(output / "worst_images.png").read_bytes() for output in (one, two)]
        assert sheets[0] == sheets[1]
        records = [(output / "report/evaluated.json").read_bytes() for output in (one, two)]
        assert records[0] == records[1]
