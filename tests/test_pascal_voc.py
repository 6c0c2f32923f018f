"""Pascal VOC 2012 in its official folders, and with the labels of SBD."""

import re

import numpy as np
import pytest
from PIL import Image

from data_files import config_datasets, noise, raises_line, save
from projects.SegFormer.dataset.pascal_voc import PascalVOC

# The 20 classes of the development kit, in its order
OBJECTS = """
aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
pottedplant sheep sofa train tvmonitor
"""
VALUES = [*range(21), 255]


def colour_map():
    """VOCcolormap: the bits of the index go to R, G and B in turn, the highest bit first."""
    colours = []
    for index in range(256):
        bits = [index >> bit & 1 for bit in range(8)] + [0]
        colours.append(
            tuple(sum(bits[3 * i + channel] << 7 - i for i in range(3)) for channel in range(3))
        )
    return colours


def make_voc(root):
    """a, b: train, c: val, d, e: labels of SBD only, t: test. Labels are palette images."""
    for name in "abcdet":
        save(noise(1, 22), root / f"JPEGImages/{name}.jpg")
    for name in "abc":
        label = Image.fromarray(np.array([VALUES], np.uint8), mode="P")
        label.putpalette(np.array(colour_map(), np.uint8).tobytes())
        path = root / f"SegmentationClass/{name}.png"
        path.parent.mkdir(exist_ok=True)
        label.save(path)
    for name in "bde":
        save(np.array([VALUES[::-1]], np.uint8), root / f"SegmentationClassAug/{name}.png")
    write_list(root, "train", "a", "b")
    write_list(root, "val", "c")
    write_list(root, "trainval", "a", "b", "c")
    write_list(root, "test", "t")
    return root


def write_list(root, split, *lines):
    path = root / f"ImageSets/Segmentation/{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def names(dataset):
    return "".join(path.stem for path in dataset.images)


@pytest.mark.parametrize("split, expected", [("train", "ab"), ("val", "c"), ("trainval", "abc")])
def test_splits_of_the_lists(tmp_path, split, expected):
    dataset = PascalVOC(make_voc(tmp_path), split, [])
    assert names(dataset) == expected
    for index in range(len(dataset)):  # also of b, which has another label in SBD
        assert Image.open(dataset.labels[index]).mode == "P"
        assert dataset.load(index)[1][0].tolist() == VALUES


def test_classes():
    assert list(PascalVOC.CLASSES) == ["background", *OBJECTS.split()]
    assert list(PascalVOC.PALETTE) == colour_map()[:21]


def test_result_is_in_indices(tmp_path):
    dataset = PascalVOC(make_voc(tmp_path), "train", [])
    assert dataset.result_values.dtype == np.uint8
    assert dataset.result_values.tolist() == list(range(21))
    assert dataset.label_table(dataset.labels[0]) is None
    assert dataset.categories is None


def test_test_split_has_no_labels(tmp_path):
    dataset = PascalVOC(make_voc(tmp_path), "test", [])
    assert names(dataset) == "t"
    assert dataset.load(0)[1] is None


@pytest.mark.parametrize(
    "lists",
    [
        {"trainaug": "dbae"},
        {"aug": "ed"},  # and train.txt
        {
            "trainaug": [
                f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in "eabd"
            ]
        },
    ],
)
def test_trainaug(tmp_path, lists):
    make_voc(tmp_path)
    for split, lines in lists.items():
        write_list(tmp_path, split, *lines)
    dataset = PascalVOC(tmp_path, "trainaug", [])
    assert names(dataset) == "abde"
    found = [dataset.load(index)[1][0].tolist() for index in range(4)]
    assert found == [VALUES, VALUES[::-1], VALUES[::-1], VALUES[::-1]]


def test_other_values_are_refused(tmp_path):
    make_voc(tmp_path)
    save(np.full((1, 22), 21, np.uint8), tmp_path / "SegmentationClass/a.png")
    with raises_line("SegmentationClass/a.png: label value 21 stands for none of the 21 classes"):
        PascalVOC(tmp_path, "train", []).load(0)
    save(noise(1, 22), tmp_path / "SegmentationClass/a.png")  # the colours
    with raises_line("SegmentationClass/a.png: the label is an image of mode RGB"):
        PascalVOC(tmp_path, "train", []).load(0)


def test_names_without_a_file(tmp_path):
    make_voc(tmp_path)
    write_list(tmp_path, "train", "a", "x", "y", "b")
    with raises_line(r"train.txt: 2 of 4 names have no JPEGImages/<name>\.jpg, the first is 'x'"):
        PascalVOC(tmp_path, "train", [])
    write_list(tmp_path, "val", "c", "d")
    with raises_line(
        r"val.txt: 1 of 2 names have no SegmentationClass/<name>\.png, the first is 'd'"
    ):
        PascalVOC(tmp_path, "val", [])
    write_list(tmp_path, "train", "a", "b")
    write_list(tmp_path, "aug", "d", "t")
    with raises_line(
        r"train.txt and .*aug.txt: 1 of 4 names have no SegmentationClass/<name>\.png"
        r" or SegmentationClassAug/<name>\.png, the first is 't'"
    ):
        PascalVOC(tmp_path, "trainaug", [])


def test_layout_is_told(tmp_path):
    expected = (
        f"{tmp_path}: no ImageSets/Segmentation/val.txt; expected the folder VOCdevkit/VOC2012"
    )
    with raises_line(re.escape(expected)):
        PascalVOC(tmp_path, "val", [])
    with raises_line(
        r"no ImageSets/Segmentation/aug.txt; .*/trainaug.txt \(or train.txt and aug.txt\)"
    ):
        PascalVOC(make_voc(tmp_path), "trainaug", [])
    with raises_line("PascalVOC split 'aug': expected one of train, val, trainval, trainaug, test"):
        PascalVOC(tmp_path, "aug", [])


def test_config(tmp_path):
    """Crops of 512x512 in training, images as they are in evaluation."""
    write_list(make_voc(tmp_path), "aug", "d", "e")
    train, test = config_datasets("voc", tmp_path)
    assert (names(train), names(test)) == ("abde", "c")
    image, label = train[0]
    assert image.shape == (3, 512, 512) and label.shape == (512, 512)
    image, label = test[0]
    assert image.shape == (3, 1, label.shape[1])  # it is scaled on its way into the network
    assert label[0].tolist() == VALUES


def test_names_with_dots_spaces_and_accents_in_a_list_of_windows(tmp_path):
    found = ["a b", "cafe\u0301", "frame.0001"]
    for name in found:
        save(noise(1, 22), tmp_path / f"JPEGImages/{name}.jpg")
        save(np.zeros((1, 22), np.uint8), tmp_path / f"SegmentationClass/{name}.png")
    write_list(tmp_path, "train")
    text = "\ufeffframe.0001\r\na b.jpg\r\ncaf\u00e9\r\n"
    (tmp_path / "ImageSets/Segmentation/train.txt").write_bytes(text.encode())
    dataset = PascalVOC(tmp_path, "train", [])
    assert [path.stem for path in dataset.images] == [path.stem for path in dataset.labels] == found
