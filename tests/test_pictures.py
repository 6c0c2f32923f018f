"""Pictures on disk: names of any bytes, whole or not at all."""

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_files import noise, raises_line, save
from projects.SegFormer.dataset.folder import SegmentationFolder
from projects.SegFormer.evaluation.pictures import write_png
from projects.SegFormer.evaluation.result_files import ResultFiles
from projects.SegFormer.evaluation.visualize import unused_colour
from projects.SegFormer.evaluation.worst_images import draw_sheet
from projects.SegFormer.modeling.errors import InputError

NAMES = [os.fsdecode(name) for name in (b"caf\xe9", b"\xff\xfe", "日本 😀".encode(), b"a\nb", b"a")]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_bytes(tmp_path, name):
    rgb, grey = noise(), noise()[..., 0]
    for picture in (rgb, grey):
        write_png(tmp_path / f"{name}.png", picture)
        np.testing.assert_array_equal(Image.open(tmp_path / f"{name}.png"), picture)
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name) + b".png"]


def test_labels_of_16_bits(tmp_path):
    labels = np.array([[0, 255, 256], [300, 70, 65535]], np.uint16)
    write_png(tmp_path / "a.png", labels)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "I;16"
        np.testing.assert_array_equal(picture, labels)


def test_whole_or_not_at_all(tmp_path):
    write_png(tmp_path / "a.png", noise())
    before = (tmp_path / "a.png").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # or this process would end
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with raises_line("cannot write .*a.png: "):
            write_png(tmp_path / "a.png", noise(seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a.png").read_bytes() == before and len(os.listdir(tmp_path)) == 1
    with raises_line("cannot write .*gone/a.png: No such file"):
        write_png(tmp_path / "gone" / "a.png", noise())


def test_result_files(tmp_path):
    images = [Path("images", f"{name}.jpg") for name in NAMES]
    files = ResultFiles(tmp_path / "results", images, np.array([7, 11], np.uint8))
    for index in range(len(images)):
        files.write(index, np.array([[0, 1]]))
    written = {path.stem: np.asarray(Image.open(path)).tolist() for path in files.folder.iterdir()}
    assert written == {name: [[7, 11]] for name in NAMES}


def test_worst_images(tmp_path):
    for name in NAMES:
        save(noise(), tmp_path / f"images/val/{name}.png")
        save(np.zeros((24, 32), np.uint8), tmp_path / f"annotations/val/{name}.png")
    dataset = SegmentationFolder(tmp_path, "val", ["one", "two"], [])
    entries = []
    for index in range(len(NAMES)):
        prediction = np.zeros((24, 32), np.uint8)
        prediction[: index + 1] = 1
        entries.append((50.0, index, prediction))
    path = tmp_path / f"{NAMES[0]}.png"
    draw_sheet(path, dataset, entries)
    sheet = np.asarray(Image.open(path))
    assert (sheet == unused_colour(dataset.palette)).all(-1).any()


def test_worst_images_of_scaled_predictions(tmp_path):
    save(noise(), tmp_path / "images/val/a.png")
    save(np.zeros((24, 32), np.uint8), tmp_path / "annotations/val/a.png")
    dataset = SegmentationFolder(tmp_path, "val", ["one", "two"], [])
    for sides in ((24, 32), (48, 64)):
        prediction = np.zeros(sides, np.uint16)
        prediction[: sides[0] // 2] = 1
        draw_sheet(tmp_path / f"{sides[0]}.png", dataset, [(50.0, 0, prediction)])
    assert (tmp_path / "24.png").read_bytes() == (tmp_path / "48.png").read_bytes()


def test_an_error_in_writing_is_one_for_people(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="cannot write .*: Not a directory"):
        write_png(tmp_path / "file" / "a.png", noise())
