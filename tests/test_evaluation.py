"""What an evaluation leaves behind, as a person starts it, and on ranks that see other sizes."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import CONFIG, TINY_MODEL, error_line, run_tool, tiny_run, train_sh
from projects.SegFormer.evaluation.boundary_iou import BoundaryIoUEvaluator, boundary
from projects.SegFormer.evaluation.mean_iou import MeanIoUEvaluator
from projects.SegFormer.evaluation.result_files import ResultFiles
from projects.SegFormer.evaluation.worst_images import WorstImages
from projects.SegFormer.modeling.errors import InputError

TOOL = "tools/train_net.py"


# ---- boundaries ---------------------------------------------------------------------------------


def blobs(seed, size=(60, 80), classes=4):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (6, 8)).astype(np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)


def boundary_by_distance(mask, steps):
    """Pixels of the mask with a pixel outside it, or outside the image, in the square around."""
    found = np.zeros_like(mask)
    padded = np.pad(mask, steps)
    for y, x in np.argwhere(mask):
        found[y, x] = not padded[y : y + 2 * steps + 1, x : x + 2 * steps + 1].all()
    return found


@pytest.mark.parametrize("size", [(60, 80), (30, 200), (7, 5)])
def test_boundary_is_what_is_near_the_edge(size):
    mask = blobs(0, size) > 1
    steps = max(1, round(0.02 * (size[0] ** 2 + size[1] ** 2) ** 0.5))
    np.testing.assert_array_equal(boundary(mask), boundary_by_distance(mask, steps))


def test_boundary_iou():
    names = [f"class {i}" for i in range(5)]  # the last is nowhere
    evaluator = BoundaryIoUEvaluator(names)
    shared, either = np.zeros(5), np.zeros(5)
    for seed in range(3):
        label, prediction = blobs(seed), blobs(seed)
        prediction = np.roll(prediction, seed + 1, axis=1)
        label[:5, :9] = 255
        evaluator.update(prediction, label)
        for index in range(5):
            truth = boundary_by_distance(label == index, 2)
            guess = boundary_by_distance((prediction == index) & (label != 255), 2)
            shared[index] += (truth & guess).sum()
            either[index] += (truth | guess).sum()
    result = evaluator.evaluate()
    expected = 100 * shared[:4] / either[:4]
    assert list(result["boundary_IoU"].values()) == pytest.approx([*expected, None])
    assert result["boundary_mIoU"] == pytest.approx(expected.mean())
    assert 0 < result["boundary_mIoU"] < 100


# ---- worst images -------------------------------------------------------------------------------


class Maps:
    """A data set of random label maps."""

    classes, palette = ["a", "b", "c"], [(200, 0, 0), (0, 200, 0), (0, 0, 200)]

    def __init__(self, count):
        rng = np.random.default_rng(1)
        self.labels = rng.choice([0, 1, 2, 255], (count, 12, 16)).astype(np.uint8)
        self.images = [Path(f"image{index}.png") for index in range(count)]

    def load(self, index):
        return np.full((12, 16, 3), 120, np.uint8), self.labels[index]


def test_worst_images_are_those_of_lowest_miou(tmp_path):
    dataset, rng = Maps(12), np.random.default_rng(2)
    worst, scores = WorstImages(dataset, 4), {}
    for index, label in enumerate(dataset.labels):
        right = rng.random(label.shape) < rng.random()
        prediction = np.where(right & (label != 255), label, rng.integers(0, 3, label.shape))
        worst.update(index, prediction, label)
        evaluator = MeanIoUEvaluator(dataset.classes)
        evaluator.update(prediction, label)
        scores[index] = evaluator.evaluate()["mIoU"]
    entries = worst.entries()
    expected = sorted(scores, key=scores.get)[:4]
    assert [index for _, index, _ in entries] == expected
    assert [score for score, _, _ in entries] == [scores[index] for index in expected]
    worst.draw(tmp_path / "worst.png", entries)
    sheet = cv2.imread(str(tmp_path / "worst.png"))
    assert (sheet == (60, 60, 255)).all(-1).any()  # wrong pixels, in BGR


def test_images_without_a_label_are_no_worst(tmp_path):
    worst = WorstImages(Maps(1), 2)
    worst.update(0, np.zeros((12, 16), np.int64), np.full((12, 16), 255))
    assert worst.entries() == []


# ---- results for a server -----------------------------------------------------------------------


def test_results_have_the_values_and_names_asked_for(tmp_path):
    files = ResultFiles(
        tmp_path / "out", [Path("a/x_1.jpg"), Path("b/y.2.png")], np.array([7, 11, 33], np.uint8)
    )
    prediction = np.array([[0, 1], [2, 1]])
    files.write(1, prediction)
    written = cv2.imread(str(tmp_path / "out" / "y.2.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written, [[7, 11], [33, 11]])
    assert not (tmp_path / "out" / "x_1.png").exists()


def test_two_images_of_one_name(tmp_path):
    with pytest.raises(InputError, match="two images are called x"):
        ResultFiles(tmp_path, [Path("a/x.jpg"), Path("b/x.jpg")], np.arange(3, dtype=np.uint8))


LAYOUTS = {
    # images, labels, values of the label files, config and its split without labels
    "city": ("leftImg8bit/val/town/{}_leftImg8bit", "gtFine/val/town/{}_gtFine_labelIds"),
    "ade20k": ("images/validation/{}", "annotations/validation/{}"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_format_only(tmp_path, name):
    """The same network, evaluated in the ordinary way: its labels say what must be in the files."""
    rng = np.random.default_rng(0)
    image_name, label_name = LAYOUTS[name]
    suffix = ".png" if name == "city" else ".jpg"
    for index in range(2):
        stem = f"town_{index:06d}_000019" if name == "city" else f"ADE_val_{index:08d}"
        size = (40 + 24 * index, 64)
        for pattern, end, shape in ((image_name, suffix, (*size, 3)), (label_name, ".png", size)):
            path = tmp_path / (pattern.format(stem) + end)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(
                str(path),
                rng.integers(0, 8, shape, dtype=np.uint8)
                * (30 if end == suffix and len(shape) == 3 else 1),
            )
    command = [TOOL, "--config-file", f"configs/segformer_{name}.py", *TINY_MODEL]
    command += [
        f"data.root={tmp_path}",
        "inference.resize=[64,96]",
        "dataloader.test.0.num_workers=0",
    ]
    if name == "city":
        command += ["inference.crop_size=[64,64]", "inference.stride=[32,32]"]
    process = run_tool(*command, "--format-only", f"train.output_dir={tmp_path / 'out'}")
    assert process.returncode == 0, process.stderr
    written = sorted((tmp_path / "out" / "results").glob("*.png"))
    images = sorted((tmp_path / image_name).parent.glob(f"*{suffix}"))
    assert [path.stem for path in written] == [path.stem for path in images]
    # label ids of the training classes of Cityscapes; ADE20K's classes counted from 1
    allowed = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
    if name == "ade20k":
        allowed = set(range(1, 151))
    for result, image in zip(written, images, strict=True):
        values = cv2.imread(str(result), cv2.IMREAD_UNCHANGED)
        assert values.shape == cv2.imread(str(image)).shape[:2]
        assert set(np.unique(values)) <= allowed
    assert not (tmp_path / "out" / "evaluation.json").exists()


# ---- several checkpoints ------------------------------------------------------------------------


@pytest.mark.slow
def test_several_checkpoints(folder_data, trained, tmp_path):
    run = ["--config-file", CONFIG, "--eval-only", *tiny_run(folder_data, tmp_path)]
    several = run_tool(
        TOOL, *run, f"train.load_weight='{trained}/model_0*'", "train.evaluation.worst_images=2"
    )
    assert several.returncode == 0, several.stderr
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert sorted(Path(path).name for path in results) == ["model_0000007", "model_0000015"]
    assert (tmp_path / "worst_images.png").exists()
    for path, expected in results.items():
        alone = run_tool(TOOL, *run, f"train.load_weight={path}")
        assert alone.returncode == 0, alone.stderr
        result = json.loads((tmp_path / "evaluation.json").read_text())
        assert result["mIoU"] == expected["mIoU"] and result["IoU"]["disc"] == expected["IoU/disc"]
    values = [result["mIoU"] for result in results.values()]
    assert values[0] != values[1]


def test_a_pattern_of_nothing(folder_data, tmp_path):
    command = tiny_run(folder_data, tmp_path, "train.load_weight='nowhere/model_*'")
    process = run_tool(TOOL, "--config-file", CONFIG, "--eval-only", *command)
    assert "train.load_weight=nowhere/model_*: nothing is called so" in error_line(process)


# ---- ranks --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [
        (),
        ("inference.resize=[64,128]", "inference.divisor=32", "inference.flip=True"),
        ("inference.crop_size=[48,48]", "inference.stride=[32,32]"),
    ],
    ids=("whole", "resized", "slide"),
)
def test_ranks_with_images_of_many_sizes(trained, tmp_path, mode):
    """Two ranks compute each batch together, and yet give the figures of one, image for image."""
    rng = np.random.default_rng(3)
    for kind in ("images", "annotations"):
        for split in ("train", "val"):
            (tmp_path / kind / split).mkdir(parents=True)
    for index, size in enumerate(
        [(64, 80), (70, 50), (64, 80), (33, 97), (70, 50), (64, 80), (90, 90)]
    ):
        label = rng.integers(0, 3, size, dtype=np.uint8)
        image = cv2.GaussianBlur((label[..., None] * (90, 60, 30)).astype(np.uint8), (5, 5), 0)
        for split in ("train", "val"):
            cv2.imwrite(str(tmp_path / "images" / split / f"{index}.png"), image)
            cv2.imwrite(str(tmp_path / "annotations" / split / f"{index}.png"), label)
    results = []
    for ranks in (1, 2):
        output = tmp_path / f"ranks{ranks}"
        command = [*tiny_run(tmp_path, output), f"train.load_weight={trained}/model_final", *mode]
        command += ["train.evaluation.worst_images=3", "train.evaluation.boundary_iou=True"]
        code, _, stderr = train_sh(CONFIG, str(ranks), "--eval-only", *command)
        assert code == 0, stderr
        results.append(json.loads((output / "evaluation.json").read_text()))
        sheet = cv2.imread(str(output / "worst_images.png"))
        results[-1]["sheet"] = sheet.tolist()
    assert results[0] == results[1]
    assert 0 < results[0]["mIoU"] < 100
