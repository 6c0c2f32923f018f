"""The augmentation of ImageNet pre-training, and the centre crop of its evaluation.

The recipe of DeiT (Touvron et al. 2021, table 9), which PVT and SegFormer follow, with the
magnitudes that timm calls rand-m9-mstd0.5-inc1. Called as those of `transforms.py` are,
`transform(image, label, rng) -> (image, label)`, with images (H, W, 3); the label passes through,
None in `ClassificationFolder`. FlowVision's versions draw from global generators, so a sample would
depend on what was drawn before it.

Images are scaled and warped by Pillow, as where the published numbers come from: its bicubic filter
widens when it scales down, OpenCV's does not and leaves aliases.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
from PIL import ImageEnhance, ImageOps

from projects.SegFormer.dataset.transforms import (
    IMAGENET_MEAN,
    Image,
    Label,
    Rng,
    Sample,
    both_sides,
)
from projects.SegFormer.modeling.errors import InputError

BICUBIC = PIL.Image.Resampling.BICUBIC
MEAN_COLOUR = tuple(round(level) for level in IMAGENET_MEAN)

Box = tuple[slice, slice]


class RandomResizedCrop:
    """A random part of the image, scaled to `size` (Szegedy et al. 2015).

    Args:
        size: (height, width) of the result, or the side of a square.
        scale: range of the part's share of the area.
        ratio: range of its width / height. If no part is found that fits into the image, the
            largest in the middle whose ratio is in the range is taken.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ):
        self.size = both_sides(size)
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        size = image.shape[:2]
        rows, columns = _random_box(*size, self.scale, self.ratio, rng) or self._middle(*size)
        return _resize(image[rows, columns], *self.size), label

    def _middle(self, height: int, width: int) -> Box:
        narrowest, widest = self.ratio
        part_height = min(height, max(1, round(width / narrowest)))
        part_width = min(width, max(1, round(height * widest)))
        top, left = (height - part_height) // 2, (width - part_width) // 2
        return slice(top, top + part_height), slice(left, left + part_width)


