"""Labels as people have them: what may be read in two ways, and what is left out with a note."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import COLOURS
from data_files import tiff
from exported_folders import class_folders, cvat, label_studio, panoptic, voc
from labelled_folders import NAMES, save, truth
from projects.SegFormer.dataset.description import Description
from projects.SegFormer.dataset.label_sources import find_source
from projects.SegFormer.dataset.label_sources.shapes import filled
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.tools import prepare_dataset
from projects.SegFormer.tools.prepare_dataset import split

LABEL = np.array([[0, 0, 1, 1], [2, 2, 1, 1]], np.uint8).repeat(8, 0).repeat(8, 1)


def masks(root: Path, mask: np.ndarray = LABEL, image="images/{}.png", label="masks/{}.png"):
    """Two images, a1 and b2, with the same mask."""
    for name in ("a1", "b2"):
        save(root / image.format(name), COLOURS[LABEL])
        save(root / label.format(name), mask)


RED, GREEN, BLUE = np.array([[255, 0, 0], [0, 128, 0], [0, 0, 9]], np.uint8)


@pytest.mark.parametrize(
    ("file", "lines"),
    [
        ("labelmap.txt", ("lane 1:255,0,0::", "lane 2:0,128,0::", "3d:0,0,9::")),
        ("class_dict.csv", ("id,name,r,g,b", "7,lane 1,255,0,0", "8,lane 2,0,128,0", "9,3d,0,0,9")),
        ("table.txt", ("0 255 0 0 lane 1", "1 0 128 0 lane 2", "2 0 0 9 3d")),
        ("rgba.csv", ("lane 1,255,0,0,255", "lane 2,0,128,0,255", "3d,0,0,9,255")),
    ],
)
def test_numbers_beside_the_colours_of_a_table(file, lines, tmp_path):
    masks(tmp_path, np.stack([RED, GREEN, BLUE])[LABEL])
    (tmp_path / file).write_text("\n".join(lines))
    source = find_source(tmp_path)
    assert source.classes == ["lane 1", "lane 2", "3d"]
    np.testing.assert_array_equal(source.images[0].label(), LABEL)
    assert [tuple(it) for it in source.palette] == [tuple(it.tolist()) for it in (RED, GREEN, BLUE)]


@pytest.mark.parametrize(
    ("values", "file", "text", "classes"),
    [
        ((0, 128, 255), "x.txt", "", ["class 0", "class 128", "class 255"]),
        ((0, 1, 255), "x.txt", "", ["class 0", "class 1"]),
        ((0, 2, 5), "classes.txt", "0: bg\n2: car\n5: dog", ["bg", "car", "dog"]),
        ((0, 2, 1), "labels.txt", "1 car\n2 dog\n3 cat", ["background", "car", "dog", "cat"]),
        ((0, 1, 2), "_classes.csv", "Pixel Value, Class\n0, bg\n1, a\n2, b", ["bg", "a", "b"]),
        ((0, 1, 2), "dataset.json", '{"labels": {"a": 0}}', ["class 0", "class 1", "class 2"]),
    ],
)
def test_which_value_is_which_class(values, file, text, classes, tmp_path):
    masks(tmp_path, np.array(values, np.uint8)[LABEL])
    (tmp_path / file).write_text(text)
    source = find_source(tmp_path)
    assert source.classes == classes
    wanted = np.searchsorted(np.sort(values), values)
    wanted = np.where(wanted < len(classes), wanted, 255)
    np.testing.assert_array_equal(source.images[0].label(), wanted[LABEL])


def test_a_class_in_alpha_is_not_0_and_255(tmp_path):
    """The colours are white throughout; they say nothing."""
    white = np.full((16, 32, 4), 255, np.uint8)
    white[:8, :, 3] = 0
    masks(tmp_path)
    for name in ("a1", "b2"):
        Image.fromarray(white).save(tmp_path / "masks" / f"{name}.png")
    with pytest.raises(InputError, match=r"the masks hold one value, \[255\]"):
        find_source(tmp_path)


@pytest.mark.parametrize("make", [class_folders, cvat, label_studio, panoptic, voc])
def test_what_is_ignored_in_any_letter_case(make, tmp_path):
    _, classes = make(tmp_path)
    assert find_source(tmp_path, [classes[0].upper()]).classes == classes[1:]
    with pytest.raises(InputError, match="--ignore no-such: nothing is called so; expected some"):
        find_source(tmp_path, ["No-Such"])


def test_ignored_values_and_colours(tmp_path):
    masks(tmp_path / "a")
    assert find_source(tmp_path / "a", ["0", "255"]).classes == ["class 1", "class 2"]
    masks(tmp_path / "b", np.stack([RED, GREEN, BLUE])[LABEL])
    assert set(find_source(tmp_path / "b", ["#FF0000"]).classes) == {"#008000", "#000009"}


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}/image.png", "{}/mask.png"),
        ("{}_L.jpg", "{}_L.png"),
        ("images/{}.jpg", "masks/{}.jpg.png"),
    ],
)
def test_words_in_names(image, label, tmp_path):
    masks(tmp_path, LABEL, image, label)
    source = find_source(tmp_path)
    assert [str(it.image.relative_to(tmp_path)) for it in source.images] == [
        image.format(name) for name in ("a1", "b2")
    ]
    np.testing.assert_array_equal(source.images[0].label(), LABEL)


@pytest.mark.parametrize("split_name", ["val", "test"])
def test_a_list_of_one_split(split_name, tmp_path):
    """What it does not name is for training."""
    masks(tmp_path)
    save(tmp_path / "images" / "c3.png", COLOURS[LABEL])
    save(tmp_path / "masks" / "c3.png", LABEL)
    (tmp_path / f"{split_name}.txt").write_text("b2\n")
    source = find_source(tmp_path)
    found = split(source.images, 0.5, 0)
    assert [it.name for it in found[split_name]] == ["b2"] and source.notes == []
    assert sorted(it.name for part in found.values() for it in part) == ["a1", "b2", "c3"]


def test_boxes_and_ellipses_of_cvat_are_turned(tmp_path):
    """A box of 10 x 30 about (20, 18), turned by 90 degrees, is one of 30 x 10."""
    save(tmp_path / "a.png", np.zeros((40, 60, 3), np.uint8))
    shapes = (
        '<box label="x" xtl="15" ytl="3" xbr="25" ybr="33" rotation="90.00"/>'
        '<ellipse label="y" cx="45" cy="20" rx="4" ry="12" rotation="90"/>'
    )
    (tmp_path / "x.xml").write_text(
        f'<annotations><image name="a.png" width="60" height="40">{shapes}</image></annotations>'
    )
    label = find_source(tmp_path).images[0].label()
    for value, (left, top, right, bottom) in ((1, (5, 13, 35, 23)), (2, (33, 16, 57, 24))):
        rows, columns = np.nonzero(label == value)
        found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        np.testing.assert_allclose(found, (left, top, right, bottom), atol=1)


@pytest.mark.parametrize("change", ["cancelled", "empty"])
def test_tasks_without_an_annotation(change, tmp_path):
    """They are left out; one that is annotated with nothing is background."""
    label_studio(tmp_path)
    tasks = json.loads((tmp_path / "project-1.json").read_text())
    tasks[1]["annotations"][0]["was_cancelled"] = True
    if change == "empty":
        tasks[1]["annotations"] = []
    tasks[2]["annotations"][0]["result"] = []
    (tmp_path / "project-1.json").write_text(json.dumps(tasks))
    source = find_source(tmp_path)
    found = {it.name.rpartition("/")[2]: it for it in source.images}
    assert sorted(found) == [name for name in NAMES if name != NAMES[1]]
    assert not found[NAMES[2]].label().any()
    assert "1 tasks without an annotation: left out" in source.notes
    assert any("1 images that nothing labels" in note for note in source.notes)


def coco_of(root: Path, name: str, annotations: list, images=("a1.png", "b2.png"), **more) -> None:
    category = {"id": 1, "name": "thing", **more}
    entries = [{"id": index, "file_name": it} for index, it in enumerate(images)]
    content = {"images": entries, "annotations": annotations, "categories": [category]}
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))


BOX = {"image_id": 0, "category_id": 1, "segmentation": [[0, 0, 8, 0, 8, 8, 0, 8]], "area": None}


def test_instances_and_keypoints_of_coco(tmp_path):
    for name in ("a1", "b2", "c3"):
        save(tmp_path / "val2017" / f"{name}.png", COLOURS[LABEL])
    coco_of(tmp_path, "annotations/instances_val2017.json", [BOX])
    coco_of(tmp_path, "annotations/person_keypoints_val2017.json", [BOX], keypoints=["nose"])
    (tmp_path / "annotations" / "cut.json").write_text('{"images": [')
    source = find_source(tmp_path)
    assert len(source.images) == 2 and source.images[0].label().any()
    assert "1 .json files left out" in source.notes[0] and "cut.json is not JSON" in source.notes[0]
    assert "1 images that nothing labels" in source.notes[1]
    coco_of(tmp_path, "annotations/again_val2017.json", [BOX])
    with pytest.raises(InputError, match="a1.png is in .*again_val2017.json and in .*instances"):
        find_source(tmp_path)


@pytest.mark.parametrize("annotations", [[], [BOX | {"segmentation": []}]])
def test_nothing_is_drawn(annotations, tmp_path):
    masks(tmp_path)
    coco_of(tmp_path, "x.json", annotations)
    with pytest.raises(InputError, match="instances: nothing is drawn on any of 2 images"):
        find_source(tmp_path)


def test_the_same_names_in_folders(tmp_path):
    for name in ("cam1/a", "cam2/a"):
        save(tmp_path / "images" / f"{name}.png", COLOURS[LABEL])
    coco_of(tmp_path, "labels/x.json", [BOX], ["cam1/a.png", "cam2/a.png"])
    source = find_source(tmp_path)
    assert [it.image.parent.name for it in source.images] == ["cam1", "cam2"]
    assert source.images[0].label().any() and not source.images[1].label().any()


def test_panoptic_with_images_in_png(tmp_path):
    panoptic(tmp_path)
    for name in NAMES:
        save(tmp_path / "val2017" / f"{name}.png", COLOURS[truth(name)])
        (tmp_path / "val2017" / f"{name}.jpg").unlink()
    document = tmp_path / "annotations" / "panoptic.json"
    document.write_text(document.read_text().replace(".jpg", ".png"))
    source = find_source(tmp_path)
    assert {it.image.parent.name for it in source.images} == {"val2017"}
    assert {it.mask.parent.name for it in source.images} == {"panoptic"}


@pytest.mark.parametrize("damage", ["cut", "large"])
def test_documents_that_cannot_be_read(damage, tmp_path, monkeypatch):
    """A note tells of them; where nothing else labels the images, the error does."""
    cvat(tmp_path)
    text = (tmp_path / "annotations.xml").read_text()
    if damage == "large":
        (tmp_path / "more.xml").write_text(text + " " * 999)
        for module in ("cvat", "__init__"):
            name = f"projects.SegFormer.dataset.label_sources.{module}".removesuffix(".__init__")
            monkeypatch.setattr(f"{name}.LABEL_JSON_BYTES", len(text))
    else:
        (tmp_path / "more.xml").write_text(text[:-20])
    (note,) = find_source(tmp_path).notes
    words = "more.xml has .* bytes" if damage == "large" else "more.xml is not XML"
    assert re.search("1 .xml files left out: .*" + words, note)
    (tmp_path / "annotations.xml").unlink()
    with pytest.raises(InputError, match="no pair of both.*; 1 .xml files left out: .*" + words):
        find_source(tmp_path)


def test_pixels_with_their_centre_in_a_polygon():
    """Against even-odd crossings of a ray from each centre; of more edges than go at once, too."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5)
    for count in (3, 5, 40, 300):
        corners = rng.uniform(-8, 38, (count, 2))
        wanted = np.zeros((20, 30), bool)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, 1, axis=0)):
            wanted ^= ((y0 > y) != (y1 > y)) & (x > x0 + (y - y0) * (x1 - x0) / (y1 - y0))
        np.testing.assert_array_equal(filled(corners, (20, 30)), wanted)


