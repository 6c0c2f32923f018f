"""Pictures as a program has them: read, and in batches of one size."""

import os
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from PIL import Image

from projects.SegFormer.dataset.image_files import read_image
from projects.SegFormer.modeling.errors import InputError

BATCH = 4  # images of one size that go through the network together

Picture = str | os.PathLike | np.ndarray | Image.Image


def as_array(image: Picture, channels: int) -> np.ndarray:
    """uint8 (H, W, channels), in RGB order; what EXIF says of a file's orientation is done.

    Raises InputError for what is no image, or has other channels.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, channels)
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB") if channels == 3 else image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.dtype != np.uint8 or image.shape[2] != channels:
        raise InputError(
            f"an array of shape {image.shape} and {image.dtype}: expected an image (height, "
            f"width, {channels}) of uint8, in RGB order"
        )
    return image


def in_batches(
    items: Iterable[tuple[np.ndarray, Picture]],
) -> Iterator[list[tuple[np.ndarray, Picture]]]:
    """Neighbours whose arrays are of one shape, up to BATCH together, as they are asked for."""
    for _, same in groupby(items, lambda item: item[0].shape):
        while batch := list(islice(same, BATCH)):
            yield batch


def name_of(image: Picture) -> str:
    """Of its file, without the suffix; "image" where it has none."""
    return Path(image).stem if isinstance(image, (str, os.PathLike)) else "image"
