"""Colours and overlays against plain NumPy; text against the pixels that it must not touch."""

import numpy as np
import pytest

from projects.SegFormer.dataset.ade20k import ADE20K
from projects.SegFormer.dataset.cityscapes import Cityscapes
from projects.SegFormer.dataset.coco_stuff import COCOStuff
from projects.SegFormer.evaluation.visualize import (
    PAPER,
    captioned,
    colorize,
    contact_sheet,
    contours,
    drawable,
    legend_panel,
    overlay,
    titled,
    unused_colour,
)
from projects.SegFormer.modeling.errors import InputError

CLASSES = ("road", "sky", "car")
PALETTE = ((128, 64, 128), (70, 130, 180), (0, 0, 142))


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 80, 3), dtype=np.uint8)
    label_map = rng.choice(np.array([0, 1, 255], np.uint8), (48, 80), p=(0.5, 0.3, 0.2))
    return image, label_map


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_colorize_looks_every_pixel_up(dtype):
    label_map = np.array([[0, 1, 2], [255, 2, 3]], dtype)
    black = (0, 0, 0)
    expected = [[PALETTE[0], PALETTE[1], PALETTE[2]], [black, PALETTE[2], black]]
    coloured = colorize(label_map, PALETTE)
    assert coloured.dtype == np.uint8
    np.testing.assert_array_equal(coloured, expected)


def test_colorize_takes_negative_ids_as_no_class():
    assert not colorize(np.array([[-1]]), PALETTE).any()


@pytest.mark.parametrize("legend", [False, True])
def test_overlay_with_alpha_0_is_the_image(scene, legend):
    image, label_map = scene
    drawn = overlay(image, label_map, CLASSES, PALETTE, alpha=0.0, legend=legend)
    np.testing.assert_array_equal(drawn[:48, :80], image)


def test_overlay_blends_classes_lines_and_stripes(scene):
    image, _ = scene
    label_map = np.zeros((48, 80), np.uint8)
    label_map[:, 30:] = 1
    label_map[20:, 50:] = 255
    drawn = overlay(image, label_map, CLASSES, PALETTE, alpha=0.25, legend=False)
    stripes = 0
    for row, column in np.ndindex(label_map.shape):
        label = label_map[row, column]
        left, above = label_map[row, max(column - 1, 0)], label_map[max(row - 1, 0), column]
        colour = PAPER if label != left or label != above else None
        if colour is None:
            colour = PALETTE[label] if label != 255 else image[row, column]
        options = [0.75 * image[row, column] + 0.25 * np.array(colour)]
        if label == 255:
            options.append(0.75 * image[row, column] + 0.25 * np.array(PAPER))
            stripes += np.abs(drawn[row, column] - options[1]).max() <= 0.5
        assert min(np.abs(drawn[row, column] - option).max() for option in options) <= 0.5
    assert 0.15 < stripes / (label_map == 255).sum() < 0.35


def test_contours_are_wider_in_large_images():
    label_map = np.zeros((1500, 1600), np.uint8)
    label_map[:, 800:] = 7
    assert contours(label_map).sum() == 3 * 1500
    assert contours(label_map[:400]).sum() == 400
    assert not contours(np.full((9, 9), 255, np.uint8)).any()


def test_legend_has_ignored_pixels_hatched_and_last():
    label_map = np.zeros((100, 100), np.uint8)
    plain = legend_panel(label_map, CLASSES, PALETTE, 100)
    label_map[:90] = 255
    panel = legend_panel(label_map, CLASSES, PALETTE, 100)
    assert len(panel) > len(plain)
    own = np.argwhere((panel == PALETTE[0]).all(-1))[:, 0].max()
    below = panel[own + 3 :, : len(plain)]
    assert {(120, 120, 120), PAPER} <= colours_of(below)


def colours_of(picture):
    return set(map(tuple, picture.reshape(-1, 3).tolist()))


def test_legend_leaves_out_what_nobody_sees():
    label_map = np.zeros((100, 100), np.uint8)
    label_map[0, :9] = 1  # nine of ten thousand
    shown = colours_of(legend_panel(label_map, CLASSES, PALETTE, 99))
    assert PALETTE[0] in shown and PALETTE[1] not in shown
    label_map[0, :10] = 1
    shown = colours_of(legend_panel(label_map, CLASSES, PALETTE, 99))
    assert PALETTE[1] in shown
    label_map[:], label_map[0, 0] = 255, 1  # all there is
    shown = colours_of(legend_panel(label_map, CLASSES, PALETTE, 99))
    assert PALETTE[1] in shown


@pytest.mark.parametrize("dataset", [Cityscapes, ADE20K, COCOStuff])
def test_unused_colour_is_far_from_all_classes(dataset):
    colour = np.array(unused_colour(dataset.PALETTE))
    nearest = min(np.linalg.norm(colour - np.array(used)) for used in [*dataset.PALETTE, PAPER])
    assert nearest > 35


