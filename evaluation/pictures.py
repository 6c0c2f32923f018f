"""Pictures and videos to disk: the one place that writes them."""

import math
import os
import secrets
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason, write_whole

# Of MPEG-4 in FFmpeg, which ends the process over rare frames of a few pixels.
VIDEO_SIDES = (16, 8190)
VIDEO_CLOCK = 65535  # the most steps a second that a frame rate can be written with


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a label map (H, W) or an RGB picture (H, W, 3), whole or not at all.

    uint8, or uint16 for a PNG of 16 bits.

    Encoded in memory, because OpenCV cannot write to a name that is not UTF-8.

    Raises:
        InputError: the disk does not take it, or its name is too long.
    """
    write_whole(path, encoded(picture, "png"))


def encoded(picture: np.ndarray, kind: str) -> bytes:
    """A label map (H, W) or an RGB picture (H, W, 3) as a file of "png" or "jpeg"."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, 85] if kind == "jpeg" else []
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(f".{kind}", picture, settings)[1].tobytes()


class VideoWriter:
    """Writes a video in a `with` block: at its end it is at `path`, whole. After an error in the
    block, or without a frame, there is none.

    It is MPEG-4 Part 2 in an MP4 file, which OpenCV's package encodes in a few milliseconds a
    frame. Its sides are even: after an odd one the last pixels are repeated.

    Args:
        size: (height, width) of the frames.
        frame_rate: frames a second.
    Raises InputError: the disk does not take it, or the codec not its size.
    """

    def __init__(self, path: str | Path, size: tuple[int, int], frame_rate: float):
        self.path, self.frames = Path(path), 0
        self.padding = [side % 2 for side in size]
        height, width = (side + side % 2 for side in size)
        lowest, highest = VIDEO_SIDES
        if not lowest <= min(height, width) <= max(height, width) <= highest:
            raise InputError(
                f"cannot write {path}: frames of {height}x{width} pixels; MPEG-4 takes sides of "
                f"{lowest} to {highest}"
            )
        # FFmpeg goes by the suffix, and wants a path in UTF-8.
        self._partial = f".partial-{secrets.token_hex(8)}.mp4"
        try:
            self._folder = os.open(self.path.parent, os.O_DIRECTORY | os.O_CLOEXEC)
            os.close(os.open(self._partial, os.O_CREAT | os.O_EXCL, 0o666, dir_fd=self._folder))
        except OSError as error:
            raise InputError(f"cannot write {path}: {reason(error)}") from error
        self._ascii_path = f"/proc/self/fd/{self._folder}/{self._partial}"
        rate = round(frame_rate, int(math.log10(VIDEO_CLOCK / frame_rate)))
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(
            self._ascii_path, cv2.CAP_FFMPEG, codec, rate, (width, height)
        )

    def write(self, frame: np.ndarray) -> None:
        """The next frame: uint8 (H, W, 3) in RGB order."""
        self.frames += 1
        below, right = self.padding
        frame = cv2.copyMakeBorder(frame, 0, below, 0, right, cv2.BORDER_REPLICATE)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, error: type | None, *_) -> None:
        self._writer.release()
        try:
            if self.frames and error is None:
                self._put_in_place()
        finally:
            with suppress(OSError):
                os.unlink(self._partial, dir_fd=self._folder)
            os.close(self._folder)

    def _put_in_place(self) -> None:
        # The writer is silent about a full disk: then the index, which comes last, is not there.
        written = cv2.VideoCapture(self._ascii_path, cv2.CAP_FFMPEG)
        if written.get(cv2.CAP_PROP_FRAME_COUNT) != self.frames:
            raise InputError(f"cannot write {self.path}: the disk is full")
        folders = dict(src_dir_fd=self._folder, dst_dir_fd=self._folder)
        try:
            os.replace(self._partial, self.path.name, **folders)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {reason(error)}") from error
