"""Pictures to disk: the one place that writes them."""

from pathlib import Path

import cv2
import numpy as np

from projects.SegFormer.modeling.files import write_whole


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a label map (H, W) or an RGB picture (H, W, 3), whole or not at all.

    uint8, or uint16 for a PNG of 16 bits.

    Encoded in memory, because OpenCV cannot write to a name that is not UTF-8.

    Raises:
        InputError: the disk does not take it, or its name is too long.
    """
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    write_whole(path, cv2.imencode(".png", picture)[1].tobytes())
