"""Joint transforms of an image and its label: the augmentation of the SegFormer recipe.

Xie et al. 2021, section 4.1, with the numbers of the official configs. Each transform is called as
`transform(image, label, rng) -> (image, label)`:

- image: (H, W, C) uint8, of three channels RGB; float32 once `Normalize` has run.
- label: (H, W) uint8, class indices and IGNORE_INDEX; None passes through as None.
- rng: the only source of randomness.

Sizes are (height, width) throughout: the paper's "2048x1024" is (1024, 2048). The arrays that come
in are never written to; what comes out may be a view of them.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from projects.SegFormer.modeling.errors import InputError

IGNORE_INDEX = 255
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

Image = np.ndarray
Label = np.ndarray | None
Rng = np.random.Generator
Sample = tuple[Image, Label]
Transform = Callable[[Image, Label, Rng], Sample]


def both_sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) as it is, one side as a square: pixels."""
    return (size, size) if isinstance(size, int) else tuple(size)


class Compose:
    """Transforms one after the other."""

    def __init__(self, transforms: Sequence[Transform]):
        self.transforms = list(transforms)

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        for transform in self.transforms:
            image, label = transform(image, label, rng)
        return image, label


class Resize:
    """Scale to `size` (height, width).

    Args:
        size: exact, or, with `keep_ratio`, the long and short side that the result must fit in,
            whichever way round the image is.
        divisor: round both sides up to a multiple of it.
        resize_label: False at evaluation, where the label keeps its own size and the logits are
            brought to it, so that every labelled pixel is counted once.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        keep_ratio: bool = True,
        divisor: int = 1,
        resize_label: bool = True,
    ):
        self.size = both_sides(size)
        self.keep_ratio = keep_ratio
        self.divisor = divisor
        self.resize_label = resize_label

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        height, width = self.target_size(*image.shape[:2])
        if (height, width) != image.shape[:2]:
            image = _banded(cv2.resize, image, (width, height), interpolation=cv2.INTER_LINEAR)
        if label is not None and self.resize_label and (height, width) != label.shape:
            # INTER_LINEAR samples at pixel centres. So does INTER_NEAREST_EXACT; INTER_NEAREST
            # samples at corners and would shift the label against the image by half a pixel.
            label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return image, label

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this height and width gets."""
        target = self.size
        if self.keep_ratio:
            scale = min(
                max(self.size) / max(height, width),
                min(self.size) / min(height, width),
            )
            target = (int(height * scale + 0.5), int(width * scale + 0.5))
        # at least one pixel, whatever the scale
        height, width = (self.divisor * max(1, -(-side // self.divisor)) for side in target)
        return height, width


class RandomResize:
    """`Resize`, ratio kept, to `size` times a factor drawn uniformly from `ratio_range`."""

    def __init__(self, size: int | tuple[int, int], ratio_range: tuple[float, float] = (0.5, 2.0)):
        self.size = both_sides(size)
        self.ratio_range = tuple(ratio_range)

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        ratio = rng.uniform(*self.ratio_range)
        height, width = (int(side * ratio + 0.5) for side in self.size)
        return Resize((height, width))(image, label, rng)


class RandomCrop:
    """Cut out a window of `size` (height, width), or of the whole side where that is shorter.

    Up to ten windows are drawn, until one has no class on `cat_max_ratio` or more of its pixels
    that are not ignored; the tenth is taken as it is.
    """

    DRAWS = 10

    def __init__(self, size: int | tuple[int, int], cat_max_ratio: float = 0.75):
        self.size = both_sides(size)
        self.cat_max_ratio = cat_max_ratio

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        for _ in range(self.DRAWS):
            window = self._window(*image.shape[:2], rng)
            if label is None or self._is_mixed(label[window]):
                break
        return image[window], None if label is None else label[window]

    def _window(self, height: int, width: int, rng: Rng) -> tuple[slice, slice]:
        crop_height, crop_width = self.size
        top = rng.integers(max(height - crop_height, 0), endpoint=True)
        left = rng.integers(max(width - crop_width, 0), endpoint=True)
        return slice(top, top + crop_height), slice(left, left + crop_width)

    def _is_mixed(self, label: np.ndarray) -> bool:
        counts = np.bincount(label.ravel(), minlength=256)[:IGNORE_INDEX]
        return counts.max() < self.cat_max_ratio * counts.sum()


class RandomFlip:
    """Mirror left and right with probability `prob`."""

    def __init__(self, prob: float = 0.5):
        self.prob = prob

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        if rng.random() < self.prob:
            image = _banded(cv2.flip, image, 1)
            label = None if label is None else cv2.flip(label, 1)
        return image, label


class PhotometricDistortion:
    """Change brightness, contrast, saturation and hue of a uint8 image, each with probability 0.5.

    An image of another number of channels than three has no hue, and stays as it is.

    Brightness comes first; contrast before saturation and hue or after them, by the toss of a coin.
    Every step ends in clipped uint8.

    Args:
        brightness: largest shift, in grey levels.
        contrast: range of the factor on RGB.
        saturation: range of the factor on S of HSV.
        hue: largest turn in OpenCV's 8-bit hue, whose unit is 2 degrees.
    """

    PROB = 0.5

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
    ):
        self.brightness = brightness
        self.contrast = tuple(contrast)
        self.saturation = tuple(saturation)
        self.hue = hue

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        if image.shape[2] != 3:
            return image, label
        if rng.random() < self.PROB:
            shift = rng.uniform(-self.brightness, self.brightness)
            image = cv2.LUT(image, _linear_table(shift=shift))
        contrast_first = rng.random() < 0.5
        if contrast_first:
            image = self._distort_contrast(image, rng)
        image = self._distort_colour(image, rng)
        if not contrast_first:
            image = self._distort_contrast(image, rng)
        return image, label

    def _distort_contrast(self, image: Image, rng: Rng) -> Image:
        if rng.random() >= self.PROB:
            return image
        return cv2.LUT(image, _linear_table(scale=rng.uniform(*self.contrast)))

    def _distort_colour(self, image: Image, rng: Rng) -> Image:
        tables = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)  # (1, 256, 3)
        turn_saturation = rng.random() < self.PROB
        turn_hue = rng.random() < self.PROB
        if turn_saturation:
            tables[0, :, 1] = _linear_table(scale=rng.uniform(*self.saturation))
        if turn_hue:
            turn = rng.integers(-self.hue, self.hue, endpoint=True)
            tables[0, :, 0] = (np.arange(256) + turn) % 180
        if not (turn_saturation or turn_hue):
            return image
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables)
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


