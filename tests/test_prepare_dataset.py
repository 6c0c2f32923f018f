"""Data as people have them, to label maps that are compared pixel by pixel, and to a training."""

import base64
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import COLOURS, TINY_MODEL, error_line, run_tool
from labelled_folders import (
    NAMES,
    SIZE,
    assert_refused,
    box,
    compressed,
    runs_of,
    save,
    save_images,
    truth,
)
from projects.SegFormer.dataset.description import read_description
from projects.SegFormer.dataset.label_sources import find_source
from projects.SegFormer.dataset.label_sources.shapes import decode_rle
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.tools import prepare_dataset
from projects.SegFormer.tools.prepare_dataset import split


def indices(root: Path):
    save_images(root / "photos")
    for name in NAMES:
        save(root / "Labels" / f"{name}.png", truth(name))
    return truth, ["class 0", "class 1", "class 2"]


def beside_the_images(root: Path):
    save_images(root, ".png")
    for name in NAMES:
        save(root / f"{name}_mask.png", truth(name))
    return truth, ["class 0", "class 1", "class 2"]


def one_class(root: Path):
    save_images(root / "images")
    for name in NAMES:
        save(root / "masks" / f"{name}.png", (truth(name) == 0).astype(np.uint8) * 255)
    return (lambda name: (truth(name) == 0).astype(np.uint8)), ["background", "foreground"]


def values_far_apart(root: Path):
    save_images(root / "images")
    table = np.array([7, 40, 200], np.uint8)
    for name in NAMES:
        save(root / "masks" / f"{name}.png", table[truth(name)])
    return truth, ["class 7", "class 40", "class 200"]


def save_colours(root: Path, suffix: str = "") -> None:
    save_images(root / "images")
    for name in NAMES:
        save(root / "masks" / f"{name}{suffix}.png", COLOURS[truth(name)])


def colours_by_camvids_table(root: Path):
    """Names are those of the table; its order counts, and a colour that is not in it counts not."""
    save_colours(root, "_L")
    table = [("sky", COLOURS[2]), ("disc", COLOURS[0]), ("unused", (1, 2, 3))]
    lines = [" ".join(map(str, colour)) + f"\t\t{name}" for name, colour in table]
    (root / "label_colors.txt").write_text("\n".join(lines))
    wanted = np.array([1, 255, 0], np.uint8)
    return (lambda name: wanted[truth(name)]), ["sky", "disc", "unused"]


def colours_by_cvats_table(root: Path):
    save_colours(root)
    names = ("disc", "field", "sky")
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(names, COLOURS)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines))
    return truth, list(names)


def labelme(root: Path):
    """A polygon's last pixels belong to it."""
    save_images(root)
    for name in NAMES:
        left, top, right, bottom = box(truth(name))
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        field = [[0, 20], [SIZE[1] - 1, 20], [SIZE[1] - 1, SIZE[0] - 1], [0, SIZE[0] - 1]]
        ones = np.ones((bottom - top + 1, right - left + 1), np.uint8)
        ones = base64.b64encode(cv2.imencode(".png", ones)[1]).decode()
        shapes = [
            {"label": "field", "points": field, "shape_type": "polygon"},
            {"label": "disc", "points": corners[::2], "shape_type": "rectangle"}
            if int(name) % 2
            else {"label": "disc", "points": corners[::2], "shape_type": "mask", "mask": ones},
            {"label": "disc", "points": [[0, 0]], "shape_type": "point"},
        ]
        content = {"imagePath": f"elsewhere\\{name}.jpg", "shapes": shapes}
        (root / f"{name}.json").write_text(json.dumps(content))
    wanted = np.array([1, 2, 0], np.uint8)
    return (lambda name: wanted[truth(name)]), ["background", "disc", "field"]


def coco(root: Path):
    """Polygons, both forms of runs, a crowd; the smaller object lies above the larger."""
    save_images(root / "images")
    images, objects = [], []
    for index, name in enumerate(NAMES):
        images.append({"id": 100 + index, "file_name": f"{name}.jpg"})
        label = truth(name)
        left, top, right, bottom = box(label)
        right, bottom = right + 1, bottom + 1
        shape = [[left, top, right, top, right, bottom, left, bottom]]
        field = np.zeros(SIZE, bool)
        field[20:] = True
        runs = runs_of(field)
        runs = {"size": list(SIZE), "counts": compressed(runs) if index % 2 else runs}
        objects += [
            {"image_id": 100 + index, "category_id": 9, "segmentation": shape, "area": 192},
            {"image_id": 100 + index, "category_id": 4, "segmentation": runs, "area": 2000},
        ]
    objects[-1]["iscrowd"] = 1
    objects.append({"image_id": 100, "category_id": 4, "segmentation": [], "area": 1})
    categories = [{"id": 9, "name": "disc"}, {"id": 4, "name": "field"}]
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))

    def wanted(name):
        label = np.array([2, 1, 0], np.uint8)[truth(name)]
        if name == NAMES[-1]:
            label[label == 1] = 255
        return label

    return wanted, ["background", "field", "disc"]


