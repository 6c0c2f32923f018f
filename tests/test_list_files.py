"""Lists of images and tables of classes, damaged in all ways."""

import re

import pytest

from data_files import noise, raises_line, save
from projects.SegFormer.dataset.classification import ImageNet
from projects.SegFormer.dataset.list_files import read_names
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
