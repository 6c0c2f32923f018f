"""Data sets on real files."""

import re

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels

from data_files import noise, raises_line, save
from projects.SegFormer.dataset import cityscapes
from projects.SegFormer.dataset.cityscapes import Cityscapes
from projects.SegFormer.dataset.folder import SegmentationFolder, distinct_palette
from projects.SegFormer.dataset.remarks import listening
from projects.SegFormer.dataset.sampler import Draw
from projects.SegFormer.dataset.segmentation import SegmentationDataset
from projects.SegFormer.dataset.transforms import (
    Normalize,
    PhotometricDistortion,
    RandomCrop,
    Resize,
)

CLASSES = ["sky", "road", "tree", "car"]


def label_map(height=24, width=32, seed=0):
    label = np.random.default_rng(seed).integers(0, 5, (height, width), dtype=np.uint8)
    label[label == 4] = 255
    return label


def make_folder(root, names=("a", "b", "c/d", "c/e", "f"), split="train"):
    for seed, name in enumerate(names):
        save(noise(seed=seed), root / f"images/{split}/{name}.png")
        save(label_map(seed=seed), root / f"annotations/{split}/{name}.png")
    return root


def folder(root, transforms=(), **kwargs):
    return SegmentationFolder(root, "train", CLASSES, transforms, **kwargs)


def augmentation():
    return [RandomCrop((16, 16)), PhotometricDistortion(), Normalize()]


# ---- samples ----------------------------------------------------------------------------------


def test_load_gives_the_files_as_they_are(tmp_path):
    dataset = folder(make_folder(tmp_path), augmentation())
    assert len(dataset) == 5
    for seed in range(5):
        image, label = dataset.load(seed)
        np.testing.assert_array_equal(image, noise(seed=seed))
        np.testing.assert_array_equal(label, label_map(seed=seed))


def test_sample(tmp_path):
    image, label = folder(make_folder(tmp_path))[0]
    assert image.dtype == np.float32 and label.dtype == np.uint8
    np.testing.assert_array_equal(image, noise().transpose(2, 0, 1))
    np.testing.assert_array_equal(label, label_map())


def test_invalid_draw_has_no_labels(tmp_path):
    dataset = folder(make_folder(tmp_path), [Normalize()])
    image, label = dataset[Draw(1, 1)]
    same, ignored = dataset[Draw(1, 1, valid=False)]
    np.testing.assert_array_equal(image, same)
    assert (ignored == 255).all() and not (label == 255).all()


def test_seed_and_position_decide_the_augmentation(tmp_path):
    make_folder(tmp_path)
    dataset = folder(tmp_path, augmentation(), seed=1)
    again = folder(tmp_path, augmentation(), seed=1)
    other = folder(tmp_path, augmentation(), seed=2)
    again[Draw(3, 8)]  # what was drawn before does not matter
    image, _ = dataset[Draw(0, 9)]
    assert np.array_equal(image, again[Draw(0, 9)][0])
    assert not np.array_equal(image, again[Draw(0, 10)][0])
    assert not np.array_equal(image, other[Draw(0, 9)][0])


def test_bad_pairs_are_named(tmp_path):
    make_folder(tmp_path, ["a", "b", "c"])
    save(label_map(24, 33), tmp_path / "annotations/train/a.png")
    save(np.full((24, 32), 4, np.uint8), tmp_path / "annotations/train/b.png")
    (tmp_path / "images/train/c.png").write_bytes(b"?")
    dataset = folder(tmp_path)
    with raises_line(
        r"annotations/train/a.png: the label is 24x33 but .*images/train/a.png is 24x32"
    ):
        dataset[0]
    with raises_line(r"annotations/train/b.png: label value 4 stands for none of the 4 classes"):
        dataset[1]
    with raises_line(r"images/train/c.png: damaged"):
        dataset[2]


@pytest.mark.parametrize(
    "classes, palette, message",
    [
        ([], [], "classes: 0 names"),
        ([str(i) for i in range(256)], [(0, 0, 0)] * 256, "classes: 256 names"),
        (["a", "b", "a"], [(0, 0, 0)] * 3, "classes: 'a' is there more than once"),
        (["a", "b"], [(0, 0, 0)], "palette: 1 colours for 2 classes"),
    ],
)
def test_classes_and_palette_are_checked(tmp_path, classes, palette, message):
    with raises_line(message):
        SegmentationDataset([tmp_path / "a.png"], None, classes, palette, [])


def test_no_images():
    with raises_line("SegmentationDataset: no images"):
        SegmentationDataset([], None, CLASSES, distinct_palette(4), [])


# ---- the folder data set ------------------------------------------------------------------------


