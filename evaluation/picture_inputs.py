"""Pictures as a program has them: read, and in batches of one size."""

import os
from collections.abc import Iterable, Iterator
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
        if image.mode.startswith(("I", "F")):  # convert would clip them
            raise InputError(
                f"a picture of Pillow's of mode {image.mode}: expected 8 bits a channel; give its "
                "file, or an array of uint8"
            )
        image = np.asarray(image.convert("RGB") if channels == 3 else image)
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"an image of type {type(image).__name__}: expected a path, an array of uint8 or a "
            "picture of Pillow's"
        )
    if image.ndim == 2:
        image = image[..., None]
    is_image = image.ndim == 3 and image.shape[2] == channels and image.size
    if not is_image or image.dtype != np.uint8:
        raise InputError(
            f"an array of shape {image.shape} and {image.dtype}: expected an image (height, "
            f"width, {channels}) of uint8, in RGB order"
        )
    return image


def in_batches(
    items: Iterable[tuple[np.ndarray, Picture]],
) -> Iterator[list[tuple[np.ndarray, Picture]]]:
    """Neighbours whose arrays are of one shape, up to BATCH together, as they are asked for.

    Where an item raises, those before it come first.
    """
    batch, failure = [], None
    try:
        for item in items:
            if batch and item[0].shape != batch[0][0].shape:
                yield batch
                batch = []
            batch.append(item)
            if len(batch) == BATCH:
                yield batch
                batch = []
    except Exception as error:
        failure = error
    if batch:
        yield batch
    if failure:
        raise failure


def is_one(images: Picture | Iterable[Picture]) -> bool:
    """Whether it is an image, or something else that is not several."""
    return isinstance(images, (Picture, bytes)) or not isinstance(images, Iterable)


def name_of(image: Picture) -> str:
    """Of its file, without the suffix; "image" where it has none."""
    return Path(image).stem if isinstance(image, (str, os.PathLike)) else "image"
