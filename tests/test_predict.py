"""tools/predict.py as a person runs it, against the same prediction by other means."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import oneflow as flow
import pytest
import torch
from omegaconf import OmegaConf

from conftest import CLASSES, ROOT, TINY_MODEL, error_line, run_tool
from postscript_files import EPS, fake_ghostscript
from projects.SegFormer.dataset.folder import distinct_palette
from projects.SegFormer.evaluation.visualize import overlay
from projects.SegFormer.model_utils.segf_loader import load_weights

TOOL = "tools/predict.py"
PALETTE = np.array(distinct_palette(3), np.uint8)
# ImageNet's mean and standard deviation, as everywhere.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def read_rgb(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1]


@pytest.fixture(scope="module")
def images(folder_data, tmp_path_factory) -> Path:
    """A folder of images of many kinds, one of them cut short."""
    root = tmp_path_factory.mktemp("images")
    street = root / "a" / "b"
    street.mkdir(parents=True)
    plain = [cv2.imread(str(folder_data / "images" / "val" / f"0{i}.png")) for i in range(4)]
    cv2.imwrite(str(root / "plain.png"), plain[0])
    cv2.imwrite(str(street / "odd.png"), plain[1][:57, :91])
    cv2.imwrite(str(root / "grey.png"), cv2.cvtColor(plain[2], cv2.COLOR_BGR2GRAY))
    cv2.imwrite(str(root / "alpha.png"), cv2.cvtColor(plain[3], cv2.COLOR_BGR2BGRA))
    cv2.imwrite(str(root / "a" / "photo.JPG"), cv2.resize(plain[0], (130, 70)))
    whole = (root / "plain.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").write_text("not an image, and not asked for")
    return root


GOOD = ("plain.png", "a/b/odd.png", "grey.png", "alpha.png", "a/photo.JPG")


@pytest.fixture(scope="module")
def predicted(trained, images, tmp_path_factory):
    """The process that predicted `images`, and its output folder."""
    output = tmp_path_factory.mktemp("predicted")
    return predict(trained, output, images), output


def predict(trained: Path, output: Path, *images: Path, **changed):
    arguments = {
        "config": trained / "config.yaml",
        "weights": trained / "model_final",
        "output": output,
    } | changed
    options = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    return run_tool(TOOL, *options, *map(str, images))


def written(output: Path, name: str, kind: str) -> Path:
    return (output / name).with_suffix("").with_name(f"{Path(name).stem}_{kind}.png")


def test_bad_image_is_told_and_the_others_are_written(predicted, images):
    process, output = predicted
    assert process.returncode == 1
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(images / "cut.png") in errors[0]
    assert "Traceback" not in process.stderr
    assert f"5 of 6 images segmented: see {output}" in process.stdout
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    expected = {
        str(written(output, name, kind).relative_to(output))
        for name in GOOD
        for kind in ("labels", "colors", "overlay")
    }
    assert files == expected


@pytest.fixture(scope="module")
def model(trained):
    cfg = OmegaConf.load(trained / "config.yaml").model.cfg
    return load_weights(OmegaConf.to_container(cfg), str(trained / "model_final"))


@pytest.mark.parametrize("name", GOOD)
def test_labels_are_the_arg_max_of_interpolated_logits(predicted, images, model, name):
    image = read_rgb(images / name)
    labels = cv2.imread(str(written(predicted[1], name, "labels")), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint8 and labels.shape == image.shape[:2]

    normalised = ((image - np.array(MEAN)) / STD).astype(np.float32).transpose(2, 0, 1)[None]
    with flow.no_grad():
        logits = model(images=flow.tensor(np.ascontiguousarray(normalised)))["prediction_scores"]
    logits = torch.nn.functional.interpolate(
        torch.from_numpy(logits.numpy()), size=image.shape[:2], mode="bilinear"
    )[0]
    best, second = logits.topk(2, dim=0).values
    clear = (best - second > 1e-4).numpy()  # elsewhere rounding decides
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], logits.argmax(0).numpy()[clear])


def test_labels_are_right(predicted, folder_data):
    """The prediction is of the image: most of its pixels have the class that is in the data."""
    labels = cv2.imread(str(written(predicted[1], "plain.png", "labels")), cv2.IMREAD_UNCHANGED)
    truth = cv2.imread(str(folder_data / "annotations" / "val" / "00.png"), cv2.IMREAD_UNCHANGED)
    assert (labels == truth)[truth != 255].mean() > 0.85


@pytest.mark.parametrize("name", GOOD)
def test_pictures_show_the_labels(predicted, images, name):
    labels = cv2.imread(str(written(predicted[1], name, "labels")), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read_rgb(written(predicted[1], name, "colors")), PALETTE[labels])
    expected = overlay(read_rgb(images / name), labels, CLASSES, PALETTE.tolist())
    np.testing.assert_array_equal(read_rgb(written(predicted[1], name, "overlay")), expected)
    assert expected.shape[1] > labels.shape[1]  # the legend


@pytest.mark.slow
def test_config_of_ones_own(trained, images, predicted, tmp_path):
    """A Python config beside a copy of ours gives what the training's config.yaml gives."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    config = tmp_path / "configs" / "mine.py"
    lines = (
        "from .segformer_camvid import cfg, data, dataloader, graph, model, optim, train",
        *TINY_MODEL,
        "cfg.num_classes = 3",
        f"dataloader.test[0].dataset.classes = {CLASSES}",
        "dataloader.test[0].dataset.palette = None",
    )
    config.write_text("\n".join(lines))
    process = predict(trained, tmp_path / "output", images / "plain.png", config=config)
    assert process.returncode == 0, process.stderr
    for kind in ("labels", "colors", "overlay"):
        expected = written(predicted[1], "plain.png", kind)
        assert written(tmp_path / "output", "plain.png", kind).read_bytes() == expected.read_bytes()


