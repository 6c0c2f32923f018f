"""ADE20K in its official folders."""

import re

import numpy as np
import pytest

from data_files import config_datasets, noise, raises_line, save
from projects.SegFormer.dataset.ade20k import ADE20K
from projects.SegFormer.dataset.transforms import Resize

# objectInfo150.txt of the benchmark's development kit: index and first name
NAMES = {
    **{1: "wall", 2: "building", 8: "bed", 9: "windowpane", 13: "person", 21: "car", 22: "water"},
    **{38: "bathtub", 45: "chest of drawers", 57: "pool table", 66: "toilet", 73: "palm"},
    **{80: "hovel", 88: "streetlight", 91: "airplane", 93: "apparel", 100: "buffet"},
    **{106: "conveyer belt", 117: "minibike", 124: "trade name", 128: "bicycle", 131: "screen"},
    **{137: "traffic light", 139: "ashcan", 142: "crt screen", 145: "bulletin board"},
    **{148: "glass", 149: "clock", 150: "flag"},
}


def make_ade20k(root, split="training"):
    """Two images of one row, whose labels hold 0 to 150."""
    for number in (1, 2):
        name = f"ADE_{split[:5]}_{number:08d}"
        save(noise(1, 151, seed=number), root / f"images/{split}/{name}.jpg")
        save(np.arange(151, dtype=np.uint8)[None], root / f"annotations/{split}/{name}.png")
    return root


@pytest.mark.parametrize("split", ["training", "validation"])
def test_every_label_is_mapped(tmp_path, split):
    dataset = ADE20K(make_ade20k(tmp_path, split), split, [])
    assert [path.stem for path in dataset.images] == [path.stem for path in dataset.labels]
    assert len(dataset) == 2
    image, label = dataset.load(1)
    assert image.shape == (1, 151, 3)
    assert label[0].tolist() == [255, *range(150)]


def test_classes():
    assert len(ADE20K.CLASSES) == len(set(ADE20K.CLASSES)) == len(ADE20K.PALETTE) == 150
    assert {index: ADE20K.CLASSES[index - 1] for index in NAMES} == NAMES
    # color150 of the development kit
    assert ADE20K.PALETTE[0] == (120, 120, 120)
    assert ADE20K.PALETTE[2] == (6, 230, 230)
    assert ADE20K.PALETTE[12] == (150, 5, 61)
    assert ADE20K.PALETTE[149] == (92, 0, 255)


def test_result_is_in_the_values_of_the_labels(tmp_path):
    dataset = ADE20K(make_ade20k(tmp_path), "training", [])
    assert ADE20K.RESULT_VALUES.dtype == np.uint8
    assert ADE20K.RESULT_VALUES.tolist() == list(range(1, 151))
    table = dataset.label_table(dataset.labels[0])
    assert table[dataset.result_values].tolist() == list(range(150))


def test_other_values_are_refused(tmp_path):
    make_ade20k(tmp_path)
    values = np.full((1, 151), 150, np.uint8)
    values[0, :3] = 151, 254, 255
    save(values, tmp_path / "annotations/training/ADE_train_00000001.png")
    with raises_line(
        "ADE_train_00000001.png: label value 151, 254, 255 stands for none of the 150 classes;"
    ):
        ADE20K(tmp_path, "training", []).load(0)


def test_testing_has_no_labels(tmp_path):
    save(noise(8, 10), tmp_path / "images/testing/ADE_test_00000001.jpg")
    dataset = ADE20K(tmp_path, "testing", [Resize((4, 5))])
    assert dataset.load(0)[1] is None
    assert (dataset[0][1] == 255).all()


def test_layout_is_told(tmp_path):
    expected = (
        f"{tmp_path}: 0 ADE20K images and 0 label maps found; expected images/training/*.jpg "
        "and, but for the split testing, annotations/training/*.png"
    )
    with raises_line(re.escape(expected)):
        ADE20K(tmp_path, "training", [])
    with raises_line("0 ADE20K images and 0 label maps found; expected images/testing"):
        ADE20K(tmp_path, "testing", [])
    save(noise(), tmp_path / "images/validation/ADE_val_00000001.jpg")
    with raises_line("1 ADE20K images and 0 label maps"):
        ADE20K(tmp_path, "validation", [])
    with raises_line("ADE20K split 'train': expected one of training, validation, testing"):
        ADE20K(tmp_path, "train", [])


def test_what_stands_alone_is_named(tmp_path):
    make_ade20k(tmp_path)
    (tmp_path / "annotations/training/ADE_train_00000002.png").unlink()
    with raises_line("1 of 2 files have no label: images/training/ADE_train_00000002.jpg"):
        ADE20K(tmp_path, "training", [])
    make_ade20k(tmp_path)
    (tmp_path / "images/training/ADE_train_00000001.jpg").unlink()
    with raises_line("1 of 2 files have no image: annotations/training/ADE_train_00000001.png"):
        ADE20K(tmp_path, "training", [])


def test_config(tmp_path):
    """Crops of 512x512 in training, images as they are in evaluation."""
    make_ade20k(make_ade20k(tmp_path), "validation")
    train, test = config_datasets("ade20k", tmp_path)
    image, label = train[0]
    assert image.shape == (3, 512, 512) and label.shape == (512, 512)
    image, label = test[0]
    assert image.shape == (3, 1, label.shape[1])  # it is scaled on its way into the network
    assert label[0].tolist() == [255, *range(150)]