class Normalize:
    """uint8 to float32: (image - mean) / std, a mean and a std a channel, of RGB in this order.

    Raises:
        InputError: mean and std differ in number, or an image has other channels.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        mean, std = np.array([*mean]), np.array([*std])
        if mean.ndim != 1 or mean.shape != std.shape:
            raise InputError(
                f"data.mean has {mean.size} values and data.std {std.size}: both need one a channel"
            )
        # A uint8 channel has 256 possible results: looking them up takes a tenth of the time of
        # the arithmetic on the whole image.
        levels = np.arange(256, dtype=np.float64)[:, None]
        self.table = ((levels - mean) / std).astype(np.float32)[None]

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        self.check(image.shape[2])
        return _banded(cv2.LUT, image, self.table), label

    def check(self, channels: int) -> None:
        """Raises InputError: there are not as many means as channels."""
        if self.table.shape[2] != channels:
            raise InputError(
                f"data.mean and data.std have {self.table.shape[2]} values and images {channels} "
                f"channels: give {channels} of each, as data.mean=[...] of the values from 0 to 255"
            )


class Pad:
    """Fill up to `size` (height, width) at the bottom and the right: image 0, label IGNORE_INDEX.

    Belongs after `Normalize`, where 0 is the mean colour. Sides that are long enough stay.
    """

    def __init__(self, size: int | tuple[int, int]):
        self.size = both_sides(size)

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        bottom, right = (max(n - m, 0) for n, m in zip(self.size, image.shape[:2], strict=True))
        if bottom or right:
            border = (0, bottom, 0, right, cv2.BORDER_CONSTANT)
            image = _banded(cv2.copyMakeBorder, image, *border, value=0)
            if label is not None:
                label = cv2.copyMakeBorder(label, *border, value=IGNORE_INDEX)
        return image, label


def _linear_table(scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """The 256 values of clip(scale * x + shift), uint8."""
    return np.clip(np.rint(np.arange(256) * scale + shift), 0, 255).astype(np.uint8)


def _banded(function: Callable, image: Image, *args, **kwargs) -> Image:
    """What a function of OpenCV's makes of an image, which it gives no channel axis if it is 1."""
    result = function(image, *args, **kwargs)
    return result.reshape(*result.shape[:2], image.shape[2])
