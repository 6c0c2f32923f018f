"""tools/check_dataset.py: its counts against plain NumPy, its findings against broken files."""

import json
import logging
import os
import re
import shutil
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from libai.utils.distributed import setup_dist_util
from omegaconf import OmegaConf
from PIL import Image

from conftest import CLASSES, CONFIG, ROOT, error_line, run_tool, tiny_run
from data_files import noise, save
from postscript_files import EPS, fake_ghostscript
from projects.SegFormer.dataset import inspection, remarks
from projects.SegFormer.dataset.build import build_train_loader
from projects.SegFormer.dataset.classification import ClassificationFolder
from projects.SegFormer.dataset.folder import SegmentationFolder, distinct_palette
from projects.SegFormer.dataset.inspection import Inspection, images_in_both, inspect, quick_look
from projects.SegFormer.dataset.transforms import Normalize, RandomFlip
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.trainer import SegformerTrainer
from projects.SegFormer.modeling.errors import InputError, printable
from projects.SegFormer.tools import check_dataset
from projects.SegFormer.tools.check_dataset import (
    draw_sheet,
    format_classes,
    format_counts,
    format_speed,
    main,
    measure,
    take_samples,
)

CONFIG_FILE = str(ROOT / CONFIG)
COUNT = dict(train=12, val=5)


def label_files(root: Path, split: str) -> list[np.ndarray]:
    paths = sorted((root / "annotations" / split).glob("*.png"))
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths]


def dataset(root: Path, split: str = "train", **kwargs) -> SegmentationFolder:
    return SegmentationFolder(root, split, CLASSES, **({"transforms": [Normalize()]} | kwargs))


@pytest.fixture
def copied(folder_data, tmp_path) -> Path:
    return Path(shutil.copytree(folder_data, tmp_path / "data"))


def check(root: Path, output: Path, *more: str) -> dict:
    """Run the tool in this process; its report.json."""
    try:
        main([CONFIG_FILE, "--output", str(output), *tiny_run(root, output), *more])
    finally:
        report = json.loads((output / "report.json").read_text())
    return report


# ---- Counts ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked(folder_data, tmp_path_factory):
    """The tool as a person runs it, with options before, between and after the overrides."""
    output = tmp_path_factory.mktemp("checked") / "new" / "folder"
    first, *rest = tiny_run(folder_data, output)
    command = (CONFIG, first, "--sample", "3", *rest, "--output", str(output))
    return run_tool("tools/check_dataset.py", *command), output


def test_report_holds_the_counts_of_the_files(checked, folder_data):
    process, output = checked
    assert process.returncode == 0, process.stderr
    report = json.loads((output / "report.json").read_text())
    assert report["errors"] == report["notes"] == []
    for split, name in (("train", "training data"), ("val", "test data")):
        labels = label_files(folder_data, split)
        values = np.stack(labels)
        found = report["data"][name]
        assert found["images"] == found["labels"] == len(labels) == COUNT[split]
        assert found["most_common_sizes"] == {"80x96": COUNT[split]}
        assert found["size_min_median_max"] == {"height": [80] * 3, "width": [96] * 3}
        assert found["ignored_pixels"] == (values == 255).sum() == COUNT[split] * 96
        assert found["ignored_share"] == pytest.approx(1 / 80)
        assert found["absent_classes"] == []
        assert [entry["name"] for entry in found["classes"]] == [*CLASSES]
        for index, entry in enumerate(found["classes"]):
            assert entry["pixels"] == (values == index).sum()
            assert entry["images"] == sum(bool((label == index).any()) for label in labels)
            assert entry["share"] == pytest.approx((values == index).sum() / (values < 255).sum())
    speed = report["training_loader"]
    assert speed["images_per_second"] > 0 and speed["size"] == [64, 64]


def test_text_tells_the_counts(checked, folder_data):
    process, output = checked
    lines = process.stdout.splitlines()
    assert "training data  12 images, 12 labels" in lines
    assert "test data      5 images, 5 labels" in lines
    assert lines.count("  sizes        all 80x96") == 2
    assert lines.count("  ignored      1.2% of the pixels of the labels") == 2  # a row of 80
    discs = [np.stack(label_files(folder_data, split)) for split in COUNT]
    shares = [f"{(labels == 0).sum() / (labels < 255).sum():.2%}" for labels in discs]
    assert ["disc", "12", shares[0], "5", shares[1]] in [line.split() for line in lines]
    assert f"3 augmented training samples: {output}/samples.png" in lines
    assert any(line.startswith("training loader: ") for line in lines)
    assert lines[-1] == "no errors"


