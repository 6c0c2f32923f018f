"""Video files, from anybody: the one place that opens and decodes them.

FFmpeg, as OpenCV brings it, reads them. A name is a file of this machine and nothing else, and a
file is a container of videos and nothing else: a playlist would name further files and addresses.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from projects.SegFormer.modeling.bounds import IMAGE_PIXELS_SETTING, image_pixels
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv"),
)
# What FFmpeg takes the files for by their content, in its words, and how it gets at them.
FORMATS = "mov,matroska,avi,mpegts,mpeg,asf,flv"
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = f"format_whitelist;{FORMATS}|protocol_whitelist;file"
# What is wrong with a file is told in an InputError.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2.setLogLevel(0)
MISSING = 0.05  # of the frames: not all containers know exactly how many they have


class VideoFile:
    """The frames of a video, in their order, one at a time.

    Iterating gives each as uint8 (H, W, 3) in RGB order, turned as the file says. It ends where the
    file cannot be decoded any more, see `check_whole`.

    Attributes:
        frame_rate: frames a second; the mean where they come as they like.
        length: how many frames the file says it has; None if it does not.
        size: (height, width).
    Raises InputError: the file is missing, too large in pixels, damaged or no video.
    """

    def __init__(self, path: str | Path):
        self.path, self.frames_read, self._is_damaged = path, 0, False
        self._capture = _opened(path)
        get = self._capture.get
        self.size = int(get(cv2.CAP_PROP_FRAME_HEIGHT)), int(get(cv2.CAP_PROP_FRAME_WIDTH))
        if self.size[0] * self.size[1] > image_pixels():
            raise InputError(
                f"{path} has more pixels a frame than the {image_pixels():,} up to which images "
                f"are read; scale it, or set {IMAGE_PIXELS_SETTING}"
            )
        rate, length = get(cv2.CAP_PROP_FPS), get(cv2.CAP_PROP_FRAME_COUNT)
        self.frame_rate = rate if 0.01 <= rate <= 1000 else 25.0
        self.length = int(length) if 0 < length < 2**31 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        while (frame := self._next()) is not None:
            self.frames_read += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def check_whole(self) -> None:
        """After the last frame: raises InputError if there should be more of them."""
        missing = (self.length or 1) - self.frames_read
        is_short = not self.frames_read or missing > max(1, MISSING * (self.length or 0))
        if is_short or self._is_damaged:
            of_all = f" of {self.length}" if self.length else ""
            raise InputError(
                f"{self.path}: damaged or cut short: {self.frames_read}{of_all} frames can be "
                "decoded; replace the file or take it out"
            )

    def _next(self) -> np.ndarray | None:
        try:
            found, frame = self._capture.read()
        except cv2.error:  # it has no room for a frame that is larger than the first
            found, self._is_damaged = False, True
        if found and frame.shape[:2] != self.size:
            found, self._is_damaged = False, True
        return frame if found else None


def _opened(path: str | Path) -> cv2.VideoCapture:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise InputError(f"{path} is no regular file: expected a file with data in it")
        # A name of FFmpeg's may be an address or a pattern, and has to be UTF-8: this one is none.
        capture = cv2.VideoCapture(f"/proc/self/fd/{file}", cv2.CAP_FFMPEG)
    finally:
        os.close(file)
    if not capture.isOpened():
        raise InputError(
            f"{path}: damaged, cut short or not a video of a kind that OpenCV decodes; replace the "
            "file, convert it to H.264 in MP4, or take it out"
        )
    return capture
