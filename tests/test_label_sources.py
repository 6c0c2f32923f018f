"""Labels as programs export them and as people name them, compared pixel by pixel."""

import json
import re
from contextlib import suppress
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image

from conftest import COLOURS
from exported_folders import (
    HEIGHT,
    WIDTH,
    brushes,
    class_folders,
    class_in_the_name,
    cvat,
    folder_of_each_image,
    grey_in_three_channels,
    label_studio,
    label_studio_in_short,
    own_layout,
    palettes_of_their_own,
    panoptic,
    photographed_masks,
    tiff_of_16_bits,
    trainannot,
    voc,
)
from labelled_folders import NAMES, SIZE, assert_refused, save, save_images, truth
from projects.SegFormer.dataset.label_sources import find_source
from projects.SegFormer.dataset.label_sources.source import fitted
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.tools import prepare_dataset
from projects.SegFormer.tools.prepare_dataset import split

SOURCES = [
    *(voc, class_folders, class_in_the_name, folder_of_each_image, brushes, panoptic, cvat),
    *(label_studio, label_studio_in_short, tiff_of_16_bits, grey_in_three_channels),
    *(photographed_masks, palettes_of_their_own, own_layout, trainannot),
]


@pytest.mark.parametrize("make", SOURCES)
def test_label_maps(make, tmp_path):
    wanted, classes = make(tmp_path)
    for junk in ("._00.png", "__MACOSX/00.png", "Thumbs.db", "README.txt"):
        (tmp_path / junk).parent.mkdir(exist_ok=True)
        (tmp_path / junk).write_bytes(b"junk")
    source = find_source(tmp_path)
    assert source.classes == classes and len(source.palette) == len(classes)
    found = {Path(image.name).name: image for image in source.images}
    assert len(found) == len(source.images) == len(NAMES)
    for name, image in found.items():
        assert int(image.image.stem) == int(name)
        np.testing.assert_array_equal(image.label(), wanted(name))
    if make in (voc, own_layout, trainannot):
        splits = split(source.images, 0.5, 0)
        assert sorted(it.name for it in splits["val"]) == NAMES[:2]
        assert sorted(it.name for it in splits["train"]) == NAMES[2:]


def test_colours_of_the_palette_and_of_dataset_json(tmp_path):
    for make in (voc, own_layout, palettes_of_their_own):
        make(tmp_path / make.__name__)
        palette = find_source(tmp_path / make.__name__).palette
        assert [tuple(colour) for colour in palette] == [tuple(it) for it in COLOURS.tolist()]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/img_{}.png", "masks/mask_{}.png"),
        ("images/a/{}.png", "masks/{}.png"),
        ("x_images/{}.PNG", "x_masks/{}-seg.png"),
        ("images_a/{}.PNG", "masks_a/{}.png"),
        ("Images/{}.jpg", "labels_rgb/{}.png"),
        ("segmentation/rgb/{}.jpg", "segmentation/gt/{}.bmp"),
        ("photo.{}.jpeg", "photo.{}_label.png"),
        ("images/left_L_{}_L.png", "labels/left_L_{}_L.png"),
    ],
)
def test_names_that_belong_together(image, mask, tmp_path):
    for name in NAMES:
        save(tmp_path / image.format(name), COLOURS[truth(name)])
        save(tmp_path / mask.format(name), truth(name))
    save(tmp_path / "preview.png", COLOURS[truth("00")])
    source = find_source(tmp_path)
    assert sorted(str(it.image.relative_to(tmp_path)) for it in source.images) == [
        image.format(name) for name in NAMES
    ]
    for it in source.images:
        name = next(name for name in NAMES if name in it.image.name)
        np.testing.assert_array_equal(it.label(), truth(name))
    assert source.notes == ["1 images without a mask: left out"]


