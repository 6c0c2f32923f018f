"""COCO-Stuff, 164k and 10k, in its official folders."""

import re

import numpy as np
import pytest
from scipy.io import savemat

from data_files import config_datasets, noise, raises_line, save
from projects.SegFormer.dataset.coco_stuff import COCOStuff, COCOStuff10k
from projects.SegFormer.dataset.matlab_files import read_matrix
from projects.SegFormer.modeling.errors import InputError

# labels.txt of the official repository: the names of the ids from 1 on
LABELS = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
zebra, giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis,
snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket,
bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli,
carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, mirror, dining table, window,
desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush,
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet,
ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt,
door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog,
food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat,
metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
"""
NAMES = dict(enumerate((name.strip() for name in LABELS.replace("\n", " ").split(",")), start=1))
# Its README: these "do not have any segmentation annotations".
WITHOUT = {"blender", "desk", "door", "eye glasses", "hair brush", "hat", "mirror", "plate", "shoe"}
WITHOUT |= {"street sign", "window"}
IDS = [label_id for label_id, name in NAMES.items() if name not in WITHOUT]


def make_164k(root, split="train2017"):
    """Two images of one row, whose labels hold every id, as id - 1, and 255."""
    values = np.array([[*(label_id - 1 for label_id in IDS), 255]], np.uint8)
    for name in ("000000000009", "000000000025"):
        save(noise(1, 172), root / f"images/{split}/{name}.jpg")
        save(values, root / f"annotations/{split}/{name}.png")
    return root


def save_mat(path, **variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, do_compression=True)


def make_10k(root, dtype=np.uint8):
    """Three images of one row, whose labels hold every id and 0; two of them for training."""
    values = np.array([[*IDS, 0]], dtype)
    for number in (1, 2, 3):
        name = f"COCO_train2014_{number:012d}"
        save(noise(1, 172, seed=number), root / f"images/{name}.jpg")
        save_mat(root / f"annotations/{name}.mat", S=values, captions="what it shows")
    (root / "imageLists").mkdir(exist_ok=True)
    for split, numbers in (("train", (3, 1)), ("test", (2,))):
        lines = "".join(f"COCO_train2014_{number:012d}\n" for number in numbers)
        (root / f"imageLists/{split}.txt").write_text(lines)
    return root


def test_labels_file_of_this_test():
    assert len(NAMES) == 182 and len(IDS) == 171
    assert sorted(set(NAMES) - set(IDS)) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]


@pytest.mark.parametrize("data", [COCOStuff, COCOStuff10k])
def test_classes(data):
    assert list(data.CLASSES) == [NAMES[label_id] for label_id in IDS]
    assert len(data.PALETTE) == 171


# ---- 164k ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_every_pixel_value_is_mapped(tmp_path, split):
    dataset = COCOStuff(make_164k(tmp_path, split), split, [])
    assert [path.name for path in dataset.images] == ["000000000009.jpg", "000000000025.jpg"]
    assert dataset.load(0)[1][0].tolist() == [*range(171), 255]


def test_result_of_164k_is_in_the_values_of_the_labels(tmp_path):
    dataset = COCOStuff(make_164k(tmp_path), "train2017", [])
    assert COCOStuff.RESULT_VALUES.dtype == np.uint8
    assert COCOStuff.RESULT_VALUES.tolist() == [label_id - 1 for label_id in IDS]
    table = dataset.label_table(dataset.labels[0])
    assert table[dataset.result_values].tolist() == list(range(171))


def test_values_of_no_class_are_refused(tmp_path):
    make_164k(tmp_path)
    without = sorted({*range(1, 183)} - {*IDS})
    values = np.full((1, 172), 181, np.uint8)
    values[0, :13] = [*(label_id - 1 for label_id in without), 182, 254]
    save(values, tmp_path / "annotations/train2017/000000000009.png")
    found = ", ".join(str(value) for value in values[0, :13])
    with raises_line(f"000000000009.png: label value {found} stands for none of the 171 classes"):
        COCOStuff(tmp_path, "train2017", []).load(0)


def test_converted_labels_go_first(tmp_path):
    make_164k(tmp_path)
    values = np.array([[*range(171), 255]], np.uint8)[:, ::-1].copy()
    converted = tmp_path / "annotations/train2017/000000000009_labelTrainIds.png"
    save(values, converted)
    dataset = COCOStuff(tmp_path, "train2017", [])
    assert len(dataset) == 2
    np.testing.assert_array_equal(dataset.load(0)[1], values)
    assert dataset.load(1)[1][0].tolist() == [*range(171), 255]
    save(np.full((1, 172), 181, np.uint8), converted)  # what the converter leaves of an id
    with raises_line("labelTrainIds.png: label value 181 stands for none of the 171 classes and"):
        dataset.load(0)
    for path in tmp_path.glob("annotations/train2017/*[0-9].png"):  # converted and thrown away
        path.rename(path.with_name(f"{path.stem}_labelTrainIds.png"))
    assert len(COCOStuff(tmp_path, "train2017", [])) == 2


def test_layout_of_164k_is_told(tmp_path):
    expected = (
        f"{tmp_path}: 0 COCO-Stuff images and 0 label maps found; "
        "expected images/val2017/*.jpg and annotations/val2017/*.png"
    )
    with raises_line(re.escape(expected)):
        COCOStuff(tmp_path, "val2017", [])
    with raises_line("COCOStuff split 'train': expected one of train2017, val2017"):
        COCOStuff(tmp_path, "train", [])
    make_164k(tmp_path)
    (tmp_path / "annotations/train2017/000000000025.png").unlink()
    with raises_line("1 of 2 files have no label: images/train2017/000000000025.jpg"):
        COCOStuff(tmp_path, "train2017", [])


# ---- 10k ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_lists_split_and_every_id_is_mapped(tmp_path, dtype):
    make_10k(tmp_path, dtype)
    train, test = (COCOStuff10k(tmp_path, split, []) for split in ("train", "test"))
    assert [path.stem[-1] for path in train.images] == ["1", "3"]
    assert [path.stem[-1] for path in test.images] == ["2"]
    for dataset in (train, test):
        image, label = dataset.load(0)
        assert image.shape == (1, 172, 3) and label.dtype == np.uint8
        assert label[0].tolist() == [*range(171), 255]


def test_result_of_10k_is_in_the_values_of_the_labels(tmp_path):
    dataset = COCOStuff10k(make_10k(tmp_path), "train", [])
    assert COCOStuff10k.RESULT_VALUES.tolist() == IDS
    table = dataset.label_table(dataset.labels[0])
    assert table[dataset.result_values].tolist() == list(range(171))


@pytest.mark.parametrize("folder", ["", "train2014/"])
def test_converted_10k(tmp_path, folder):
    """The converter moves what it writes into a folder for each split; 0 is no class there."""
    make_10k(tmp_path)
    name = "COCO_train2014_000000000001"
    converted = tmp_path / f"annotations/{folder}{name}_labelTrainIds.png"
    save(np.arange(172, dtype=np.uint8)[None], converted)
    if folder:
        (tmp_path / "images/train2014").mkdir()
        (tmp_path / f"images/{name}.jpg").rename(tmp_path / f"images/{folder}{name}.jpg")
    (tmp_path / f"annotations/{name}.mat").write_bytes(b"")
    dataset = COCOStuff10k(tmp_path, "train", [])
    assert dataset.load(0)[1][0].tolist() == [255, *range(171)]
    assert dataset.load(1)[1][0].tolist() == [*range(171), 255]  # still a .mat
    save(np.full((1, 172), 172, np.uint8), converted)
    with raises_line("label value 172 stands for none of the 171 classes"):
        dataset.load(0)


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"S": np.full((1, 172), 12)}, "label value 12 stands for none of the 171 classes;"),
        ({"S": np.full((1, 172), 183)}, "label value 183 stands for none"),
        ({"S": np.full((1, 172), 256)}, "values from 256 to 256 in S; expected whole numbers"),
        ({"S": np.full((1, 172), 1.5)}, "values from 1.5 to 1.5 in S; expected whole numbers"),
        ({"S": np.full((1, 172), -1)}, "values from -1 to -1 in S; expected whole numbers"),
        ({"S": np.ones((1, 171))}, "the label is 1x171 but its image"),
        ({"S": np.ones((1, 172, 3))}, "no matrix S of numbers"),
        ({"S": "person"}, "no matrix S of numbers"),
        ({"T": np.ones((1, 172))}, "no matrix S of numbers"),
    ],
)
def test_mat_files_that_hold_something_else(tmp_path, variables, message):
    make_10k(tmp_path)
    save_mat(tmp_path / "annotations/COCO_train2014_000000000001.mat", **variables)
    with raises_line("annotations/COCO_train2014_000000000001.mat: " + re.escape(message)):
        COCOStuff10k(tmp_path, "train", []).load(0)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_matrices_of_all_kinds(tmp_path, dtype, packed, order):
    """SciPy writes them, as MATLAB does: with other variables around, and other values than C's."""
    values = np.random.default_rng(0).integers(0, 100, (7, 5)).astype(dtype, order)
    variables = {"captions": ["what", "it shows"], "s": values + 1, "S": values, "T": {"S": 1.0}}
    savemat(tmp_path / "a.mat", variables, do_compression=packed)
    np.testing.assert_array_equal(read_matrix(tmp_path / "a.mat", "S"), values)
    assert read_matrix(tmp_path / "a.mat", "captions") is None
    assert read_matrix(tmp_path / "a.mat", "nowhere") is None
    savemat(tmp_path / "a.mat", {"S": values * 1j if dtype == "f8" else values > 50})
    assert read_matrix(tmp_path / "a.mat", "S") is None