def test_target_within_source(tmp_path):
    masks(tmp_path)
    with pytest.raises(InputError, match="out lies in .*: choose a folder outside of it"):
        prepare_dataset.main([str(tmp_path), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_samples_of_images_with_five_bands(tmp_path):
    masks(tmp_path / "source")
    for file in (tmp_path / "source" / "images").iterdir():
        np.save(file.with_suffix(".npy"), np.zeros((*LABEL.shape, 5), np.uint8))
        file.unlink()
    prepare_dataset.main([str(tmp_path / "source"), str(tmp_path / "target")])
    assert (tmp_path / "target" / "samples.png").is_file()


@pytest.mark.parametrize(
    ("size", "scale", "crop", "resize"),
    [
        ([480, 640], [240, 320], [224, 256], [240, 320]),
        ([1024, 2048], [96, 192], [96, 192], [96, 192]),
        ([128, 160], [128, 160], [128, 160], None),
    ],
)
def test_the_scale_that_is_set_counts(size, scale, crop, resize, tmp_path):
    """Of the crop and of inference, too."""
    images = {"train": 30, "val": 2}
    Description(["a", "b"], [[0, 0, 0], [1, 1, 1]], size, images).write(tmp_path)
    overrides = [f"data.root={tmp_path}", f"data.scale={scale}".replace(" ", "")]
    cfg = load_config("configs/segformer_own.py", overrides)
    assert list(cfg.data.scale) == scale
    found = cfg.inference.resize
    assert found == resize if resize is None else list(found) == resize
    assert [min(side, 256) for side in cfg.data.crop] == crop


# ---- What is read whole, or refused in a line ---------------------------------------------------


def test_all_regions_of_the_one_class_that_is_brushed(tmp_path):
    for name in ("1", "2"):
        save(tmp_path / f"images/{name}.png", COLOURS[LABEL])
        for part in (0, 1):
            mask = np.uint8(255) * np.equal(LABEL, part + 1)
            save(tmp_path / f"export/task-{name}-annotation-7-by-1-tag-Crack-{part}.png", mask)
    source = find_source(tmp_path)
    assert source.classes == ["background", "Crack"]
    for image in source.images:
        np.testing.assert_array_equal(image.label(), LABEL > 0)


def test_documents_that_tell_the_splits_count_before_folders(tmp_path):
    for name in ("1", "2", "3"):
        save(tmp_path / f"images/train2017/{name}.png", COLOURS[LABEL])
    coco_of(tmp_path, "annotations/instances_train.json", [BOX], ("1.png", "2.png"))
    coco_of(tmp_path, "annotations/instances_val.json", [BOX], ("3.png",))
    splits = split(find_source(tmp_path).images, 0.2, 0)
    assert {name: [it.name for it in images] for name, images in splits.items()} == {
        "train": ["1", "2"],
        "val": ["3"],
    }


def test_one_document_over_folders_of_splits(tmp_path):
    for name in ("train/1", "train/2", "val/3"):
        save(tmp_path / f"{name}.png", COLOURS[LABEL])
    coco_of(tmp_path, "test_export.json", [BOX], ("train/1.png", "train/2.png", "val/3.png"))
    splits = split(find_source(tmp_path).images, 0.2, 0)
    assert [it.name for it in splits["val"]] == ["3"] and len(splits["train"]) == 2


@pytest.mark.parametrize("make", [cvat, label_studio])
def test_absolute_paths_with_a_relative_folder(make, tmp_path, monkeypatch):
    wanted, classes = make(tmp_path / "data")
    document = next(it for it in (tmp_path / "data").iterdir() if it.is_file())
    text = document.read_text().replace("/data/upload/1/0a1b2c3d-", "")
    for name in NAMES:
        text = text.replace(f'"{name}.jpg"', f'"{tmp_path / "data" / "images" / name}.jpg"')
    document.write_text(text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("data")
    for folder in ("data", "link", tmp_path / "data"):
        source = find_source(folder)
        assert source.classes == classes and len(source.images) == len(NAMES)
        np.testing.assert_array_equal(source.images[0].label(), wanted(NAMES[0]))


def test_points_of_label_studio_are_left_out(tmp_path):
    """As prompts of Segment Anything stand beside its brushes."""
    wanted, _ = label_studio(tmp_path)
    file = tmp_path / "project-1.json"
    tasks = json.loads(file.read_text())
    results = tasks[0]["annotations"][0]["result"]
    point = {"x": 1.0, "y": 2.0, "width": 0.5, "keypointlabels": ["disc"]}
    results.append(results[0] | {"type": "keypointlabels", "value": point})
    file.write_text(json.dumps(tasks))
    source = find_source(tmp_path)
    assert "1 results of the type keypointlabels: left out" in source.notes
    np.testing.assert_array_equal(source.images[0].label(), wanted(NAMES[0]))


@pytest.mark.parametrize(
    ("group", "groups"),
    [
        (r"video(\d)|clip(\d)", [{"video1a", "video1b"}, {"clip2a", "clip2b"}]),
        (r"^\D+\d", [{"video1a", "video1b"}, {"clip2a", "clip2b"}]),
    ],
)
def test_groups_stay_together(group, groups, tmp_path):
    for name in ("video1a", "video1b", "clip2a", "clip2b"):
        save(tmp_path / f"images/{name}.png", COLOURS[LABEL])
        save(tmp_path / f"masks/{name}.png", LABEL)
    splits = split(find_source(tmp_path).images, 0.5, 0, group)
    found = [{it.name for it in images} for images in splits.values()]
    assert sorted(found, key=min) == sorted(groups, key=min)


def both_suffixes(root: Path) -> None:
    for suffix in (".jpg", ".png"):
        save(root / f"images/1{suffix}", COLOURS[LABEL])
    save(root / "images/2.png", COLOURS[LABEL])
    coco_of(root, "instances.json", [BOX], ("1.jpg", "1.png", "2.png"))


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (masks, ["--group", "*_frame"], "--group *_frame: no regular expression"),
        (masks, ["--seed", "-1"], "--seed -1: expected 0 or more"),
        (masks, ["--classes", "a", "a", "b"], "--classes a a b: expected each name once"),
        (both_suffixes, [], "another image is called"),
    ],
)
def test_what_cannot_be_done_is_told(make, options, words, tmp_path):
    make(tmp_path / "source")
    with pytest.raises(InputError, match=re.escape(words)):
        prepare_dataset.main([str(tmp_path / "source"), str(tmp_path / "target"), *options])
    assert not (tmp_path / "target").exists()


def test_images_of_five_bands_are_prepared(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (16, 32, 5), np.uint8)
    for name in ("a1", "b2"):
        save(tmp_path / f"source/masks/{name}.png", LABEL)
        file = tmp_path / f"source/images/{name}.tif"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(tiff(values))
    prepare_dataset.main([str(tmp_path / "source"), str(tmp_path / "target")])
    assert (tmp_path / "target" / "samples.png").exists()