def test_legend_shows_the_classes_that_are_present(scene):
    image, label_map = scene
    image[:] = 0
    panel = overlay(image, label_map, CLASSES, PALETTE, alpha=0.0)[:, 80:].reshape(-1, 3)
    colours = {tuple(pixel) for pixel in panel.tolist()}
    assert {PALETTE[0], PALETTE[1]} <= colours
    assert PALETTE[2] not in colours


def test_legend_names_the_largest_class_first():
    label_map = np.ones((64, 64), np.uint8)
    label_map[:8] = 0
    panel = overlay(np.zeros((64, 64, 3), np.uint8), label_map, CLASSES, PALETTE, 0.0)[:, 64:]
    first_row = [np.argwhere((panel == PALETTE[index]).all(-1))[:, 0].min() for index in (1, 0)]
    assert first_row[0] < first_row[1]


@pytest.mark.parametrize("size", [(64, 64), (256, 512), (1024, 2048)])
def test_legend_text_is_never_cut_off(size):
    names = [f"class {index} with a rather long name, Straßenbahn 路面电车" for index in range(40)]
    palette = [(index, 100, 200) for index in range(40)]
    label_map = np.arange(size[0] * size[1]).reshape(size) % 40
    drawn = overlay(np.zeros((*size, 3), np.uint8), label_map, names, palette)
    assert drawn.dtype == np.uint8
    panel = drawn[:, size[1] :]
    assert (panel < 128).any()
    for border in (panel[0], panel[-1], panel[:, 0], panel[:, -1]):
        assert (border == 255).all()
    packed = np.unique(panel.astype(np.int64) @ (65536, 256, 1))
    assert set(np.array(palette) @ (65536, 256, 1)) <= set(packed)


def test_overlay_of_nothing_but_ignored_pixels(scene):
    image, label_map = scene
    drawn = overlay(image, np.full_like(label_map, 255), CLASSES, PALETTE)
    assert (drawn[:48, :80] != image).any(-1).mean() < 0.25  # stripes, and nothing else
    assert drawn.shape[1] > 80


def test_overlay_refuses_sizes_that_differ(scene):
    image, label_map = scene
    with pytest.raises(InputError, match=r"\(48, 80, 3\).*\(47, 80\)"):
        overlay(image, label_map[1:], CLASSES, PALETTE)
    with pytest.raises(InputError, match="3 classes and 2 colours"):
        overlay(image, label_map, CLASSES, PALETTE[:2])


@pytest.mark.parametrize("titles", [["a", "b"], ["a title far wider than its tile", "Gehölz 树"]])
def test_contact_sheet_holds_every_tile_unchanged_and_in_order(titles):
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 200, (3, 2, 16, 20, 3), dtype=np.uint8)
    sheet = contact_sheet(rows, titles)
    corners = {}
    for line, column in np.ndindex(3, 2):
        first = rows[line, column, 0, 0]
        for top, left in np.argwhere((sheet == first).all(-1)).tolist():
            if np.array_equal(sheet[top : top + 16, left : left + 20], rows[line, column]):
                corners[line, column] = (top, left)
    assert len(corners) == 6
    assert corners[0, 0][1] == corners[2, 0][1] < corners[0, 1][1]
    assert corners[0, 1][0] == corners[0, 0][0] < corners[1, 0][0] < corners[2, 0][0]
    head = sheet[: corners[0, 0][0]]
    assert (head < 128).any() and (head[:, -1] == 255).all()


def test_contact_sheet_refuses_uneven_rows():
    tile = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(InputError, match="expected 2 tiles"):
        contact_sheet([[tile, tile], [tile]], ["image", "label"])
    with pytest.raises(InputError, match="one size"):
        contact_sheet([[tile, tile[1:]]], ["image", "label"])
    with pytest.raises(InputError, match="0 rows"):
        contact_sheet([], ["image"])


ODD_NAMES = ("\udc80", "a\0b", "two\nlines", "\u200f\ufeff", "", "long " * 100_000)


def test_any_name_can_be_drawn(scene):
    """Out of JSON come null characters and halves of surrogate pairs, out of file names bytes."""
    image, label_map = scene
    for name in ODD_NAMES:
        drawn = overlay(image, label_map, ("road", name, "car"), PALETTE, alpha=0.0)
        np.testing.assert_array_equal(drawn[:48, :80], image)
        assert drawn.shape[1] < 80 + 3000
        sheet = contact_sheet([[image, image]], ["image", name])
        assert sheet.shape[1] < 3000
        np.testing.assert_array_equal(titled(image, name)[-48:], image)
        assert captioned(image, name).shape == image.shape
    assert (captioned(image, "a name") != image).any()


def test_what_is_drawn_of_odd_names():
    plain = "Straßenbahn 路面电车, 2"
    assert drawable(plain) == plain
    assert drawable("a\nb\0\udc80") == r"a\nb\x00\udc80"
    long = drawable("0123456789" * 100)
    assert long.startswith("0123456789" * 10) and long.endswith("...") and len(long) <= 120
