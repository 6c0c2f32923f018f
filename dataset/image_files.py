"""Image files, from anybody: the one place that opens and decodes them.

Whatever a file is called, its content decides: only the FORMATS are opened, so that no decoder runs
that starts another program or that nobody needs. The size in the header is checked before anything
is decoded, and a file that cannot be used is told in one line.
"""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from projects.SegFormer.modeling.bounds import IMAGE_BYTES, IMAGE_PIXELS
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # of IMAGE_SUFFIXES, as Pillow calls them

# What else may be called x.png, by its first bytes.
OTHER_FILES = {
    b"%!PS": "PostScript (EPS)",
    b"\xc5\xd0\xd3\xc6": "PostScript (EPS)",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"GIF8": "GIF",
    b"\0\0\1\0": "ICO",
    b"SIMPLE  ": "FITS",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"v/1\1": "OpenEXR",
    b"P5": "PGM",
    b"P6": "PPM",
    b"\x93NUMPY": "NumPy",
    b"\x89HDF": "HDF5",
    b"MATLAB": "MATLAB",
    b"PK\3\4": "ZIP",
    b"\x1f\x8b": "gzip",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"<html": "HTML",
    b"<!DOCTYPE": "HTML",
    b"version https://git-lfs": "Git LFS (a pointer, not the file)",
}
# JPEG files of several scans (progressive ones have 10): their pixels, because all coefficients are
# kept till the last scan, and their pixels times scans, because each takes some nanoseconds.
SCANNED_PIXELS = 2**27
JPEG_STEPS = 2**32

# Pillow's own limits: above a bound of this project it need not look, and it may not be lower.
Image.MAX_IMAGE_PIXELS = IMAGE_PIXELS
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # large colour profiles
# What is wrong with a file is told in an InputError, or does not matter.
warnings.filterwarnings("ignore", module=r"PIL\.")
cv2.setLogLevel(0)


def read_image(path: str | Path) -> np.ndarray:
    """Any image file as (H, W, 3) uint8 RGB, as its pixels are stored.

    An EXIF rotation is not applied, since label maps have none. Grey becomes RGB, alpha is dropped,
    of 16 bits the upper 8 are kept.

    Raises:
        InputError: the file is missing, damaged, cut short, too large or not an image.
    """
    data = read_bytes(path, IMAGE_BYTES)
    size = _size(path, data)
    try:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except Exception as error:  # a decoder trips over a damaged file wherever it may
        raise _unusable(path, data) from error
    if image is None or image.shape != (*size, 3):
        raise _unusable(path, data)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_label(path: str | Path) -> np.ndarray:
    """A one-channel label map as (H, W) uint8. Of a palette image, the indices.

    Raises:
        InputError: the file is missing, damaged, cut short or too large, has several channels, or
            values that do not fit in 8 bits.
    """
    data = read_bytes(path, IMAGE_BYTES)
    # Pillow, because OpenCV expands a palette into colours.
    with _opened(path, data) as file:
        if len(file.getbands()) != 1 or file.mode == "F":
            raise InputError(
                f"{path}: the label is an image of mode {file.mode}; expected one channel of whole "
                "numbers, the class index of each pixel and not its colour"
            )
        size = file.height, file.width
        try:
            values = np.asarray(file)
        except Exception as error:  # as above
            raise _unusable(path, data) from error
    if values.shape != size:
        raise _unusable(path, data)
    if values.min() < 0 or values.max() > 255:
        raise InputError(
            f"{path}: label values from {values.min()} to {values.max()}; expected 0 to 255"
        )
    return values.astype(np.uint8)


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image as its header has them; it is not decoded.

    Raises:
        InputError: the file is missing, too large or not an image.
    """
    return _size(path, read_bytes(path, IMAGE_BYTES))


def _size(path: str | Path, data: bytes) -> tuple[int, int]:
    with _opened(path, data) as file:
        return file.height, file.width


def _opened(path: str | Path, data: bytes) -> Image.Image:
    """The image in `data`, of which Pillow has read the header.

    Raises:
        InputError: it has none of the FORMATS, too many pixels, or is a JPEG file cut short.
    """
    is_jpeg = data.startswith(b"\xff\xd8")
    if is_jpeg:
        # Pillow looks for dots per inch in there, and would follow each of its pointers.
        data = data.replace(b"Exif\0", b"none\0")
    try:
        file = Image.open(_BoundedFile(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(path, IMAGE_PIXELS) from error
    except Exception as error:
        raise _unusable(path, data) from error
    pixels = file.width * file.height
    scans = _jpeg_scans(data) if is_jpeg else 1
    most = min(IMAGE_PIXELS, SCANNED_PIXELS) if scans > 1 else IMAGE_PIXELS
    if pixels > most:
        raise _too_large(path, most)
    if not 1 <= scans <= JPEG_STEPS // pixels:
        raise _unusable(path, data)
    return file


class _BoundedFile(io.BytesIO):
    """A file in memory that can be read some times over, in some pieces, but not without end.

    All tags of a TIFF directory may point at the same bytes: half a megabyte would fill a machine.
    """

    def __init__(self, data: bytes):
        super().__init__(data)
        self.left = 2**28 + 2 * len(data)

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.left -= max(len(data), 1024)
        if self.left < 0:
            raise ValueError("the file refers to its own bytes over and over")
        return data


def _too_large(path: str | Path, most: int) -> InputError:
    return InputError(
        f"{path} has more pixels than the {most:,} up to which such images are read; "
        "cut or scale it"
    )


def _unusable(path: str | Path, data: bytes) -> InputError:
    kinds = (kind for start, kind in OTHER_FILES.items() if data.startswith(start))
    if kind := next(kinds, "HEIF or AVIF" if data[4:8] == b"ftyp" else None):
        return InputError(
            f"{path} holds {kind}: expected an image, {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; "
            "convert it or take it out"
        )
    return InputError(
        f"{path}: damaged, cut short or not an image ({len(data)} bytes); "
        "replace the file or take it out"
    )


def _jpeg_scans(data: bytes) -> int:
    """How many scans a JPEG file has; 0 if it ends before its end marker, which OpenCV would fill
    up with grey."""
    # Skip the header segments (marker, 2 bytes of length): an EXIF thumbnail is a JPEG of its own.
    position = 2
    while position < len(data) and (marker := data[position : position + 2]) != b"\xff\xda":
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if marker == b"\xff\xff" else 2 + length  # 0xFF may fill up before a marker
    is_whole = data.find(b"\xff\xd9", position) >= 0
    return data.count(b"\xff\xda", position) if is_whole else 0