# --- errors: nothing is written -----------------------------------------------------------------


def empty_folder(tmp_path: Path, images: Path) -> dict:
    (tmp_path / "empty").mkdir()
    return dict(images=[tmp_path / "empty"], words=["no images in", "empty", ".jpg"])


def no_weights(tmp_path: Path, images: Path) -> dict:
    return dict(weights=tmp_path / "nowhere", words=["no weights at", "nowhere"])


def damaged_weights(tmp_path: Path, images: Path) -> dict:
    (tmp_path / "weights" / "model").mkdir(parents=True)
    (tmp_path / "weights" / "model" / "pickled_data").write_text("not weights")
    return dict(weights=tmp_path / "weights", words=["not whole", "weights"])


def no_config(tmp_path: Path, images: Path) -> dict:
    return dict(config=tmp_path / "nowhere.py", words=["no config file", "nowhere.py"])


def one_name_twice(tmp_path: Path, images: Path) -> dict:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(images / "plain.png", other / "plain.png")
    both = [images / "plain.png", other / "plain.png"]
    return dict(images=both, words=[str(both[0]), str(both[1]), "--output"])


def one_name_with_two_suffixes(tmp_path: Path, images: Path) -> dict:
    folder = tmp_path / "folder"
    folder.mkdir()
    for suffix in ("png", "jpg"):
        cv2.imwrite(str(folder / f"same.{suffix}"), np.zeros((64, 64, 3), np.uint8))
    return dict(images=[folder], words=["same.png", "same.jpg"])


@pytest.mark.parametrize(
    "case",
    [
        one_name_twice,
        *(
            pytest.param(case, marks=pytest.mark.slow)
            for case in (
                empty_folder,
                no_weights,
                damaged_weights,
                no_config,
                one_name_with_two_suffixes,
            )
        ),
    ],
)
def test_error(trained, images, tmp_path, case):
    changed = case(tmp_path, images)
    words = changed.pop("words")
    inputs = changed.pop("images", [images / "plain.png"])
    line = error_line(predict(trained, tmp_path / "output", *inputs, **changed))
    assert all(word in line for word in words), line
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
def test_missing_image_is_told(trained, images, tmp_path):
    process = predict(trained, tmp_path, images / "plain.png", images / "gone.png")
    assert process.returncode == 1
    assert f"error: {images}/gone.png: cannot be read: No such file" in process.stderr
    assert written(tmp_path, "plain.png", "labels").exists()


ODD_NAMES = [os.fsdecode(name) for name in (b"caf\xe9", b"\xff\xfe", "\u65e5\u672c".encode())]


def test_files_and_names_of_all_kinds(trained, folder_data, tmp_path):
    """Names that are not UTF-8 are written as they are; what is no image is told, and never run."""
    path, marker = fake_ghostscript(tmp_path)
    images, output = tmp_path / ODD_NAMES[0], tmp_path / os.fsdecode(b"out\xe9")
    (images / "folder.png").mkdir(parents=True)
    os.mkfifo(images / "pipe.png")
    (images / "eps.png").write_bytes(EPS)
    for name in ODD_NAMES:
        shutil.copy(folder_data / "images" / "val" / "00.png", images / f"{name}.png")
    process = run_tool(
        *(TOOL, "--config", str(trained / "config.yaml"), "--output", str(output)),
        *("--weights", str(trained / "model_final"), str(images)),
        PATH=path,
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "3 of 5 images segmented: see " in process.stdout
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "eps.png holds PostScript (EPS)" in errors[0] and "pipe.png is no regular" in errors[1]
    assert not marker.exists()
    first, *others = (output / f"{name}_labels.png" for name in ODD_NAMES)
    assert all(path.read_bytes() == first.read_bytes() for path in others)
    expected = {
        f"{name}_{kind}.png" for name in ODD_NAMES for kind in ("labels", "colors", "overlay")
    }
    assert set(os.listdir(output)) == expected


@pytest.mark.slow
def test_full_disk(trained, images, tmp_path):
    """Files of more than 4 kB cannot be written: a line for each image, and no part of a file."""
    command = f'ulimit -f 4; exec {sys.executable} {TOOL} "$@"'
    process = subprocess.run(
        ["bash", "-c", command, "bash", "--config", trained / "config.yaml", "--weights"]
        + [
            trained / "model_final",
            "--output",
            tmp_path,
            images / "plain.png",
            images / "grey.png",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert [
        f"cannot write {tmp_path}/{name}_overlay.png" in line
        for name, line in zip(("plain", "grey"), errors, strict=True)
    ] == [True, True]
    assert "0 of 2 images segmented" in process.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}_{kind}.png" for name in ("plain", "grey") for kind in ("labels", "colors")
    }
    for path in tmp_path.iterdir():
        assert cv2.imread(str(path)).shape == (80, 96, 3)