def test_sizes_and_classes_that_differ(copied):
    for place, size in enumerate([(40, 96), (60, 30), (100, 200)]):
        name = f"0{place}.png"
        save(noise(*size), copied / "images/train" / name)
        save(np.full(size, 1, np.uint8), copied / "annotations/train" / name)
    data = dataset(copied)
    data.classes, data.palette = [*CLASSES, "cloud"], [*data.palette, (9, 9, 9)]
    found = inspect(data, "data")
    assert found.sizes == {(80, 96): 9, (40, 96): 1, (60, 30): 1, (100, 200): 1}
    assert found.size_range() == {"height": [40, 80, 100], "width": [30, 96, 200]}
    assert found.absent_classes() == ["cloud"]
    text = format_counts({"training data": found})
    assert "height 40 to 100, median 80; width 30 to 200, median 96; most often 80x96 (9)" in text


def test_a_split_without_labels(copied):
    data = dataset(copied)
    data.labels = None
    found = inspect(data, "data")
    assert (found.images, found.labels) == (12, 0) and found.absent_classes() == []
    text = format_classes({"training data": inspect(dataset(copied), ""), "test data": found})
    assert all(line.split()[-2:] == ["-", "-"] for line in text.splitlines()[2:])
    assert "ignored" not in format_counts({"test data": found})


def test_a_long_table_shows_both_ends():
    names = [f"class{index}" for index in range(60)]
    found = Inspection(Sleepy(names))
    found.labels = 100
    found.class_images[:] = [*range(1, 51), *[0] * 10]
    found.class_pixels[:] = found.class_images
    lines = format_classes({"training data": found}).splitlines()[2:]
    listed = [line.split()[0] for line in lines]
    assert listed[:20] == [f"class{index}" for index in range(49, 29, -1)]
    assert lines[20] == "... 10 classes more, in report.json ..."
    assert listed[21:] == [f"class{index}" for index in range(19, -1, -1)]