class ResizeShortSide:
    """Scale so that the short side is `size`, the long side in proportion, rounded down."""

    def __init__(self, size: int):
        if not isinstance(size, int):
            raise InputError(f"ResizeShortSide: size={[*size]}: expected the short side, a number")
        self.size = size

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        short = min(image.shape[:2])
        height, width = (self.size * side // short for side in image.shape[:2])
        return _resize(image, height, width), label


class CenterCrop:
    """The middle of an image that is at least as large: `size` is (height, width), or a side."""

    def __init__(self, size: int | tuple[int, int]):
        self.size = both_sides(size)

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        height, width = self.size
        if image.shape[0] < height or image.shape[1] < width:
            size = height if height == width else f"{height}x{width}"
            raise InputError(
                f"CenterCrop: an image of {image.shape[0]}x{image.shape[1]} (height x width) is "
                f"smaller than size={size}; scale it with ResizeShortSide to that or more"
            )
        # Half a pixel goes to the even side, as in torchvision.
        top, left = (round((a - b) / 2) for a, b in zip(image.shape[:2], self.size))
        return image[top : top + height, left : left + width], label


class RandAugment:
    """`num_ops` operations drawn from OPERATIONS, each done with probability 0.5.

    Cubuk et al. 2020, where a higher magnitude is always a stronger change ("increasing").

    Args:
        magnitude: mean of each operation's magnitude, 0 to 10.
        magnitude_std: its standard deviation; what is drawn is clipped to 0 and 10.
        num_ops: operations an image, drawn with replacement.
    """

    PROB = 0.5
    MOST = 10.0

    def __init__(self, magnitude: float = 9.0, num_ops: int = 2, magnitude_std: float = 0.5):
        self.magnitude = magnitude
        self.num_ops = num_ops
        self.magnitude_std = magnitude_std

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        picture = PIL.Image.fromarray(image)
        for _ in range(self.num_ops):
            if rng.random() < self.PROB:
                name = _NAMES[rng.integers(len(_NAMES))]
                magnitude = np.clip(rng.normal(self.magnitude, self.magnitude_std), 0, self.MOST)
                sign = 1 if rng.random() < 0.5 else -1
                picture = OPERATIONS[name](picture, sign * float(magnitude) / self.MOST)
        return np.asarray(picture), label


class RandomErasing:
    """Normal noise, a value a pixel and channel, in a random rectangle (Zhong et al. 2020).

    Belongs after `Normalize`, where the noise has the mean and the deviation of the image.

    Args:
        prob: of an image having one.
        area: range of the rectangle's share of the image.
        ratio: range of its width / height.
    """

    def __init__(
        self,
        prob: float = 0.25,
        area: tuple[float, float] = (0.02, 1 / 3),
        ratio: tuple[float, float] = (0.3, 1 / 0.3),
    ):
        self.prob = prob
        self.area = tuple(area)
        self.ratio = tuple(ratio)

    def __call__(self, image: Image, label: Label, rng: Rng) -> Sample:
        if rng.random() < self.prob:
            box = _random_box(*image.shape[:2], self.area, self.ratio, rng)
            if box is not None:
                image = image.copy()
                image[box] = rng.standard_normal(image[box].shape, np.float32)
        return image, label


# ---- The operations of RandAugment ----------------------------------------------------------
# Each is called with a strength from -1 to 1, its sign the direction where there are two.


def _rotate(picture: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    return picture.rotate(30 * strength, BICUBIC, fillcolor=MEAN_COLOUR)


def _shear_x(picture: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    return _affine(picture, (1, 0.3 * strength, 0, 0, 1, 0))


def _shear_y(picture: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    return _affine(picture, (1, 0, 0, 0.3 * strength, 1, 0))


def _translate_x(picture: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    return _affine(picture, (1, 0, 0.45 * strength * picture.width, 0, 1, 0))


def _translate_y(picture: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    return _affine(picture, (1, 0, 0, 0, 1, 0.45 * strength * picture.height))


def _affine(picture: PIL.Image.Image, matrix: Sequence[float]) -> PIL.Image.Image:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f), `matrix` being a to f."""
    affine = PIL.Image.Transform.AFFINE
    return picture.transform(picture.size, affine, matrix, BICUBIC, fillcolor=MEAN_COLOUR)


def _posterize(picture: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    return ImageOps.posterize(picture, 4 - int(4 * abs(strength)))  # bits that are kept


def _solarize(picture: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    return ImageOps.solarize(picture, 256 - int(256 * abs(strength)))


def _solarize_add(picture: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    """Levels below 128 are raised."""
    added = int(110 * abs(strength))
    table = [min(level + added, 255) if level < 128 else level for level in range(256)]
    return picture.point(table * 3)


def _enhance(kind: type) -> Callable[[PIL.Image.Image, float], PIL.Image.Image]:
    """Of 1, the image as it is, up to 1.9 or down to 0.1 of a property."""
    return lambda picture, strength: kind(picture).enhance(1 + 0.9 * strength)


OPERATIONS = {
    "auto_contrast": lambda picture, strength: ImageOps.autocontrast(picture),
    "equalize": lambda picture, strength: ImageOps.equalize(picture),
    "invert": lambda picture, strength: ImageOps.invert(picture),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "colour": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
_NAMES = tuple(OPERATIONS)


def _resize(image: Image, height: int, width: int) -> Image:
    return np.asarray(PIL.Image.fromarray(image).resize((width, height), BICUBIC))


def _random_box(
    height: int, width: int, area: tuple[float, float], ratio: tuple[float, float], rng: Rng
) -> Box | None:
    """Rows and columns of a random part of an image of `height` x `width`.

    Its share of the area is uniform, its width / height uniform in the logarithm. Ten are drawn;
    the first that fits into the image is taken, None if none does.
    """
    shortest, longest = (math.log(limit) for limit in ratio)
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        stretch = math.exp(rng.uniform(shortest, longest))
        part_height, part_width = (
            round(math.sqrt(pixels / stretch)),
            round(math.sqrt(pixels * stretch)),
        )
        if 0 < part_height <= height and 0 < part_width <= width:
            top = int(rng.integers(height - part_height, endpoint=True))
            left = int(rng.integers(width - part_width, endpoint=True))
            return slice(top, top + part_height), slice(left, left + part_width)
    return None