def test_a_list_names_paths_where_names_are_not_enough(tmp_path):
    """Of two videos with the same frames; an image that no list names is left out."""
    for video in ("a", "b"):
        for name in NAMES[:3]:
            save(tmp_path / "images" / video / f"{name}.jpg", COLOURS[truth(name)])
            save(tmp_path / "masks" / video / f"{name}.png", truth(name))
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train.txt").write_text("images/a/00.jpg\na/01.jpg\n\nb/00\n")
    (tmp_path / "splits" / "val.txt").write_text(r"C:\data\images\b\01.jpg")
    source = find_source(tmp_path)
    assert [it.name for it in source.images] == ["train/a/00", "train/a/01", "train/b/00"] + [
        "val/b/01"
    ]
    assert source.notes == ["2 labelled images that no list names: left out"]
    (tmp_path / "splits" / "val.txt").write_text("b/00")
    with pytest.raises(InputError, match="b/00.jpg is in .*train.txt and in .*val.txt: expected"):
        find_source(tmp_path)
    (tmp_path / "splits" / "val.txt").write_text("02.jpg")
    with pytest.raises(InputError, match="val.txt: '02.jpg' may be one of 2 images"):
        find_source(tmp_path)


def test_a_test_set_stays_one():
    """Where there is no val, it is drawn from the others."""
    names = [*(f"train/{n}" for n in range(8)), *(f"test/{n}" for n in range(3))]
    found = split([prepare_dataset.Labelled(it, Path(it), None) for it in names], 0.25, 0)
    assert {it: len(images) for it, images in found.items()} == dict(train=6, val=2, test=3)
    assert [it.name for it in found["test"]] == ["0", "1", "2"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_of_a_turned_photo(orientation, tmp_path):
    """The photo is shown turned; the mask fits as it is stored, or as it is shown."""
    stored = np.zeros((20, 30), np.uint8)
    stored[3:9, 2:20] = 1
    photo = Image.fromarray(COLOURS[stored])
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.jpg", exif=exif)
    turns = {2: [0], 3: [3], 4: [1], 5: [5], 6: [4], 7: [6], 8: [2]}  # Pillow's Transpose
    shown = Image.fromarray(stored)
    for turn in turns.get(orientation, []):
        shown = shown.transpose(turn)
    shown = np.asarray(shown)
    np.testing.assert_array_equal(fitted(shown, tmp_path / "a.jpg"), shown)
    if orientation > 4:
        np.testing.assert_array_equal(fitted(stored, tmp_path / "a.jpg"), shown)
    with pytest.raises(
        InputError, match=r"a.jpg: an image of \(.*\) pixels has labels of \(7, 9\)"
    ):
        fitted(np.zeros((7, 9), np.uint8), tmp_path / "a.jpg")


def test_names_are_given(tmp_path):
    voc(tmp_path / "voc")
    names = ["ground", "grass", "air", "never"]
    assert find_source(tmp_path / "voc", (), names).classes == names
    with pytest.raises(InputError, match="--classes has 1 names, the masks values up to 2: 0, 1,"):
        find_source(tmp_path / "voc", (), ["ground"])
    class_folders(tmp_path / "folders")
    with pytest.raises(InputError, match="--classes has 2 names for 3 classes: background, disc"):
        find_source(tmp_path / "folders", (), ["x", "y"])


@pytest.mark.parametrize("make", [class_folders, cvat, label_studio, panoptic, voc])
def test_a_class_counts_nowhere(make, tmp_path):
    _, classes = make(tmp_path)
    first, *others = classes
    before = {it.name: it.label() for it in find_source(tmp_path).images}
    source = find_source(tmp_path, [first])
    assert source.classes == others
    for it in source.images:
        label = before[it.name].astype(int)
        wanted = np.where(label == 255, 255, np.where(label == 0, 255, label - 1))
        np.testing.assert_array_equal(it.label(), wanted)


def test_names_of_a_file_that_do_not_fit(tmp_path):
    """Values from 1 have the names of a file, and those from 0 a background before them."""
    save_images(tmp_path / "images")
    for name in NAMES:
        save(tmp_path / "masks" / f"{name}.png", truth(name))
    for text, wanted in (
        ("a\nb\n", ["background", "a", "b"]),
        ("a\nb\nc\n", ["a", "b", "c"]),
        ("a\n", ["class 0", "class 1", "class 2"]),
    ):
        (tmp_path / "classes.txt").write_text(text)
        assert find_source(tmp_path).classes == wanted
    (note,) = find_source(tmp_path).notes
    assert note.endswith("classes.txt has 1 names, the masks values up to 2: not used")


def test_parts_of_an_object_are_all_of_it(tmp_path):
    """Two polygons of an object that overlap: pycocotools takes what is in either."""
    save(tmp_path / "a.png", np.zeros((40, 40, 3), np.uint8))
    parts = [[5, 5, 25, 5, 25, 25, 5, 25], [15, 15, 35, 15, 35, 35, 15, 35]]
    annotation = {"image_id": 1, "category_id": 1, "segmentation": parts, "area": 1}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 40}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "x.json").write_text(json.dumps(content))
    wanted = np.zeros((40, 40), np.uint8)
    wanted[5:25, 5:25] = wanted[15:35, 15:35] = 1
    np.testing.assert_array_equal(find_source(tmp_path).images[0].label(), wanted)