SOURCES = [
    *(indices, beside_the_images, one_class, values_far_apart),
    *(colours_by_camvids_table, colours_by_cvats_table, labelme, coco),
]


@pytest.mark.parametrize("make", SOURCES)
def test_label_maps(make, tmp_path, capsys):
    wanted, classes = make(tmp_path / "source")
    target = tmp_path / "target"
    prepare_dataset.main([str(tmp_path / "source"), str(target), "--val", "0.34"])
    assert "4 train, 2 val" in capsys.readouterr().out
    found = {path.stem: path for path in target.glob("annotations/*/*.png")}
    assert sorted(found) == NAMES
    for name, path in found.items():
        np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), wanted(name))
        (image,) = target.glob(f"images/{path.parent.name}/{name}.*")
        assert image.is_symlink() and image.resolve().stem == name
    described = read_description(target)
    assert described.classes == classes and described.size == list(SIZE)
    assert described.images == {"train": 4, "val": 2}
    assert cv2.imread(str(target / "samples.png")) is not None


def test_colours_without_a_table(tmp_path):
    """The most frequent first; one may count nowhere."""
    save_colours(tmp_path)
    source = find_source(tmp_path)
    names = [f"#{bytes(colour).hex()}" for colour in COLOURS]
    assert sorted(source.classes) == sorted(names)
    labels = [image.label() for image in source.images]
    for image, label in zip(source.images, labels):
        own = np.array([source.classes.index(name) for name in names], np.uint8)
        np.testing.assert_array_equal(label, own[truth(image.name)])
    source = find_source(tmp_path, [names[0]])
    assert sorted(source.classes) == sorted(names[1:])
    np.testing.assert_array_equal(source.images[0].label() == 255, truth(NAMES[0]) == 0)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 48)])
def test_runs(shape):
    """Written down by this test's own encoder."""
    rng = np.random.default_rng(0)
    for share in (0, 0.02, 0.5, 1):
        mask = rng.random(shape) < share
        runs = runs_of(mask)
        np.testing.assert_array_equal(decode_rle(runs, *shape), mask)
        np.testing.assert_array_equal(decode_rle(compressed(runs), *shape), mask)
    with pytest.raises(InputError, match="run-length mask of 5 pixels"):
        decode_rle([2, 3], 2, 2)


def images_called(*names: str):
    return [prepare_dataset.Labelled(name, Path(name), None) for name in names]


def test_split_of_the_folders_counts():
    found = split(images_called("Train/a", "valid/b/c", "train/d", "testing/e"), 0.5, 0)
    assert {key: [it.name for it in value] for key, value in found.items()} == {
        "train": ["a", "d"],
        "val": ["b/c"],
        "test": ["e"],
    }


def test_split_by_seed_and_group():
    images = images_called(*(f"video{n}_{frame}" for n in range(10) for frame in range(3)))
    found = split(images, 0.2, 1, r"video(\d+)_")
    assert len(found["val"]) == 6 and len({it.name[:6] for it in found["val"]}) == 2
    assert sorted(it.name for value in found.values() for it in value) == sorted(
        it.name for it in images
    )
    again = split(images[::-1], 0.2, 1, r"video(\d+)_")
    assert {it.name for it in again["val"]} == {it.name for it in found["val"]}
    assert {it.name for it in split(images, 0.2, 2)["val"]} != {it.name for it in found["val"]}


def no_labels(root: Path) -> None:
    save_images(root)


def smooth_masks(root: Path) -> None:
    save_images(root / "images")
    rng = np.random.default_rng(0)
    for name in NAMES:
        save(root / "masks" / f"{name}.png", rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8))


def one_value(root: Path) -> None:
    save_images(root / "images")
    for name in NAMES:
        save(root / "masks" / f"{name}.png", np.zeros(SIZE, np.uint8))


def image_outside(root: Path) -> None:
    save(root.parent / "secret.png", COLOURS[truth("00")])
    root.mkdir()
    (root / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "../secret.png"}))