def test_any_damage_to_a_mat_file_is_one_line_or_none(tmp_path):
    rng = np.random.default_rng(0)
    savemat(tmp_path / "a.mat", {"T": "text", "S": rng.integers(0, 9, (6, 5)), "C": ["a", 1.5]})
    data = (tmp_path / "a.mat").read_bytes()
    refused = 0
    for _ in range(500):
        damaged = bytearray(data)
        for place in rng.integers(120, len(data), 2):
            damaged[place] = rng.choice([0, 1, 14, 15, 127, 128, 255])
        (tmp_path / "a.mat").write_bytes(damaged[: rng.integers(len(data), len(data) * 5 // 4)])
        try:
            read_matrix(tmp_path / "a.mat", "S")
        except InputError as error:
            assert str(tmp_path / "a.mat") in str(error) and "\n" not in str(error)
            refused += 1
    assert 50 < refused < 450


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.95])
def test_damaged_mat_files(tmp_path, share):
    path = make_10k(tmp_path) / "annotations/COCO_train2014_000000000001.mat"
    values = np.random.default_rng(0).integers(1, 12, (1, 172), dtype=np.uint8)
    save_mat(path, S=values)
    data = path.read_bytes()
    dataset = COCOStuff10k(tmp_path, "train", [])
    np.testing.assert_array_equal(dataset.load(0)[1], values - 1)
    path.write_bytes(data[: int(share * len(data))])
    with raises_line("COCO_train2014_000000000001.mat: damaged, cut short or not a MATLAB file"):
        dataset.load(0)
    path.write_bytes(b"hello, this is no matrix" * 20)
    with raises_line("COCO_train2014_000000000001.mat: damaged, cut short or not a MATLAB file"):
        dataset.load(0)


def test_layout_of_10k_is_told(tmp_path):
    with raises_line(re.escape(f"{tmp_path}: no imageLists/test.txt; expected COCO-Stuff 10k")):
        COCOStuff10k(tmp_path, "test", [])
    with raises_line("COCOStuff10k split 'val': expected one of train, test"):
        COCOStuff10k(tmp_path, "val", [])


@pytest.mark.parametrize("kind, suffix", [("images", "jpg"), ("annotations", "mat")])
def test_names_without_a_file(tmp_path, kind, suffix):
    make_10k(tmp_path)
    (tmp_path / f"{kind}/COCO_train2014_000000000003.{suffix}").unlink()
    with raises_line(
        rf"train.txt: 1 of 2 names have no {kind}/<name>\.{suffix}, "
        "the first is 'COCO_train2014_000000000003'"
    ):
        COCOStuff10k(tmp_path, "train", [])
    assert len(COCOStuff10k(tmp_path, "test", [])) == 1


def test_lists_that_are_none(tmp_path):
    make_10k(tmp_path)
    (tmp_path / "imageLists/train.txt").write_text("\n\n")
    with raises_line("train.txt: the list is empty"):
        COCOStuff10k(tmp_path, "train", [])
    (tmp_path / "imageLists/train.txt").write_bytes(b"\xff\xfe\x00")
    with raises_line("train.txt: not a text file"):
        COCOStuff10k(tmp_path, "train", [])


@pytest.mark.parametrize("name", ["coco_stuff", "coco_stuff_10k"])
def test_configs(tmp_path, name):
    """Crops of 512x512 in training, images as they are in evaluation."""
    make_10k(make_164k(make_164k(tmp_path), "val2017"))
    train, test = config_datasets(name, tmp_path)
    assert (len(train), len(test)) == ((2, 2) if name == "coco_stuff" else (2, 1))
    image, label = train[0]
    assert image.shape == (3, 512, 512) and label.shape == (512, 512)
    image, label = test[0]
    assert image.shape == (3, 1, label.shape[1])  # it is scaled on its way into the network
    assert label[0].tolist() == [*range(171), 255]