def numbers_of_objects(root: Path) -> None:
    save_images(root / "images")
    for name in NAMES:
        numbers = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(SIZE)
        save(root / "masks" / f"{name}.png", numbers)


def alternatives(root: Path) -> None:
    """Masks of two kinds beside each other are no masks of two classes."""
    save_images(root / "images")
    for name in NAMES:
        for kind in ("gray", "index"):
            save(root / "masks" / kind / f"{name}.png", truth(name))


def another_size(root: Path) -> None:
    cvat(root)
    text = (root / "annotations.xml").read_text()
    (root / "annotations.xml").write_text(
        text.replace(f'height="{HEIGHT}"', 'height="99999999"', 1)
    )


def runs_without_end(root: Path) -> None:
    """As many pixels as no machine has."""
    cvat(root)
    text = (root / "annotations.xml").read_text()
    width = f'width="{WIDTH}" height="{HEIGHT - 20}"'
    (root / "annotations.xml").write_text(text.replace(width, 'width="99999999" height="9999999"'))


def brush_of_another_size(root: Path) -> None:
    label_studio(root)
    tasks = json.loads((root / "project-1.json").read_text())
    tasks[0]["annotations"][0]["result"][0]["value"]["rle"][:4] = [255] * 4
    (root / "project-1.json").write_text(json.dumps(tasks))


def missing_image(root: Path) -> None:
    label_studio(root)
    (root / "images" / "03.jpg").unlink()


def missing_segments(root: Path) -> None:
    panoptic(root)
    (root / "annotations" / "panoptic" / "03.png").unlink()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (numbers_of_objects, "masks/00.png: 3072 values; masks have one for each class"),
        (alternatives, "values from 0 to 2; a mask of one class has 0 and another"),
        (another_size, "an image of (48, 64) pixels has labels of (99999999, 64)"),
        (
            runs_without_end,
            "xml: 00.jpg: a mask of 9999999x99999999 at (0, 20) in an image of (48, 64)",
        ),
        (brush_of_another_size, "a brush of 4294967295 values, not 48x64x4"),
        (missing_image, "project-1.json: no image 0a1b2c3d-03.jpg in"),
        (missing_segments, "panoptic.json: no 03.png of segments in"),
    ],
)
def test_what_is_no_label(make, words, tmp_path):
    assert_refused(make, words, tmp_path)


def test_xml_that_repeats_itself_is_not_read(tmp_path):
    cvat(tmp_path)
    bomb = "<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]>"
    text = (tmp_path / "annotations.xml").read_text()
    (tmp_path / "annotations.xml").write_text(bomb + text)
    with pytest.raises(InputError, match="no pair of both"):
        find_source(tmp_path)


JUNK = (
    None,
    True,
    -1,
    1e300,
    float("nan"),
    2**70,
    "",
    "x",
    [],
    {},
    [[]],
    {"a": 1},
    "../../x",
    "\0",
)


@pytest.mark.parametrize("make", [panoptic, label_studio, label_studio_in_short, cvat])
def test_other_values_in_a_document(make, tmp_path):
    """Whatever stands in it, there are labels or a line of error."""
    make(tmp_path)
    (document,) = [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.xml")]
    text, rng = document.read_text(), np.random.default_rng(0)
    values = list(re.finditer(r'(?<=: )(\d+|"[^"]*")(?=[,}])|(?<==)"[^"]*"', text))
    for _ in range(60):
        value, junk = values[rng.integers(len(values))], JUNK[rng.integers(len(JUNK))]
        written = json.dumps(junk) if document.suffix == ".json" else f'"{escape(str(junk))}"'
        document.write_text(text[: value.start()] + written + text[value.end() :])
        with suppress(InputError):
            for image in find_source(tmp_path).images:
                image.label()