def damaged_mask(root: Path) -> None:
    indices(root)
    (root / "Labels" / "00.png").write_bytes(b"no picture")


def foreign_coco(root: Path) -> None:
    coco(root)
    content = json.loads((root / "instances.json").read_text())
    content["annotations"][0]["category_id"] = 77
    (root / "instances.json").write_text(json.dumps(content))


def foreign_labelme(root: Path) -> None:
    labelme(root)
    (root / "00.json").write_text(json.dumps({"shapes": [{"points": 3}], "imagePath": "00.jpg"}))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (damaged_mask, "Labels/00.png"),
        (foreign_coco, "instances.json: not as COCO writes it (KeyError: 77)"),
        (foreign_labelme, "00.json: not as LabelMe writes it (KeyError: 'label')"),
        (no_labels, "6 images, 0 pictures of masks and no pair of both"),
        (smooth_masks, "colours; masks have one for each class"),
        (one_value, "the masks hold one value, [0]: expected two classes or more"),
        (image_outside, "a.json: its image is neither at imagePath nor beside it"),
        (lambda root: None, "no folder"),
    ],
)
def test_what_is_no_data_set(make, words, tmp_path):
    assert_refused(make, words, tmp_path)


def test_the_tool_ends_with_a_line(tmp_path):
    process = run_tool("tools/prepare_dataset.py", str(tmp_path / "nowhere"), str(tmp_path / "x"))
    assert "no folder" in error_line(process)


def test_own_data_is_not_written_over(tmp_path):
    indices(tmp_path / "source")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("mine")
    with pytest.raises(InputError, match="target is there already"):
        prepare_dataset.main([str(tmp_path / "source"), str(tmp_path / "target")])
    assert (tmp_path / "target" / "mine").read_text() == "mine"


OWN = "configs/segformer_own.py"


def test_the_config_fits_the_data(tmp_path):
    indices(tmp_path / "source")
    prepare_dataset.main([str(tmp_path / "source"), str(tmp_path / "target")])
    cfg = load_config(OWN, [f"data.root={tmp_path}/target", "data.crop=[32,32]"])
    assert cfg.model.cfg.num_classes == 3 and list(cfg.data.scale) == list(SIZE)
    assert list(cfg.data.crop) == [32, 32] and cfg.inference.resize is None
    assert (cfg.train.train_iter, cfg.train.evaluation.eval_period) == (600, 120)
    assert (cfg.optim.params.lr, cfg.optim.params.head_lr_multiplier) == (6e-4, 1.0)
    tuned = load_config(OWN, [f"data.root={tmp_path}/target", "cfg.pretrained_model_path=x.pth"])
    assert (tuned.optim.params.lr, tuned.optim.params.head_lr_multiplier) == (6e-5, 10.0)
    with pytest.raises(InputError, match="no .*nowhere/dataset.json: python tools/prepare_dataset"):
        load_config(OWN, [f"data.root={tmp_path}/nowhere"])


@pytest.mark.parametrize("change", [dict(classes=[]), dict(size=[0, 1]), dict(images={"train": 1})])
def test_a_description_that_makes_no_sense(tmp_path, change):
    content = dict(classes=["a", "b"], palette=[[0, 0, 0], [1, 1, 1]], size=[9, 9])
    content |= dict(images={"train": 1, "val": 1}) | change
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"dataset.json: expected classes \(2 or more names\)"):
        read_description(tmp_path)


@pytest.mark.slow
def test_from_a_folder_to_a_prediction(tmp_path):
    """By the commands of the README, without a file to edit."""
    colours_by_camvids_table(tmp_path / "source")
    target, output = tmp_path / "target", tmp_path / "output"
    for command in (
        ["tools/prepare_dataset.py", str(tmp_path / "source"), str(target), "--copy"],
        [
            *("tools/train_net.py", "--config-file", OWN, f"data.root={target}"),
            *(f"train.output_dir={output}", "train.train_iter=3", *TINY_MODEL),
        ],
        [
            *(
                "tools/predict.py",
                "--weights",
                str(output),
                "--output",
                str(tmp_path / "predicted"),
            ),
            str(tmp_path / "source" / "images" / "00.jpg"),
        ],
    ):
        process = run_tool(*command)
        assert process.returncode == 0, process.stderr
        if command[0] == "tools/train_net.py":
            assert "Chosen: model.cfg.num_classes=3: the classes of dataset.json" in process.stdout
    labels = cv2.imread(str(tmp_path / "predicted" / "00_labels.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == SIZE and labels.max() < 3
    assert "sky" in json.loads((output / "evaluation.json").read_text())["IoU"]
