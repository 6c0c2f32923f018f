"""The drawn road scenes: what the files are, and that they can be learnt from."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from projects.SegFormer.engine import command_line
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.tools.draw_street_scenes import draw_dataset, draw_scene, main

# Label ids of cityscapesScripts: the 19 that are evaluated, and all that there are.
EVALUATED = {7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33}
VOID = {0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30}
SIZE = {"height": 128, "width": 256}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    draw_dataset(root, train=12, val=8, seed=0, **SIZE)
    return root


def _labels(root: Path, split: str) -> dict[Path, np.ndarray]:
    paths = sorted(root.glob(f"gtFine/{split}/*/*_gtFine_labelIds.png"))
    return {path: np.asarray(Image.open(path)) for path in paths}


@pytest.mark.parametrize(("split", "count"), [("train", 12), ("val", 8)])
def test_files_are_in_the_official_layout(dataset, split, count):
    labels = _labels(dataset, split)
    assert len(labels) == count
    for path, label_map in labels.items():
        city, sequence, frame = path.name.removesuffix("_gtFine_labelIds.png").split("_")
        assert path.parent.name == city
        assert (len(sequence), len(frame)) == (6, 6) and (sequence + frame).isdigit()
        image_path = (
            dataset / "leftImg8bit" / split / city / f"{city}_{sequence}_{frame}_leftImg8bit.png"
        )
        image = Image.open(image_path)
        assert (image.mode, image.size) == ("RGB", (256, 128))
        assert (label_map.dtype, label_map.shape) == (np.uint8, (128, 256))
    assert len(list(dataset.glob(f"leftImg8bit/{split}/*/*"))) == count


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_evaluated_class_can_be_seen(dataset, split):
    """In at least two scenes as 32 pixels or more, two cells of the network's 4x4 grid."""
    scenes = dict.fromkeys(range(256), 0)
    for label_map in _labels(dataset, split).values():
        ids, pixels = np.unique(label_map, return_counts=True)
        assert set(ids.tolist()) <= EVALUATED | VOID
        assert set(ids.tolist()) & VOID
        for label_id, count in zip(ids.tolist(), pixels.tolist(), strict=True):
            scenes[label_id] += count >= 32
    assert {label_id for label_id in EVALUATED if scenes[label_id] < 2} == set()


def test_sky_is_above_the_road(dataset):
    for label_map in _labels(dataset, "train").values():
        rows = [np.median(np.nonzero(label_map == label_id)[0]) for label_id in (23, 11, 7)]
        assert rows == sorted(rows)


def test_image_edges_follow_the_labels():
    """Labels are drawn where the image is: colours change more across a label edge than inside."""
    image, label_map = draw_scene(0, "train", 1, 256, 512)
    change = np.abs(np.diff(image.astype(int), axis=1)).sum(-1)
    edge = np.diff(label_map.astype(int), axis=1) != 0
    assert change[edge].mean() > 4 * change[~edge].mean()


def test_a_scene_depends_on_seed_split_and_index_alone():
    image, label_map = draw_scene(3, "val", 5, **SIZE)
    draw_scene(1, "train", 0, **SIZE)
    again, label_again = draw_scene(3, "val", 5, **SIZE)
    np.testing.assert_array_equal(again, image)
    np.testing.assert_array_equal(label_again, label_map)
    for seed, split, index in ((4, "val", 5), (3, "train", 5), (3, "val", 6)):
        other, label_other = draw_scene(seed, split, index, **SIZE)
        assert (label_other != label_map).mean() > 0.1
        assert (other != image).mean() > 0.5


def test_train_and_val_are_different_cities_and_scenes(dataset):
    train, val = _labels(dataset, "train"), _labels(dataset, "val")
    assert {path.parent.name for path in train}.isdisjoint(path.parent.name for path in val)
    contents = [label_map.tobytes() for label_map in (*train.values(), *val.values())]
    assert len(set(contents)) == len(contents)


def test_a_finished_dataset_is_left_as_it_is_and_another_one_replaces_it(tmp_path, capsys):
    root = tmp_path / "new" / "scenes"
    draw_dataset(root, train=2, val=1, height=64, width=64, seed=0)
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    assert len(files) == 2 * 3 + 1
    draw_dataset(root, train=2, val=1, height=64, width=64, seed=0)
    assert "there already" in capsys.readouterr().out
    assert files == {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}

    next(root.glob("gtFine/val/*/*.png")).unlink()
    draw_dataset(root, train=2, val=1, height=64, width=64, seed=0)
    assert len(_labels(root, "val")) == 1

    draw_dataset(root, train=1, val=1, height=64, width=96, seed=0)
    assert len(_labels(root, "train")) == 1
    assert {label_map.shape for label_map in _labels(root, "train").values()} == {(64, 96)}


def test_a_folder_with_other_things_is_refused(tmp_path):
    precious = tmp_path / "leftImg8bit" / "precious.png"
    precious.parent.mkdir()
    precious.write_bytes(b"mine")
    with pytest.raises(InputError, match="not drawn by this tool"):
        draw_dataset(tmp_path, train=1, val=1, height=64, width=64, seed=0)
    assert precious.read_bytes() == b"mine"
    with pytest.raises(InputError, match="not drawn by this tool"):
        draw_dataset(precious, train=1, val=1, height=64, width=64, seed=0)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": -1}, {"height": 32}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path, wrong):
    numbers = {"train": 1, "val": 1, "height": 64, "width": 64, "seed": 0} | wrong
    with pytest.raises(InputError, match="expected at least"):
        draw_dataset(tmp_path / "scenes", **numbers)
    assert not (tmp_path / "scenes").exists()


def test_command_line_prints_one_line_for_a_wrong_input(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").touch()
    monkeypatch.setattr("sys.argv", ["draw_street_scenes.py", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        command_line.run(main)
    told = capsys.readouterr().err
    assert stop.value.code == 1 and told.startswith(f"error: {tmp_path} exists")
    assert told.count("\n") == 1