def test_images_in_training_and_test(copied, tmp_path):
    image = cv2.imread(str(copied / "images/train/07.png"))
    cv2.imwrite(str(copied / "images/val/03.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    found = {split: inspect(dataset(copied, split), split) for split in COUNT}
    pair = (str(copied / "images/train/07.png"), str(copied / "images/val/03.png"))
    assert images_in_both(found["train"], found["val"]) == [pair]
    (note,) = check(copied, tmp_path / "output", "--sample", "0")["notes"]
    assert note.startswith("1 of 5 images of the test data also in the training data")
    assert all(path in note for path in pair)


# ---- Errors ------------------------------------------------------------------------------------


def no_image(root: Path) -> str:
    (root / "images/train/04.png").write_bytes(b"not an image")
    return "images/train/04.png: damaged, cut short or not an image (12 bytes)"


def cut_image(root: Path) -> str:
    image = cv2.imread(str(root / "images/train/05.png"))
    data = cv2.imencode(".jpg", image)[1].tobytes()
    (root / "images/train/05.png").write_bytes(data[: len(data) // 2])
    return "images/train/05.png: damaged, cut short"


def cut_label(root: Path) -> str:
    path = root / "annotations/train/06.png"
    path.write_bytes(path.read_bytes()[:-60])
    return "annotations/train/06.png: damaged, cut short"


def other_size(root: Path) -> str:
    save(np.zeros((80, 95), np.uint8), root / "annotations/train/07.png")
    return "annotations/train/07.png: the label is 80x95 but its image"


def unknown_value(root: Path) -> str:
    save(np.full((80, 96), 3, np.uint8), root / "annotations/train/08.png")
    return "annotations/train/08.png: label value 3 stands for none of the 3 classes"


def coloured_label(root: Path) -> str:
    save(noise(80, 96), root / "annotations/train/09.png")
    return "annotations/train/09.png: the label is an image of mode RGB"


BROKEN = (no_image, cut_image, cut_label, other_size, unknown_value, coloured_label)


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_file_is_found_and_not_counted(copied, damage):
    expected = damage(copied)
    found = inspect(dataset(copied), "data")
    assert len(found.errors) == 1 and expected in found.errors[0]
    assert "\n" not in found.errors[0]
    assert (found.images, found.labels) == (12, 11)
    place = int(expected.split(".png")[0][-2:])
    labels = [label_files(copied, "train")[index] for index in range(12) if index != place]
    assert found.class_pixels.tolist() == [(np.stack(labels) == index).sum() for index in range(3)]


def test_all_errors_are_told_at_the_end(copied, tmp_path, capsys):
    expected = [damage(copied) for damage in BROKEN]
    output = tmp_path / "output"
    with pytest.raises(InputError, match=f"^6 errors in the data; all are in {output}/report.json"):
        main([CONFIG_FILE, "--output", str(output), *tiny_run(copied, output), "--sample", "4"])
    printed = capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())
    assert len(report["errors"]) == 6 and "training_loader" not in report
    for error in report["errors"]:
        assert error in printed
    assert all(any(part in error for error in report["errors"]) for part in expected)
    assert "training data  12 images, 6 labels read, 6 with errors" in printed
    assert "4 augmented training samples" in printed  # of the files that are whole


def test_twenty_errors_are_printed_and_all_are_reported(tmp_path):
    for split, count in (("train", 23), ("val", 1)):
        for index in range(count):
            save(noise(8, 8), tmp_path / f"data/images/{split}/{index:02d}.png")
            label = np.full((8, 8), 77 if split == "train" else 0, np.uint8)
            save(label, tmp_path / f"data/annotations/{split}/{index:02d}.png")
    output = tmp_path / "output"
    command = (CONFIG, *tiny_run(tmp_path / "data", output), "--output", str(output))
    process = run_tool("tools/check_dataset.py", *command)
    line = error_line(process)
    assert process.returncode == 1
    assert line.startswith("error: 23 errors in the data, the first 20 of them above; all are in")
    assert process.stdout.count("label value 77 stands for none") == 20
    assert len(json.loads((output / "report.json").read_text())["errors"]) == 23
    assert not (output / "samples.png").exists()


def test_number_of_classes_is_told_as_by_the_trainer(folder_data, tmp_path):
    with pytest.raises(InputError, match="^1 error in the data"):
        check(folder_data, tmp_path, "cfg.num_classes=5", "--sample", "0")
    report = json.loads((tmp_path / "report.json").read_text())
    expected = "the model has 5 classes, the data set 3: set cfg.num_classes=3"
    assert report["errors"] == [expected]
    assert report["data"]["training data"]["labels"] == 12  # it went on


def test_samples_that_make_no_batch_are_an_error(copied, tmp_path):
    save(noise(40, 30), copied / "images/train/00.png")
    save(np.zeros((40, 30), np.uint8), copied / "annotations/train/00.png")
    with pytest.raises(InputError, match="^1 error in the data"):
        check(copied, tmp_path / "output", "dataloader.train.dataset.transforms.5.size=[8,8]")
    report = json.loads((tmp_path / "output" / "report.json").read_text())
    assert "samples of different sizes in one batch" in report["errors"][0]
    assert (tmp_path / "output" / "samples.png").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["data.rot=/nowhere"], ["no 'rot' in data", "root"]),
        (["--sample", "-1"], ["--sample -1", "0 for no sheet"]),
    ],
)
def test_what_cannot_be_looked_at_ends_at_once(folder_data, tmp_path, more, words):
    output = tmp_path / "output"
    with pytest.raises(InputError) as error:
        main([CONFIG_FILE, *tiny_run(folder_data, output), "--output", str(output), *more])
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value) and not output.exists()


def faulty(root, output, *more: str) -> tuple[list[str], dict]:
    """The errors of a check, and its whole report."""
    with pytest.raises(InputError, match="in the data; all are in|in the data, the first"):
        check(root, output, "--sample", "2", *more)
    report = json.loads((output / "report.json").read_text())
    return report["errors"], report


