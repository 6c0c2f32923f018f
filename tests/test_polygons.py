"""Outlines and run lengths of label maps, drawn again by other means: the label map comes back."""

import numpy as np
import pytest

from projects.SegFormer.dataset.label_sources.shapes import decode_rle
from projects.SegFormer.evaluation.polygons import coco_results, encode_rle, feature_collection

CLASSES, PALETTE = ["sky", "road", "tree"], [(1, 2, 3), (255, 0, 16), (0, 128, 255)]


def drawn(polygons: dict, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose middle has an odd number of edges to its right; -1 where no polygon is."""
    result, (rows, columns) = np.full(shape, -1), np.indices(shape) + 0.5
    for feature in polygons["features"]:
        inside = np.zeros(shape, bool)
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            for (x, y), (next_x, next_y) in zip(ring, ring[1:]):
                assert (x == next_x) != (y == next_y)
                inside ^= (columns < x) & (rows > min(y, next_y)) & (rows < max(y, next_y))
        assert (result[inside] == -1).all()
        assert inside.sum() == feature["properties"]["area"]
        result[inside] = feature["properties"]["index"]
    return result


def maps():
    """Noise, smooth shapes, thin lines, one pixel; with pixels of no class."""
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 9), (8, 1), (13, 17), (24, 30)):
        yield rng.integers(-1, 3, shape)
        yield rng.integers(0, 2, shape).astype(np.uint8)
        yield np.kron(rng.integers(-1, 3, shape), np.ones((3, 2), int))
        yield np.full(shape, 1, np.uint16)
        yield np.full(shape, 255, np.uint8)  # no class


@pytest.mark.parametrize("label_map", list(maps()), ids=lambda it: f"{it.dtype}-{it.shape}")
def test_the_label_map_comes_back(label_map):
    label_map_of_classes = np.where(label_map < 3, label_map.astype(int), -1)
    polygons = feature_collection(label_map, CLASSES, PALETTE)
    np.testing.assert_array_equal(drawn(polygons, label_map.shape), label_map_of_classes)
    result = np.full(label_map.shape, -1)
    for mask in coco_results(label_map, CLASSES, "photo"):
        segmentation = mask["segmentation"]
        assert segmentation["size"] == list(label_map.shape)
        inside = decode_rle(segmentation["counts"], *segmentation["size"])
        assert (result[inside] == -1).all()
        result[inside] = mask["category_id"]
    np.testing.assert_array_equal(result, label_map_of_classes)


@pytest.mark.parametrize("label_map", list(maps()), ids=lambda it: f"{it.dtype}-{it.shape}")
def test_rings_are_simple(label_map):
    """What programs for maps ask of a polygon: no corner twice, the outer ring against the clock
    and holes with it (as if y ran upwards), no corner where it goes straight on."""
    for feature in feature_collection(label_map, CLASSES, PALETTE)["features"]:
        for number, ring in enumerate(feature["geometry"]["coordinates"]):
            corners, after = np.array(ring[:-1]), np.array(ring[1:])
            assert len(np.unique(corners, axis=0)) == len(corners) >= 4
            area = (corners[:, 0] * after[:, 1] - corners[:, 1] * after[:, 0]).sum() / 2
            assert (area > 0) == (number == 0)
            is_upright = corners[:, 0] == after[:, 0]
            assert (is_upright != np.roll(is_upright, 1)).all()


def test_a_polygon_by_hand():
    label_map = np.array(
        [
            [1, 1, 1, -1],
            [1, 2, 1, -1],
            [1, 1, 1, 1],
            [-1, 0, -1, -1],
        ]
    )
    polygons = feature_collection(label_map, CLASSES, PALETTE)
    assert polygons["type"] == "FeatureCollection"
    sky, road, tree = polygons["features"]
    assert {feature["type"] for feature in (sky, road, tree)} == {"Feature"}
    assert road["properties"] == {"class": "road", "index": 1, "color": "#ff0010", "area": 9}
    assert road["geometry"]["type"] == "Polygon"
    outer, hole = ({tuple(point) for point in ring} for ring in road["geometry"]["coordinates"])
    assert outer == {(0, 0), (3, 0), (3, 2), (4, 2), (4, 3), (0, 3)}
    assert hole == {(1, 1), (2, 1), (2, 2), (1, 2)}
    assert sky["properties"]["area"] == tree["properties"]["area"] == 1


def test_regions_that_meet_at_a_corner_are_two():
    label_map = np.array([[1, 0], [0, 1]])
    features = feature_collection(label_map, CLASSES, PALETTE)["features"]
    assert [feature["properties"]["area"] for feature in features] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "runs, text",
    [
        ([1, 2, 1], "121"),  # digits from "0" on
        ([0, 4], "04"),
        ([100, 15, 16], "T3?`0"),  # 4 + 3 * 32; 16 has a second digit, for its sign
        ([2, 3, 4, 1, 4], "234N0"),  # then differences: 1 - 3, 4 - 4
        ([3, 1, 0], "31"),
    ],
)
def test_run_lengths_by_hand(runs, text):
    assert encode_rle(np.array(runs)) == text


def test_results_by_hand():
    label_map = np.array([[0, 2], [2, 0]], np.uint8)
    assert coco_results(label_map, CLASSES, "photo") == [
        {
            "image_id": "photo",
            "category_id": index,
            "category_name": CLASSES[index],
            "segmentation": {"size": [2, 2], "counts": counts},
        }
        for index, counts in ((0, "0120"), (2, "121"))
    ]