def test_folder_matches_by_relative_path(tmp_path):
    for seed, name in enumerate(["a.PNG", "b.tif", "c/a.bmp", "c/b.c.jpeg", "d.webp"]):
        save(noise(seed=seed), tmp_path / "images/train" / name)
        key = name.rpartition(".")[0]
        save(np.full((24, 32), seed % 4, np.uint8), tmp_path / f"annotations/train/{key}.png")
    (tmp_path / "images/train/notes.txt").write_text("no image")
    (tmp_path / "images/train/._a.png").write_text("what macOS leaves behind")
    dataset = folder(tmp_path)
    names = [str(path.relative_to(tmp_path / "images/train")) for path in dataset.images]
    assert names == ["a.PNG", "b.tif", "c/a.bmp", "c/b.c.jpeg", "d.webp"]
    assert [dataset.load(i)[1][0, 0] for i in range(5)] == [0, 1, 2, 3, 0]


def test_what_is_no_data_is_left_out(tmp_path):
    make_folder(tmp_path)
    for kind in ("images", "annotations"):
        for name in (
            *(".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", ".hidden/b.png", ".b.png"),
            *("c/.ipynb_checkpoints/d.png", "c/__MACOSX/._d.png"),
        ):
            save(label_map(), tmp_path / kind / "train" / name)
        (tmp_path / kind / "train" / "Thumbs.db").write_bytes(b"?")
        (tmp_path / kind / "train" / "Thumbs.db.png").mkdir()
    assert len(folder(tmp_path)) == 5


def test_links_are_followed_once(tmp_path):
    """A folder elsewhere is walked through; one above or beside it is not, and so has an end."""
    elsewhere = tmp_path / "elsewhere"
    make_folder(elsewhere, ["x", "y/z"])
    root = make_folder(tmp_path / "root")
    for kind in ("images", "annotations"):
        place = root / kind / "train"
        (place / "more").symlink_to(elsewhere / kind / "train")
        (elsewhere / kind / "train/back").symlink_to(place)
        for i in range(8):
            (place / f"loop{i}").symlink_to("..")
            (place / "c" / f"loop{i}").symlink_to(place)
        (place / "file.png").symlink_to(place / "a.png")
        (place / "nothing").symlink_to("nowhere")
    place = root / "images/train"
    names = [path.relative_to(place).as_posix() for path in folder(root).images]
    expected = ("a", "b", "c/d", "c/e", "f", "file", "more/x", "more/y/z")
    assert names == [f"{name}.png" for name in expected]


def test_known_layouts_have_the_same_walk(tmp_path):
    make_cityscapes(tmp_path)
    for kind, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        for city in (".ipynb_checkpoints", "__MACOSX", "aachen/deeper"):
            save(noise(5, 7), tmp_path / kind / "train" / city / f"a_{suffix}.png")
    assert len(Cityscapes(tmp_path, "train", [])) == 2


def test_all_faults_are_told_to_who_listens(tmp_path):
    """And the data set is made of what is left."""
    make_folder(tmp_path)
    save(noise(), tmp_path / "images/train/a.jpg")
    for index in range(7):
        save(label_map(), tmp_path / f"annotations/train/alone{index}.png")
    (tmp_path / "annotations/train/b.png").unlink()
    with listening() as heard:
        dataset = folder(tmp_path)
    assert [path.stem for path in dataset.images] == ["a", "d", "e", "f"]
    assert [path.stem for path in dataset.labels] == ["a", "d", "e", "f"]
    twice, no_label, no_image = heard.faults
    assert "the same name as" in twice
    assert "1 of 5 files have no label: images/train/b.png;" in no_label
    names = ", ".join(f"annotations/train/alone{index}.png" for index in range(7))
    assert f"7 of 11 files have no image: {names};" in no_image
    with raises_line("the same name as"):
        folder(tmp_path)


def test_folder_with_other_names(tmp_path):
    (make_folder(tmp_path) / "images").rename(tmp_path / "pictures")
    (tmp_path / "annotations").rename(tmp_path / "masks")
    assert len(folder(tmp_path, images_dir="pictures", annotations_dir="masks")) == 5


@pytest.mark.parametrize("remove", ["images", "annotations"])
def test_folder_says_what_it_expects(tmp_path, remove):
    (make_folder(tmp_path) / remove).rename(tmp_path / "elsewhere")
    counts = "0 images and 5" if remove == "images" else "5 images and 0"
    expected = f"{tmp_path}: {counts} label maps found; expected images/train/<name>.jpg"
    with raises_line(re.escape(expected)):
        folder(tmp_path)


def test_folder_counts_what_stands_alone(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "annotations/train/b.png").unlink()
    with raises_line("1 of 5 files have no label: images/train/b.png;"):
        folder(tmp_path)
    make_folder(tmp_path)
    for name in "wxyz":
        save(label_map(), tmp_path / f"annotations/train/{name}.png")
    alone = ", ".join(f"annotations/train/{name}.png" for name in "wxy")
    with raises_line(f"4 of 9 files have no image: {alone}, ...;"):
        folder(tmp_path)