def test_what_stands_alone_is_told_beside_all_else(copied, tmp_path, capsys):
    """On both sides, in both splits, with a broken file and the number of classes."""
    for name in ("03", "07"):
        (copied / f"annotations/train/{name}.png").unlink()
    save(noise(80, 96), copied / "annotations/train/extra.png")
    (copied / "images/val/04.png").unlink()
    (copied / "images/train/00.png").write_bytes(b"?")
    errors, report = faulty(copied, tmp_path / "output", "cfg.num_classes=4")
    expected = (
        "2 of 12 files have no label: images/train/03.png, images/train/07.png;",
        "1 of 11 files have no image: annotations/train/extra.png;",
        "the model has 4 classes, the data set 3",
        "1 of 5 files have no image: annotations/val/04.png;",
        "images/train/00.png: damaged",
    )
    assert len(errors) == len(expected)
    assert all(part in error for part, error in zip(expected, errors, strict=True))
    printed = capsys.readouterr().out
    assert all(error in printed for error in errors)
    assert "training data  10 images, 9 labels read, 1 with errors" in printed
    assert report["data"]["test data"]["labels"] == 4
    assert "2 augmented training samples" in printed


def test_a_split_that_is_missing_is_told_beside_the_other(copied, tmp_path, capsys):
    shutil.rmtree(copied / "annotations/train")
    errors, report = faulty(copied, tmp_path / "output")
    assert len(errors) == 1 and "12 images and 0 label maps found" in errors[0]
    assert "test data      5 images, 5 labels" in capsys.readouterr().out
    assert [*report["data"]] == ["test data"]
    shutil.rmtree(copied / "images")
    errors, report = faulty(copied, tmp_path / "output")
    assert len(errors) == 2 and report["data"] == {}


