"""Joint transforms against plain NumPy and against a picture of its own coordinates."""

import colorsys

import numpy as np
import pytest
from libai.config import LazyCall, instantiate
from omegaconf import OmegaConf

from projects.SegFormer.dataset.transforms import (
    IGNORE_INDEX,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Compose,
    Normalize,
    Pad,
    PhotometricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
)


class ScriptedRng:
    """Stands in for a Generator: returns what the test wrote down, in order, and nothing more."""

    def __init__(self, *values):
        self.values = list(values)

    def _next(self, *args, **kwargs):
        return self.values.pop(0)

    random = uniform = integers = _next


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(height, width, seed=0):
    return rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def coordinates(height, width):
    """A float image whose channels 0 and 1 are x and y of each pixel, and x and y as labels."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.float32)
    return image, x.astype(np.uint8), y.astype(np.uint8)


# ---- Resize ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source, kwargs, expected",
    [
        ((1024, 2048), {"size": (1024, 2048)}, (1024, 2048)),
        ((1024, 2048), {"size": (512, 1024)}, (512, 1024)),
        ((360, 480), {"size": (512, 2048)}, (512, 683)),  # the short side binds: 480 * 512/360
        ((480, 360), {"size": (512, 2048)}, (683, 512)),  # upright image, same scale
        ((100, 1000), {"size": (512, 2048)}, (205, 2048)),  # the long side binds: 100 * 2.048
        ((360, 480), {"size": (512, 2048), "divisor": 32}, (512, 704)),
        ((360, 480), {"size": (100, 50), "keep_ratio": False}, (100, 50)),
        ((2, 900), {"size": (30, 90)}, (1, 90)),  # 0.2 pixels high
    ],
)
def test_resize_sizes(source, kwargs, expected):
    image = np.zeros((*source, 3), np.uint8)
    image, label = Resize(**kwargs)(image, image[..., 0], None)
    assert image.shape == (*expected, 3)
    assert label.shape == expected


def test_resize_leaves_the_label_when_told():
    image, label = np.zeros((36, 48, 3), np.uint8), noise(36, 48)[..., 0]
    resized, same = Resize((72, 96), resize_label=False)(image, label, None)
    assert resized.shape == (72, 96, 3)
    assert same is label


@pytest.mark.parametrize("size", [(37, 61), (61, 37), (11, 7), (20, 30)])
def test_resize_is_bilinear_with_pixel_centres(size):
    image = noise(20, 30)

    def taps(source, target):
        centre = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(centre).astype(int)
        return low, np.minimum(low + 1, source - 1), centre - low

    top, bottom, v = taps(20, size[0])
    left, right, u = taps(30, size[1])
    u, v = u[None, :, None], v[:, None, None]
    upper = image[top][:, left] * (1 - u) + image[top][:, right] * u
    lower = image[bottom][:, left] * (1 - u) + image[bottom][:, right] * u
    expected = upper * (1 - v) + lower * v

    resized, _ = Resize(size, keep_ratio=False)(image, None, None)
    assert np.abs(resized - expected).max() <= 1  # uint8 rounding in fixed point


@pytest.mark.parametrize("size", [(37, 61), (61, 37), (11, 7), (200, 300)])
def test_labels_are_the_nearest_pixel(size):
    label = noise(21, 31)[..., 0]  # odd sides: no centre falls on the border of two pixels
    rows = np.floor((np.arange(size[0]) + 0.5) * 21 / size[0]).astype(int)
    columns = np.floor((np.arange(size[1]) + 0.5) * 31 / size[1]).astype(int)
    _, resized = Resize(size, keep_ratio=False)(noise(21, 31), label, None)
    np.testing.assert_array_equal(resized, label[rows][:, columns])


def test_random_resize_fits_the_scaled_size():
    image, label = RandomResize((100, 200))(noise(50, 80), None, ScriptedRng(1.5))
    assert image.shape == (150, 240, 3) and label is None  # 150/50 = 3 binds, 300/80 does not


def test_random_resize_covers_its_range():
    transform = RandomResize((64, 64), ratio_range=(0.5, 2.0))
    image = np.zeros((64, 64, 3), np.uint8)
    heights = [transform(image, None, rng(seed))[0].shape[0] for seed in range(500)]
    assert 32 <= min(heights) <= 34 and 126 <= max(heights) <= 128
    assert np.mean(heights) == pytest.approx(80, abs=4)  # uniform in the ratio: 64 * 1.25


# ---- alignment ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("axis", [0, 1])
def test_image_and_label_stay_aligned(seed, axis):
    image, *labels = coordinates(150, 240)
    chain = Compose(
        [
            RandomResize((150, 240), (0.3, 3.0)),
            RandomCrop((110, 130)),
            RandomFlip(),
            Pad((110, 130)),
        ]
    )
    image, label = chain(image, labels[axis], rng(seed))
    assert image.shape == (110, 130, 3) and label.shape == (110, 130)
    inside = label != IGNORE_INDEX
    assert inside.any()
    # The image holds the coordinate it was sampled at, the label the coordinate of a whole pixel.
    distance = image[..., axis][inside] - label[inside]
    assert np.abs(distance).max() <= 0.5 + 1e-2
    assert (image[~inside] == 0).all()


# ---- RandomCrop -----------------------------------------------------------------------------


def test_crop_is_a_window_of_both():
    image, x, y = coordinates(40, 60)
    for seed in range(50):
        cropped, label = RandomCrop((16, 24))(image, x, rng(seed))
        left, top = cropped[0, 0, :2].astype(int)
        np.testing.assert_array_equal(cropped, image[top : top + 16, left : left + 24])
        np.testing.assert_array_equal(label, x[top : top + 16, left : left + 24])
        assert label.shape == (16, 24)


def test_crop_reaches_every_corner():
    image, x, _ = coordinates(5, 6)
    crops = [RandomCrop((4, 4))(image, x, rng(seed))[0] for seed in range(200)]
    corners = {tuple(crop[0, 0, :2].astype(int)) for crop in crops}
    assert corners == {(left, top) for left in range(3) for top in range(2)}


def test_crop_takes_shorter_sides_whole():
    image, label = RandomCrop((50, 4))(noise(10, 20), noise(10, 20)[..., 0], rng())
    assert image.shape == (10, 4, 3) and label.shape == (10, 4)


STRIPES = np.array([[0, 0, 0, 0, 0, 1, 1, 1, 255, 255, 2, 3]], np.uint8)


@pytest.mark.parametrize(
    "lefts, expected",
    [
        ([3], 3),  # 0 0 1 1: half and half
        ([0, 3], 3),  # 0 0 0 0: one class only
        ([2, 3], 3),  # 0 0 0 1: exactly three quarters is too much
        ([6, 8], 8),  # 1 1 - -: one class besides the ignored; then - - 2 3
        ([0] * 9 + [3], 3),  # the tenth draw is still tried
        ([0] * 9 + [1], 1),  # and taken even if it fails
    ],
)
def test_crop_draws_again_while_one_class_dominates(lefts, expected):
    image = np.arange(12, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    script = ScriptedRng(*[value for left in lefts for value in (0, left)])
    cropped, label = RandomCrop((1, 4))(image, STRIPES, script)
    assert cropped[0, 0, 0] == expected
    np.testing.assert_array_equal(label, STRIPES[:, expected : expected + 4])
    assert script.values == []


# ---- RandomFlip, Pad, Normalize ---------------------------------------------------------------


def test_flip_mirrors_left_and_right():
    image, label = noise(7, 9), noise(7, 9)[..., 0]
    flipped, mirrored = RandomFlip()(image, label, ScriptedRng(0.49))
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    np.testing.assert_array_equal(mirrored, label[:, ::-1])
    same, unmirrored = RandomFlip()(image, label, ScriptedRng(0.5))
    assert same is image and unmirrored is label


def test_pad_fills_bottom_and_right():
    image, label = Normalize()(noise(3, 4), noise(3, 4)[..., 0], None)
    padded, ignored = Pad((5, 7))(image, label, None)
    expected = np.zeros((5, 7, 3), np.float32)
    expected[:3, :4] = image
    np.testing.assert_array_equal(padded, expected)
    expected = np.full((5, 7), 255)
    expected[:3, :4] = label
    np.testing.assert_array_equal(ignored, expected)


def test_pad_leaves_long_sides():
    image, label = Pad((2, 7))(noise(3, 4), noise(3, 4)[..., 0], None)
    assert image.shape == (3, 7, 3) and label.shape == (3, 7)


def test_normalize():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    result, _ = Normalize()(image, None, None)
    mean, std = 255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(IMAGENET_MEAN, mean)
    np.testing.assert_allclose(IMAGENET_STD, std)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, (image - mean) / std, atol=1e-6)


# ---- PhotometricDistortion --------------------------------------------------------------------

YES, NO = 0.0, 0.9
BEFORE, AFTER = YES, NO  # contrast before saturation and hue, or after


def distort(image, *script):
    script = ScriptedRng(*script)
    image, _ = PhotometricDistortion()(image, None, script)
    assert script.values == []
    return image


def through_hsv(image, scale=1.0, turn=0):
    """Saturation and hue pixel by pixel, rounded as OpenCV stores 8-bit HSV: H in 2 degrees."""
    result = np.empty(image.shape)
    for place in np.ndindex(image.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(image[place] / 255))
        h, s = (round(180 * h) + turn) % 180, min(255, round(scale * round(255 * s)))
        result[place] = np.multiply(255, colorsys.hsv_to_rgb(h / 180, s / 255, v))
    return result


def assert_same_colours(result, expected):
    """A unit of 8-bit hue is worth 8.5 levels; where two are as near, OpenCV may take the other."""
    difference = np.abs(result - expected)
    assert difference.max() <= 9
    assert difference.mean() <= 0.25


def test_brightness():
    image = noise(16, 16)
    expected = np.clip(image.astype(float) + 20.6, 0, 255)
    result = distort(image, YES, 20.6, AFTER, NO, NO, NO)
    assert result.dtype == np.uint8
    assert np.abs(result - expected).max() <= 0.5


@pytest.mark.parametrize("when", [BEFORE, AFTER])
@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_contrast(when, scale):
    image = noise(16, 16)
    # The order of the draws is the order of the steps.
    script = (YES, scale, NO, NO) if when == BEFORE else (NO, NO, YES, scale)
    expected = np.clip(image * scale, 0, 255)
    assert np.abs(distort(image, NO, when, *script) - expected).max() <= 0.5


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_saturation(scale):
    image = noise(24, 24)
    result = distort(image, NO, AFTER, YES, NO, scale, NO)
    assert_same_colours(result, through_hsv(image, scale=scale))


@pytest.mark.parametrize("turn", [-18, 18])
def test_hue(turn):
    image = noise(24, 24)
    result = distort(image, NO, AFTER, NO, YES, turn, NO)
    assert_same_colours(result, through_hsv(image, turn=turn))


def test_order_of_the_steps():
    image = noise(16, 16)
    bright = distort(image, YES, 25.0, AFTER, NO, NO, NO)

    def colour(x):
        return distort(x, NO, AFTER, YES, YES, 1.4, 10, NO)

    def contrast(x):
        return distort(x, NO, AFTER, NO, NO, YES, 1.4)

    before = distort(image, YES, 25.0, BEFORE, YES, 1.4, YES, YES, 1.4, 10)
    after = distort(image, YES, 25.0, AFTER, YES, YES, 1.4, 10, YES, 1.4)
    np.testing.assert_array_equal(before, colour(contrast(bright)))
    np.testing.assert_array_equal(after, contrast(colour(bright)))
    assert (before != after).any()


def test_each_step_happens_half_the_time():
    image = noise(8, 8)
    same = [
        np.array_equal(PhotometricDistortion()(image, None, rng(seed))[0], image)
        for seed in range(2000)
    ]
    assert np.mean(same) == pytest.approx(1 / 16, abs=0.02)


def test_drawn_values_stay_in_range():
    grey = np.full((1, 1, 3), 100, np.uint8)
    no_contrast = PhotometricDistortion(contrast=(1, 1), saturation=(1, 1), hue=0)
    no_brightness = PhotometricDistortion(brightness=0, saturation=(1, 1), hue=0)
    shifted = [int(no_contrast(grey, None, rng(seed))[0][0, 0, 0]) for seed in range(500)]
    scaled = [int(no_brightness(grey, None, rng(seed))[0][0, 0, 0]) for seed in range(500)]
    assert (min(shifted), max(shifted)) == (68, 132)
    assert (min(scaled), max(scaled)) == (50, 150)


# ---- the chain ------------------------------------------------------------------------------


def recipe(call=lambda cls: cls):
    return [
        call(RandomResize)(size=(64, 128), ratio_range=(0.5, 2.0)),
        call(RandomCrop)(size=(48, 64), cat_max_ratio=0.75),
        call(RandomFlip)(prob=0.5),
        call(PhotometricDistortion)(contrast=(0.5, 1.5)),
        call(Normalize)(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
        call(Pad)(size=(48, 64)),
    ]


def test_recipe_is_decided_by_the_rng_alone_and_writes_to_no_input():
    image, label = noise(60, 90), noise(60, 90, 1)[..., 0] % 4
    image.setflags(write=False)
    label.setflags(write=False)
    first = Compose(recipe())(image, label, rng(5))
    again = Compose(recipe())(image, label, rng(5))
    other = Compose(recipe())(image, label, rng(6))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
    assert first[0].dtype == np.float32 and first[0].shape == (48, 64, 3)
    assert first[1].dtype == np.uint8 and first[1].shape == (48, 64)


def test_no_label_passes_through():
    image, label = Compose(recipe())(noise(60, 90), None, rng())
    assert image.shape == (48, 64, 3) and label is None


def test_recipe_from_a_config():
    config = OmegaConf.create({"transforms": recipe(LazyCall)}, flags={"allow_objects": True})
    image, label = noise(60, 90), noise(60, 90, 1)[..., 0] % 4
    expected = Compose(recipe())(image, label, rng(5))
    result = Compose(instantiate(config.transforms))(image, label, rng(5))
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1], expected[1])