def test_folder_refuses_two_images_for_one_label(tmp_path):
    make_folder(tmp_path)
    save(noise(), tmp_path / "images/train/a.jpg")
    with raises_line("the same name as a.(jpg|png) but for the suffix"):
        folder(tmp_path)


def test_palette(tmp_path):
    make_folder(tmp_path)
    assert folder(tmp_path).palette == distinct_palette(4)
    assert folder(tmp_path, palette=[[i, i, i] for i in range(4)]).palette[3] == (3, 3, 3)
    assert len(set(distinct_palette(255))) == 255
    colours = np.array(distinct_palette(19), float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[~np.eye(19, dtype=bool)].min() > 50


# ---- Cityscapes ---------------------------------------------------------------------------------

# The label table of cityscapesScripts, helpers/labels.py: (name, id, trainId)
LABELS = """
unlabeled 0 255, ego vehicle 1 255, rectification border 2 255, out of roi 3 255, static 4 255,
dynamic 5 255, ground 6 255, road 7 0, sidewalk 8 1, parking 9 255, rail track 10 255,
building 11 2, wall 12 3, fence 13 4, guard rail 14 255, bridge 15 255, tunnel 16 255, pole 17 5,
polegroup 18 255, traffic light 19 6, traffic sign 20 7, vegetation 21 8, terrain 22 9, sky 23 10,
person 24 11, rider 25 12, car 26 13, truck 27 14, bus 28 15, caravan 29 255, trailer 30 255,
train 31 16, motorcycle 32 17, bicycle 33 18, license plate -1 255
"""


def make_cityscapes(root, split="train", cities=("aachen", "bochum"), labels="gtFine"):
    """Per city one image of 5x7 pixels, whose labels hold all 34 ids and the license plate."""
    ids = (np.arange(35) - 1).astype(np.int8).astype(np.uint8).reshape(5, 7)
    for city in cities:
        name = f"{split}/{city}/{city}_000000_000019"
        save(noise(5, 7), root / f"leftImg8bit/{name}_leftImg8bit.png")
        save(ids, root / f"{labels}/{name}_{labels}_labelIds.png")
        save(ids.astype(np.uint16) * 1000, root / f"{labels}/{name}_{labels}_instanceIds.png")
        save(noise(5, 7), root / f"{labels}/{name}_{labels}_color.png")
    return root


def test_cityscapes_maps_every_id(tmp_path):
    dataset = Cityscapes(make_cityscapes(tmp_path), "train", [])
    assert [path.name for path in dataset.images] == [
        "aachen_000000_000019_leftImg8bit.png",
        "bochum_000000_000019_leftImg8bit.png",
    ]
    rows = [row.strip().rsplit(" ", 2) for row in LABELS.replace("\n", " ").split(",")]
    expected = {int(label_id): int(train_id) for _, label_id, train_id in rows}
    _, label = dataset.load(0)
    mapped = dict(zip(range(-1, 34), label.ravel().tolist(), strict=True))
    assert mapped == expected
    names = {int(train_id): name for name, _, train_id in rows if train_id != "255"}
    assert dataset.classes == [names[i] for i in range(19)]


def test_cityscapes_colours():
    colours = dict(zip(cityscapes.CLASSES, cityscapes.PALETTE, strict=True))
    assert len(set(colours.values())) == 19
    assert colours["road"] == (128, 64, 128)
    assert colours["car"] == (0, 0, 142)
    assert colours["bicycle"] == (119, 11, 32)


def test_cityscapes_prefers_train_ids(tmp_path):
    make_cityscapes(tmp_path)
    train_ids = np.full((5, 7), 18, np.uint8)
    train_ids[0] = 255
    path = "gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png"
    save(train_ids, tmp_path / path)
    dataset = Cityscapes(tmp_path, "train", [])
    np.testing.assert_array_equal(dataset.load(0)[1], train_ids)
    assert dataset.load(1)[1].ravel()[8] == 0  # bochum: id 7, a road, mapped as before


def test_cityscapes_refuses_ids_that_do_not_exist(tmp_path):
    make_cityscapes(tmp_path)
    path = "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    save(np.array([[33, 34, 254, 7, 7, 7, 7]] * 5, np.uint8), tmp_path / path)
    with raises_line(
        "aachen_000000_000019_gtFine_labelIds.png: label value 34, 254 stands for none"
    ):
        Cityscapes(tmp_path, "train", []).load(0)


def test_cityscapes_test_split_has_no_labels(tmp_path):
    dataset = Cityscapes(make_cityscapes(tmp_path, "test"), "test", [Resize((10, 14))])
    image, label = dataset.load(0)
    assert image.shape == (5, 7, 3) and label is None
    _, label = dataset[0]
    assert label.shape == (10, 14) and (label == 255).all()


def test_cityscapes_says_what_it_expects(tmp_path):
    expected = (
        f"{tmp_path / 'x'}: 0 Cityscapes images and 0 label maps found; "
        "expected leftImg8bit/val/<city>/*_leftImg8bit.png"
    )
    with raises_line(re.escape(expected)):
        Cityscapes(tmp_path / "x", "val", [])
    with raises_line("0 Cityscapes images"):
        Cityscapes(make_cityscapes(tmp_path), "val", [])
    with raises_line("split 'trian': expected one of train, val, test, train_extra"):
        Cityscapes(tmp_path, "trian", [])


def test_cityscapes_counts_what_stands_alone(tmp_path):
    make_cityscapes(tmp_path)
    image = "leftImg8bit/train/bochum/bochum_000000_000019_leftImg8bit.png"
    label = "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
    (tmp_path / label).unlink()
    with raises_line("1 of 2 files have no label: leftImg8bit/train/aachen/aachen_000000_000019"):
        Cityscapes(tmp_path, "train", [])
    make_cityscapes(tmp_path)
    (tmp_path / image).unlink()
    with raises_line("1 of 2 files have no image: gtFine/train/bochum/bochum_000000_000019"):
        Cityscapes(tmp_path, "train", [])


@pytest.mark.parametrize("name", ["labelIds", "labelTrainIds"])
def test_cityscapes_train_extra_has_coarse_labels(tmp_path, name):
    make_cityscapes(tmp_path, "train_extra", ["augsburg"], labels="gtCoarse")
    path = "gtCoarse/train_extra/augsburg/augsburg_000000_000019_gtCoarse"
    label = np.full((5, 7), 7 if name == "labelIds" else 0, np.uint8)
    save(label, tmp_path / f"{path}_{name}.png")
    dataset = Cityscapes(tmp_path, "train_extra", [])
    assert dataset.labels == [tmp_path / f"{path}_{name}.png"]
    assert (dataset.load(0)[1] == 0).all()


def test_cityscapes_coarse_labels_for_fine_images(tmp_path):
    make_cityscapes(tmp_path, "val")
    make_cityscapes(tmp_path, "val", labels="gtCoarse")
    for labels in ("gtFine", "gtCoarse"):
        dataset = Cityscapes(tmp_path, "val", [], labels=labels)
        assert [path.name for path in dataset.labels] == [
            f"{city}_000000_000019_{labels}_labelIds.png" for city in ("aachen", "bochum")
        ]
        assert dataset.load(0)[1].ravel()[8] == 0
    with raises_line("Cityscapes labels 'coarse': expected gtFine or gtCoarse"):
        Cityscapes(tmp_path, "val", [], labels="coarse")
    with raises_line("0 label maps found; .*gtCoarse/train/<city>/.*_gtCoarse_labelIds.png"):
        Cityscapes(make_cityscapes(tmp_path), "train", [], labels="gtCoarse")


def test_cityscapes_facts_are_those_of_its_own_scripts(tmp_path):
    facts = [label for label in official_labels if not label.ignoreInEval]
    assert list(Cityscapes.categories) == [label.category for label in facts]
    assert Cityscapes.RESULT_VALUES.dtype == np.uint8
    assert Cityscapes.RESULT_VALUES.tolist() == [label.id for label in facts]
    dataset = Cityscapes(make_cityscapes(tmp_path), "train", [])
    table = dataset.label_table(dataset.labels[0])
    assert table[dataset.result_values].tolist() == [label.trainId for label in facts]


def test_folder_has_results_in_indices(tmp_path):
    dataset = folder(make_folder(tmp_path))
    assert dataset.result_values.dtype == np.uint8
    assert dataset.result_values.tolist() == [0, 1, 2, 3]
    assert dataset.categories is None


def test_names_in_both_of_unicode_s_forms_are_one_name(tmp_path):
    """As macOS and Linux write them; with dots and spaces too."""
    for image, label in (("caf\u00e9", "cafe\u0301"), ("frame.0001", "frame.0001"), ("a b", "a b")):
        save(noise(4, 4), tmp_path / f"images/train/{image}.JPG")
        save(np.zeros((4, 4), np.uint8), tmp_path / f"annotations/train/{label}.png")
    dataset = SegmentationFolder(tmp_path, "train", ["a"], [])
    assert [path.stem for path in dataset.images] == ["a b", "caf\u00e9", "frame.0001"]
    assert [path.stem for path in dataset.labels] == ["a b", "cafe\u0301", "frame.0001"]