def test_other_classes_are_told_beside_the_counts(folder_data, tmp_path, capsys):
    other = "dataloader.test.0.dataset.classes=[disc,sky,field]"
    errors, report = faulty(folder_data, tmp_path / "output", other)
    assert len(errors) == 1 and "other classes" in errors[0] and "same order" in errors[0]
    assert len(report["data"]) == 2
    other = "dataloader.test.0.dataset.classes=[disc,field,sky,cloud]"
    errors, report = faulty(folder_data, tmp_path / "output", other)
    assert "the model has 3 classes, the data set 4" in errors[0]
    assert ["cloud", "-", "-", "0", "0.00%"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_classes_without_images_are_told_beside_the_others(class_folders, tmp_path):
    shutil.rmtree(class_folders / "val/disc")
    (class_folders / "val/disc").mkdir()
    save(noise(40, 48), class_folders / "val/unknown/0.png")
    config = str(ROOT / "configs/segformer_imgnet1k_pretrain.py")
    overrides = (f"data.root={class_folders}", "cfg.num_classes=3", "train.global_batch_size=4")
    with pytest.raises(InputError, match="^2 errors in the data"):
        main([config, *overrides, "--output", str(tmp_path / "output")])
    report = json.loads((tmp_path / "output/report.json").read_text())
    assert report["data"]["test data"]["images"] == 2
    expected = ("disc: no image in the folder", "class 'unknown' (1 such)")
    assert all(part in error for part, error in zip(expected, report["errors"], strict=True))


# ---- What is read but worth a word ---------------------------------------------------------------


def test_copies_within_a_split_are_told(copied, tmp_path):
    for name in ("01", "02"):
        image = cv2.imread(str(copied / "images/train/07.png"))
        cv2.imwrite(str(copied / f"images/train/{name}.png"), image, [16, 9])
    found = inspect(dataset(copied), "data")
    first = str(copied / "images/train/01.png")
    assert found.copies == [(first, str(copied / f"images/train/{n}.png")) for n in ("02", "07")]
    (note,) = check(copied, tmp_path / "output", "--sample", "0")["notes"]
    assert "2 of 12 images of the training data are copies of others in it" in note
    assert f"{copied}/images/train/02.png = {first}" in note
    report = json.loads((tmp_path / "output/report.json").read_text())
    assert len(report["data"]["training data"]["copies"]) == 2


def test_remarks_are_counted_with_names(copied, tmp_path):
    images = copied / "images/train"
    for name, exif_label in (("00", (96, 80)), ("01", (80, 96)), ("02", (80, 96))):
        exif = Image.Exif()
        exif[0x0112] = 6
        with Image.open(images / f"{name}.png") as file:
            file.load()
            file.save(images / f"{name}.png", exif=exif)
        save(np.zeros(exif_label, np.uint8), copied / f"annotations/train/{name}.png")
    with Image.open(images / "03.png") as file:
        file.convert("RGBA").save(images / "03.png")
        picture = file.convert("RGBA")
    picture.putpixel((0, 0), (1, 2, 3, 4))
    picture.save(images / "04.png")
    data = (images / "05.png").read_bytes()
    (images / "05.png").write_bytes(data[:-12])
    save(np.zeros((80, 96), bool), copied / "annotations/train/06.png")
    found = inspect(dataset(copied), "data")
    counts = {
        remark: [Path(path).stem for path in paths] for remark, paths in found.remarks.items()
    }
    assert counts == {
        remarks.TURNED: ["00"],
        remarks.AS_STORED: ["01", "02"],
        remarks.ALPHA: ["04"],
        remarks.UNFINISHED: ["05"],
        remarks.ONE_BIT: ["06"],
    }
    notes = check(copied, tmp_path / "output", "--sample", "0")["notes"]
    expected = (
        f"2 files of the training data: {remarks.AS_STORED}: {images}/01.png, {images}/02.png"
    )
    assert expected in notes and len(notes) == 5


# ---- Labels of 0 and 255 -------------------------------------------------------------------------


def masks(root: Path, values, count=6, classes=("a", "b"), share=0.1) -> SegmentationFolder:
    """`count` labels whose pixels are values[0], but a share values[1], values[2] and so on."""
    for index in range(count):
        label = np.full((20, 20), values[0], np.uint8)
        for place, value in enumerate(values[1:]):
            label.ravel()[place * 100 : place * 100 + int(400 * share)] = value
        save(noise(20, 20, index), root / f"images/train/{index}.png")
        save(label, root / f"annotations/train/{index}.png")
    return SegmentationFolder(root, "train", classes, [])


@pytest.mark.parametrize(
    ("values", "classes", "share", "is_told"),
    [
        ((0, 255), ("a", "b"), 0.1, True),
        ((0, 255), ("a", "b"), 0.0025, True),  # small things on one class
        ((0, 1, 255), ("a", "b", "c"), 0.1, True),
        ((0, 1, 255), ("a", "b", "c"), 0.0025, False),
        ((0, 1, 255), ("a", "b"), 0.1, False),  # no class is missing
        ((0, 1), ("a", "b", "c"), 0.1, False),  # nothing is ignored
    ],
)
def test_the_class_that_was_drawn_as_255_is_told(tmp_path, values, classes, share, is_told):
    data = masks(tmp_path, values, classes=classes, share=share)
    note = inspect(data, "").ignored_class()
    assert (note is not None) == is_told and quick_look(data) == note
    if not is_told:
        return
    missing = len(values) - 1
    assert f"class {classes[missing]!r} ({missing}) is in none of 6 labels, and {share:.1%}" in note
    # The remedy that is told, done: the class is there.
    command = re.search("python -c '(.*)' LABEL.png$", note)[1]
    for path in data.labels:
        before = np.asarray(Image.open(path))
        arguments = ["-c", str(path)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", arguments)
            exec(command, {})
        expected = np.where(before == 255, missing, before)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    assert inspect(data, "").ignored_class() is None and quick_look(data) is None


def test_a_sample_gives_no_false_alarm(tmp_path, monkeypatch):
    """Of many labels, only one class in all of the sample is told; rare classes are just rare."""
    monkeypatch.setattr(inspection, "QUICK_LABELS", 4)
    data = masks(tmp_path / "many", (0, 1, 255), count=12, classes=("a", "b", "c"))
    assert inspect(data, "").ignored_class() and quick_look(data) is None
    data = masks(tmp_path / "one", (0, 255), count=12, classes=("a", "b", "c"))
    assert "class 'b' (1) is in none of 4 labels" in quick_look(data)
    Path(data.labels[0]).write_bytes(b"?")
    assert quick_look(data)
    data.labels = None
    assert quick_look(data) is None


def test_the_class_that_counts_nowhere_is_not_missed(tmp_path):
    masks(tmp_path, (0, 1))
    data = SegmentationFolder(tmp_path, "train", ("a", "b"), [], ignore_index=0)
    found = inspect(data, "")
    assert found.absent_classes() == [] and found.ignored_share() == 0.9
    assert found.ignored_class() is None and quick_look(data) is None


def test_a_look_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "QUICK_SECONDS", 0.0)
    assert quick_look(masks(tmp_path, (0, 255))) is None


def test_training_and_check_say_so(tmp_path, caplog):
    root = tmp_path / "data"
    for split in ("train", "val"):
        masks(tmp_path, (0, 1, 255), classes=CLASSES)
        for kind in ("images", "annotations"):
            shutil.copytree(tmp_path / kind / "train", root / kind / split)
    notes = check(root, tmp_path / "output", "--sample", "0")["notes"]
    told = [note for note in notes if "class 'sky' (2) is in none of 6 labels, and 10.0%" in note]
    assert [note.split(":")[0] for note in told] == ["training data", "test data"]
    sizes = ("train.num_accumulation_steps=1", "train.train_micro_batch_size=2")
    cfg = load_config(CONFIG_FILE, tiny_run(root, tmp_path, *sizes))
    setup_dist_util(cfg.train.dist)
    with caplog.at_level("WARNING", logger="libai"):
        logging.getLogger("libai").propagate = True
        SegformerTrainer.build_train_loader(cfg)
    assert "Training data: class 'sky' (2) is in none of 6 labels" in caplog.text


def test_folder_of_the_output(folder_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([CONFIG_FILE, "--sample", "0", *tiny_run(folder_data, tmp_path)])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == [tmp_path / "output/check_dataset/segformer_camvid/report.json"]


# ---- The sheet of samples ----------------------------------------------------------------------


def place_of(tile: np.ndarray, sheet: np.ndarray) -> tuple[int, int]:
    """The one place (top, left) where the tile is in the sheet."""
    height, width = tile.shape[:2]
    corners = np.argwhere((sheet[: 1 - height, : 1 - width] == tile[0, 0]).all(-1)).tolist()
    (place,) = [
        (top, left)
        for top, left in corners
        if np.array_equal(sheet[top : top + height, left : left + width], tile)
    ]
    return place


def test_sheet_shows_images_and_the_colours_of_their_labels(folder_data):
    data = dataset(folder_data)
    samples = take_samples(data, seed=0, draws=3)
    sheet = draw_sheet(data, samples)
    # Two rows of tiles of 320x384 under titles of 20 and heads of 28, gaps of 7; 4 and a legend.
    assert sheet.shape[0] == 28 + 2 * (20 + 320 + 7)
    tiles_width = 7 + 4 * (384 + 7)
    palette = np.array([*data.palette, (0, 0, 0)])
    assert len({index for index, _, _ in samples}) == 3
    for number, (index, _, _) in enumerate(samples):
        image = cv2.imread(str(data.images[index]))[..., ::-1].repeat(4, axis=0).repeat(4, axis=1)
        label = cv2.imread(str(data.labels[index]), cv2.IMREAD_UNCHANGED)
        label = np.minimum(label, 3).repeat(4, axis=0).repeat(4, axis=1)
        top, left = place_of(image, sheet)
        assert top == 28 + 20 + (number // 2) * (20 + 320 + 7)
        assert left == 7 + number % 2 * 2 * (384 + 7)
        drawn = sheet[top : top + 320, left + 391 : left + 391 + 384].astype(float)
        inner = np.zeros(label.shape, bool)
        inner.reshape(80, 4, 96, 4)[:, 1:, :, 1:] = True  # without the lines between labels
        blend = 0.45 * image + 0.55 * palette[label]
        assert np.abs(drawn - blend)[inner & (label < 3)].max() <= 0.501
        ignored = inner & (label == 3)
        plain = np.abs(drawn - image)[ignored].max(-1) == 0
        striped = np.abs(drawn - (0.45 * image + 0.55 * 255))[ignored].max(-1) <= 0.501
        assert (plain | striped).all() and 0.1 < striped.mean() < 0.3
    legend = {tuple(colour) for colour in sheet[:, tiles_width:].reshape(-1, 3).tolist()}
    assert {tuple(colour) for colour in palette[:3].tolist()} | {(120, 120, 120)} <= legend


def test_sheet_is_written_in_the_right_colours(checked):
    sheet = cv2.imread(str(checked[1] / "samples.png"))[..., ::-1]
    # Crops of 64x64, six times as large, three of them two a row.
    assert sheet.shape[0] == 2 * 17 + 2 * (24 + 384 + 8)
    colours = {tuple(colour) for colour in sheet[:, 8 + 4 * (384 + 8) :].reshape(-1, 3).tolist()}
    assert {*distinct_palette(3)[1:]} <= colours


def test_samples_of_different_sizes_are_padded_with_white(copied):
    save(noise(40, 30), copied / "images/train/00.png")
    save(np.zeros((40, 30), np.uint8), copied / "annotations/train/00.png")
    data = dataset(copied)
    samples = [(index, *data[index]) for index in (0, 1)]
    sheet = draw_sheet(data, samples)
    small = cv2.imread(str(data.images[0]))[..., ::-1].repeat(9, axis=0).repeat(9, axis=1)
    top, left = place_of(small, sheet)  # 360x270 in 360x384
    assert (sheet[top : top + 360, left + 270 : left + 384] == 255).all()


def test_large_samples_are_made_smaller_with_their_labels(tmp_path):
    label = np.zeros((1000, 1200), np.uint8)
    label[:, 600:] = 1
    for split in COUNT:
        save(np.full((1000, 1200, 3), 100, np.uint8), tmp_path / f"images/{split}/0.png")
        save(label, tmp_path / f"annotations/{split}/0.png")
    data = dataset(tmp_path)
    sheet = draw_sheet(data, [(0, *data[0])])
    top, left = place_of(np.full((320, 384, 3), 100, np.uint8), sheet)
    for column, index in ((0, 0), (191, 0), (193, 1), (383, 1)):
        expected = 45 + 0.55 * np.array(data.palette[index])
        pixels = sheet[top : top + 320, left + 391 + column]
        assert np.abs(pixels - expected).max() <= 0.501


def test_samples_are_those_of_a_training(folder_data):
    """The same augmentation as the loader gives for the same seed."""
    data = dataset(folder_data, transforms=[RandomFlip(0.5), Normalize()], seed=3)
    loader, _, _ = build_train_loader(data, 14, seed=3, num_workers=0)
    batch = next(iter(loader))
    samples = take_samples(data, seed=3, draws=14)
    np.testing.assert_array_equal(
        np.stack([image for _, image, _ in samples]), batch.images.tensor.numpy()
    )


# ---- Images of classes -------------------------------------------------------------------------


@pytest.fixture
def class_folders(tmp_path) -> Path:
    seed = 0
    for split, counts in (("train", (3, 1, 2)), ("val", (1, 0, 2))):
        for name, count in zip(CLASSES, counts):
            for index in range(count):
                seed += 1
                save(noise(40, 48, seed), tmp_path / f"classes/{split}/{name}/{index}.png")
    return tmp_path / "classes"


def test_images_of_classes_are_counted(class_folders, tmp_path, capsys):
    (class_folders / "train/sky/1.png").write_bytes(b"")
    config = str(ROOT / "configs/segformer_imgnet1k_pretrain.py")
    overrides = (
        *(f"data.root={class_folders}", "cfg.num_classes=3", "train.global_batch_size=4"),
        "dataloader.train.num_workers=1",
    )
    with pytest.raises(InputError, match="1 error in the data"):
        main([config, *overrides, "--output", str(tmp_path / "broken")])
    (class_folders / "train/sky/1.png").unlink()
    capsys.readouterr()
    main([config, *overrides, "--output", str(tmp_path / "output")])
    printed = capsys.readouterr().out
    assert ["disc", "3", "60.00%", "1", "33.33%"] in [line.split() for line in printed.splitlines()]
    assert "training loader: " in printed and "at 224x224" in printed
    assert "1 of 3 classes occur nowhere in the test data: field" in printed
    report = json.loads((tmp_path / "output" / "report.json").read_text())
    found = report["data"]["training data"]
    assert found["share_of"] == "images" and "ignored_pixels" not in found
    assert [(entry["name"], entry["images"]) for entry in found["classes"]] == [
        ("disc", 3),
        ("field", 1),
        ("sky", 1),
    ]
    assert (tmp_path / "output" / "samples.png").exists()
    broken = json.loads((tmp_path / "broken" / "report.json").read_text())
    assert "train/sky/1.png: damaged, cut short or not an image (0 bytes)" in broken["errors"][0]


def test_sheet_of_classes_shows_each_image_once(class_folders):
    data = ClassificationFolder(class_folders, "train", [Normalize()])
    sheet = draw_sheet(data, take_samples(data, seed=0, draws=6))
    places = []
    for path in data.images:
        image = cv2.imread(path)[..., ::-1].repeat(8, axis=0).repeat(8, axis=1)
        top, left = place_of(image, sheet)
        places.append((top, left))
        assert (sheet[top - 24 : top, left : left + 384] < 128).any()  # the name of the class
    assert len(set(places)) == 6
    assert sheet.shape[1] == 7 + 4 * (384 + 7)


# ---- The loader --------------------------------------------------------------------------------


class Sleepy:
    """A data set whose samples take 20 ms each and no processor."""

    def __init__(self, classes=()):
        self.classes = classes

    def __len__(self):
        return 100

    def __getitem__(self, draw):
        time.sleep(0.02)
        return np.zeros((3, 8, 16), np.float32), np.zeros((8, 16), np.uint8)


@pytest.mark.parametrize(("workers", "expected"), [(0, 50), (3, 150)])
def test_speed_of_the_loader(monkeypatch, workers, expected):
    monkeypatch.setattr(check_dataset, "MEASURED_SAMPLES", 48)
    cfg = OmegaConf.create(
        {
            "train": {"global_batch_size": 6, "seed": 0},
            "dataloader": {"train": {"num_workers": workers}},
        }
    )
    speed = measure(cfg, Sleepy())
    assert 0.6 * expected < speed.pop("images_per_second") < 1.1 * expected
    assert speed == {"num_workers": workers, "batch_size": 6, "size": [8, 16]}


def test_speed_as_text():
    speed = dict(images_per_second=31.249, num_workers=2, size=[1024, 512])
    assert format_speed(speed) == "31.2 images/s with 2 workers at 1024x512"
    assert format_speed(speed | dict(num_workers=1)).split(" with ")[1] == "1 worker at 1024x512"


# ---- Names and files of all kinds ----------------------------------------------------------------


def test_names_are_bytes_and_files_are_data(copied, tmp_path):
    """File names that are not UTF-8 are counted and drawn; what is no image is told, never run."""
    path, marker = fake_ghostscript(tmp_path)
    for split in ("train", "val"):
        for index, name in enumerate((b"caf\xe9", b"\xff\xfe", b"two\nlines")):
            for kind in ("images", "annotations"):
                file = copied / kind / split / f"0{index}.png"
                file.rename(file.with_name(f"{os.fsdecode(name)}.png"))
    (copied / "annotations/train/05.png").write_bytes(EPS)
    (copied / "images/train/06.png").write_bytes(EPS)
    odd = os.fsdecode(b"odd\xe9")
    (copied / f"annotations/val/{odd}.png").write_text("no label")
    shutil.copy(copied / "images/val/03.png", copied / f"images/val/{odd}.png")
    output = tmp_path / os.fsdecode(b"out\xe9")
    process = run_tool(
        *("tools/check_dataset.py", CONFIG, "--output", str(output), "--sample", "12"),
        *tiny_run(copied, tmp_path),
        PATH=path,
    )
    line = error_line(process)
    assert line.startswith("error: 3 errors in the data")
    assert not marker.exists()
    report = json.loads((output / "report.json").read_text())
    errors = report["errors"]
    assert [error for error in errors if "annotations/train/05.png holds PostScript" in error]
    assert [error for error in errors if "images/train/06.png holds PostScript" in error]
    assert [error for error in errors if f"{printable(odd)}.png: damaged" in error]
    assert report["data"]["training data"]["labels"] == 10
    assert report["data"]["test data"]["labels"] == 5
    assert "augmented training samples: " in process.stdout
    assert cv2.imdecode(np.fromfile(output / "samples.png", np.uint8), 1).shape[0] > 384


def test_class_names_of_all_kinds_are_shown(copied):
    data = dataset(copied)
    data.classes = ["\udc80", "two\nlines", "null\0"]
    lines = format_classes({"training data": inspect(data, "")}).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [r"\udc80", r"two\nlines", r"null\x00"]
    sheet = draw_sheet(data, [(0, np.zeros((3, 40, 40), np.float32), np.full((40, 40), 1))])
    assert sheet.shape[0] > 384
