"""Lists of images and tables of classes, damaged in all ways."""

import re

import pytest

from data_files import noise, raises_line, save
from projects.SegFormer.dataset.classification import ImageNet
from projects.SegFormer.dataset.list_files import read_names, read_rows
from projects.SegFormer.modeling.bounds import TABLE_BYTES

SOLUTION, NAMES = ImageNet.SOLUTION, ImageNet.NAMES


@pytest.fixture
def imagenet(tmp_path):
    """Two classes, and the split val in one folder with its CSV."""
    for name in ("n01440764", "n01443537"):
        save(noise(), tmp_path / "train" / name / "a.png")
    save(noise(), tmp_path / "val" / "ILSVRC2012_val_00000001.png")
    rows = "ImageId,PredictionString\nILSVRC2012_val_00000001,n01443537 1 2 3 4\n"
    (tmp_path / SOLUTION).write_text(rows)
    (tmp_path / NAMES).write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    return tmp_path


def test_whole_files(imagenet):
    dataset = ImageNet(imagenet, "val", [])
    assert dataset.classes == ["n01440764 tench", "n01443537 goldfish"]
    assert dataset.labels.tolist() == [1]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"ImageId,PredictionString\nILSVRC2012_val_00000001\0,n01443537\n", "no CSV table (line"),
        (b"a,\xff\xfe\n", "not a text file; expected <name without suffix>,<WordNet id>"),
        (b'"' + b"a" * 200_000 + b'",n01443537\n', "no CSV table (field larger than"),
        (b"", "no line for ILSVRC2012_val_00000001.png (1 of 1"),
    ],
)
def test_damaged_solution(imagenet, content, message):
    (imagenet / SOLUTION).write_bytes(content)
    with raises_line(re.escape(f"{SOLUTION}: {message}")):
        ImageNet(imagenet, "val", [])


def test_damaged_names(imagenet):
    (imagenet / NAMES).write_bytes(b"n01440764 t\xe9nch\n")
    with raises_line(f"{NAMES}: not a text file; expected <WordNet id> <name>"):
        ImageNet(imagenet, "train", [])


@pytest.mark.parametrize("name", [SOLUTION, NAMES])
def test_tables_without_end(imagenet, name):
    with open(imagenet / name, "wb") as file:
        file.truncate(TABLE_BYTES + 1)
    with raises_line(f"{name} has {TABLE_BYTES + 1:,} bytes"):
        ImageNet(imagenet, "val", [])


def test_a_list_that_is_one_endless_word(tmp_path):
    (tmp_path / "train.txt").write_text("a" * 100_000)
    with raises_line("train.txt: no list of file names; expected one image name a line"):
        read_names(tmp_path / "train.txt")
    (tmp_path / "train.txt").write_text("images/" * 1000 + "a.jpg labels/a.png\n\n  b\n")
    assert read_names(tmp_path / "train.txt") == ["a", "b"]


LINES = {
    "a": "a",
    "a.jpg": "a",
    "images/train/a.JPEG": "a",
    "a.jpg a.png": "a",
    "images/a.jpg labels/a.png": "a",
    "images/a.jpg\tlabels/a.png": "a",
    "a.jpg,a.png": "a",
    "frame.0001": "frame.0001",
    "frame.0001.png": "frame.0001",
    "my frame 1": "my frame 1",
    "my frame 1.jpg": "my frame 1",
    "x/my frame 1.jpg y/my frame 1.png": "my frame 1",
    "my frame 1.jpg my frame 1.png": "my frame 1",
    "v1.0 final.png": "v1.0 final",
    "a 1": "a",  # VOC's lists of a class have a flag after the name
    "cafe\u0301": "caf\u00e9",
    "数据.png": "数据",
    "odd.png.jpg": "odd.png",
}
KNOWN = {*LINES.values()}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_in_every_form(tmp_path, ends, code):
    text = ends.join([*LINES, "", "  "])
    (tmp_path / "train.txt").write_bytes(text.encode(code))
    assert read_names(tmp_path / "train.txt", KNOWN) == list(LINES.values())


def test_names_of_files_that_are_not_there(tmp_path):
    """So that the error names what the list means."""
    (tmp_path / "val.txt").write_text("frame.0001\nb c.jpg\nimages/d.png labels/d.png\n")
    assert read_names(tmp_path / "val.txt") == ["frame.0001", "b c", "d"]


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16"])
def test_table_of_any_system(tmp_path, code):
    (tmp_path / "a.csv").write_bytes('name,"a, b"\r\nx\u2028y,2\r\n'.encode(code))
    assert read_rows(tmp_path / "a.csv", "rows") == [["name", "a, b"], ["x\u2028y", "2"]]
