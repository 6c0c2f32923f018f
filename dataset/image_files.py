"""Image files, from anybody: the one place that opens and decodes them.

Whatever a file is called, its content decides: only the FORMATS are opened, so that no decoder runs
that starts another program or that nobody needs. The size in the header is checked before anything
is decoded, what came out is compared with the header, and a file that cannot be used is told in one
line.
"""

import io
import math
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from projects.SegFormer.dataset import remarks, tiff_files
from projects.SegFormer.dataset.image_headers import (
    END_OF_IMAGE,
    GREY,
    JPEG_START,
    PNG_START,
    Png,
    read_jpeg,
    read_png,
)
from projects.SegFormer.modeling.bounds import (
    IMAGE_BANDS,
    IMAGE_BYTES,
    IMAGE_PIXELS_SETTING,
    image_pixels,
)
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy")
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # of IMAGE_SUFFIXES, as Pillow calls them
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NUMPY = b"\x93NUMPY"

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
    NUMPY: "NumPy",
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
# JPEG files of several scans (progressive ones have 10) may have half as many pixels, because all
# coefficients are kept till the last scan, and so many pixels times scans, because each takes some
# nanoseconds.
JPEG_STEPS = 2**32

# Bits of the values of which the upper 8 are read: less than so much is nearly black.
TWELVE_BITS = 2**12
# Colours as OpenCV gives them, by Pillow's mode. Inks and the like are converted by Pillow.
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L")
PLAIN_MODES = (*GREY_MODES, "P", "PA", "RGB", "RGBA", "RGBX")
NUMPY_HEADER = 10_000  # bytes
UNREADABLE_MODES = {"F": "floating-point", "I": "32-bit", "I;16S": "signed"}

# A bound of this project is checked first: above it Pillow need not look.
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # large colour profiles
# What is wrong with a file is told in an InputError, or does not matter.
warnings.filterwarnings("ignore", module=r"PIL\.")
cv2.setLogLevel(0)


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """Any image file as (H, W, channels) uint8, the way up that every viewer shows it.

    That is turned as its EXIF orientation says. Colours are in RGB order. Of a .npy file, uint8 or
    uint16 (H, W) or (H, W, bands), the last axis are the bands. For 3 channels grey becomes RGB.
    Alpha is a band like others where `channels` counts it; else it is dropped, with a warning if it
    is not opaque. Of 16 bits the upper 8 are kept.

    Raises:
        InputError: the file is missing, damaged, cut short, too large or not an image; its bands
            are not `channels`, or their numbers are not whole ones of 8 or 16 bits; or it has 16
            bits and all values are below 4096.
    """
    return turn(*read_stored(path, channels))


def read_stored(path: str | Path, channels: int = 3) -> tuple[np.ndarray, int]:
    """An image as `read_image` gives it but as its pixels are stored, and its EXIF orientation.

    Raises:
        InputError: see `read_image`.
    """
    data = read_bytes(path, IMAGE_BYTES)
    if data.startswith(NUMPY):
        return _in_channels(path, _npy(path, data), False, channels), 1
    file = _opened(path, data)
    try:
        bands, has_alpha = _bands(path, file)
    except InputError:
        raise
    except Exception as error:  # a decoder trips over a damaged file wherever it may
        raise _unusable(path, data) from error
    if bands.shape[:2] != file.size:
        raise _unusable(path, data)
    return _in_channels(path, bands, has_alpha, channels), file.orientation


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image or label, (H, W, ...), turned as its EXIF orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def read_label(path: str | Path) -> np.ndarray:
    """A one-channel label map as (H, W) uint8, turned as `read_image` turns an image.

    The values are those that the file stores, of whatever depth: of a palette image the indices, of
    one with 1, 2 or 4 bits the numbers 0 to 1, 3 or 15. Viewers, and Pillow's and OpenCV's grey,
    show 1 bit as 0 and 255; a label that was made of those by saving it with 1 bit holds 0 and 1.

    Raises:
        InputError: the file is missing, damaged, cut short or too large, has several channels, or
            values that do not fit in 8 bits.
    """
    values = read_values(path)
    if values.dtype != np.uint8 and (values.min() < 0 or values.max() > 255):
        raise InputError(
            f"{path}: label values from {values.min()} to {values.max()}; expected 0 to 255"
        )
    return values.astype(np.uint8, copy=False)


def read_values(path: str | Path) -> np.ndarray:
    """What `read_label` gives, of any type of whole numbers: 16 bits hold values above 255.

    Raises:
        InputError: see `read_label`.
    """
    return decode_values(path, read_bytes(path, IMAGE_BYTES))


def decode_values(path: str | Path, data: bytes) -> np.ndarray:
    """As `read_values`, of a picture that stands in another file, `path`."""
    file = _opened(path, data)
    if file.bands != 1 or file.mode == "F":
        raise InputError(
            f"{path}: the label is an image of mode {file.mode}; expected one channel of whole "
            "numbers, the class index of each pixel and not its colour"
        )
    try:
        values = _stored_values(path, file)
    except InputError:
        raise
    except Exception as error:  # as above
        raise _unusable(path, data) from error
    if values.shape != file.size:
        raise _unusable(path, data)
    return turn(values, file.orientation)


def read_palette(path: str | Path) -> list[tuple[int, int, int]]:
    """RGB of each index of a palette image, of others none. Raises InputError: see `image_size`."""
    picture = _opened(path, read_bytes(path, IMAGE_BYTES)).picture
    colours = picture.getpalette("RGB") if picture and picture.mode == "P" else None
    return list(zip(*[iter(colours or ())] * 3))


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width of what `read_image` gives, from the header; the image is not decoded.

    Raises:
        InputError: the file is missing, too large or not an image.
    """
    (height, width), orientation = stored_size(path)
    return (width, height) if orientation > 4 else (height, width)


def stored_size(path: str | Path) -> tuple[tuple[int, int], int]:
    """Height and width of what `read_stored` gives, and the EXIF orientation.

    Raises:
        InputError: see `image_size`.
    """
    data = read_bytes(path, IMAGE_BYTES)
    if data.startswith(NUMPY):
        return _npy(path, data).shape[:2], 1
    file = _opened(path, data)
    return file.size, file.orientation


def channel_count(path: str | Path) -> int:
    """How many channels a file stores, from its header. Raises InputError: see `image_size`."""
    data = read_bytes(path, IMAGE_BYTES)
    if data.startswith(NUMPY):
        return 1 if _npy(path, data).ndim == 2 else _npy(path, data).shape[2]
    return _opened(path, data).bands


def as_rgb(image: np.ndarray) -> np.ndarray:
    """An image of any channels, (H, W, C), as people can look at it: its first three, or its first
    as grey: (H, W, 3)."""
    return image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)


class _File(NamedTuple):
    """An image file of which the header is read: height and width as stored, Pillow's mode, number
    of bands and bytes of a value."""

    data: bytes
    size: tuple[int, int]
    orientation: int
    mode: str
    bands: int
    picture: Image.Image | None = None
    depth: int = 1
    png: Png | None = None


def _opened(path: str | Path, data: bytes) -> _File:
    """Raises InputError: `data` has none of the FORMATS, too many pixels, or is cut short."""
    try:
        is_tiff = data.startswith(TIFF_STARTS)
        file = _opened_tiff(data) if is_tiff else _opened_other(path, data)
        jpeg = read_jpeg(data) if data.startswith(JPEG_START) else None
        pixels, most = file.size[0] * file.size[1], image_pixels()
        if jpeg and jpeg.scans > 1:
            most //= 2
        if not pixels:
            raise ValueError("no pixels")
        most = min(most, most * IMAGE_BANDS // (file.bands * file.depth))
        if pixels > most:
            raise _too_large(path, most)
        if jpeg:
            if not 1 <= jpeg.scans <= JPEG_STEPS // pixels:
                raise ValueError("no scan, or scans over and over")
            file = file._replace(orientation=jpeg.orientation)
        if jpeg and not jpeg.finished:
            data = data.rstrip(b"\xff")  # half of the marker
            if not jpeg.complete or not _is_decoded_whole(data):
                raise ValueError("cut short")
            remarks.remark(remarks.UNFINISHED, path)
            data = data + END_OF_IMAGE
            file = file._replace(data=data, picture=_pillow(data))
    except InputError:
        raise
    except Exception as error:
        raise _unusable(path, data) from error
    return file


def _opened_tiff(data: bytes) -> _File:
    pages = tiff_files.band_pages(data)
    tag = pages[0].get
    size = tag(tiff_files.HEIGHT, 0), tag(tiff_files.WIDTH, 0)
    bands = tag(tiff_files.SAMPLES, 1) * len(pages)
    turned = tag(tiff_files.ORIENTATION, 1)
    if turned != 1:
        data = tiff_files.as_stored(pages[0])
    try:
        picture = _pillow(data)
        mode = picture.mode
    except Exception:  # of bands that Pillow does not know
        picture, mode = None, f"TIFF with {bands} bands"
    depth = -(-tag(tiff_files.BITS, 1) // 8)
    return _File(data, size, turned if 1 <= turned <= 8 else 1, mode, bands, picture, depth)


def _opened_other(path: str | Path, data: bytes) -> _File:
    png, turned = None, 1
    if data.startswith(PNG_START):
        png = read_png(data)
        data, turned = png.image(), png.orientation
        if png.has_long_text:
            remarks.remark(remarks.LONG_TEXT, path)
        if not png.finished:
            remarks.remark(remarks.UNFINISHED, path)
    picture = _pillow(data)
    if picture.format == "WEBP":
        exif = picture.info.get("exif", b"")
        turned = tiff_files.orientation(exif.removeprefix(b"Exif\0\0"))
    size = picture.height, picture.width
    depth = 2 if png and png.depth == 16 else 1
    return _File(data, size, turned, picture.mode, len(picture.getbands()), picture, depth, png)


def _pillow(data: bytes) -> Image.Image:
    if data.startswith(JPEG_START):
        # Pillow looks for dots per inch in there, and would follow each of its pointers.
        data = data.replace(b"Exif\0", b"none\0")
    return Image.open(_BoundedFile(data), formats=FORMATS)


def _is_decoded_whole(data: bytes) -> bool:
    """Whether a JPEG file holds all pixels but no end marker: then what follows changes none.

    Bits that are missing are filled up by the decoder, with whatever comes, after one of the eight
    restart markers where it waits for one.
    """
    restarts = b"".join(bytes((0xFF, 0xD0 + i)) + b"\x55" * 64 for i in range(8))
    fills = (b"", b"\x55" * 64, b"\xaa" * 64, restarts)
    first, *others = (np.asarray(_pillow(data + fill + END_OF_IMAGE)) for fill in fills)
    return all(np.array_equal(first, other) for other in others)


def _opencv(data: bytes) -> np.ndarray:
    """An image as OpenCV decodes it: uint8 or uint16 (H, W, bands), colours as BGR."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise ValueError("damaged")
    return image.reshape(*image.shape[:2], -1)


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


def _bands(path: str | Path, file: _File) -> tuple[np.ndarray, bool]:
    """The bands of an image as they are stored, uint8 or uint16 (H, W, bands), colours as RGB; and
    whether the last is alpha."""
    if file.data.startswith(TIFF_STARTS):
        found = tiff_files.read_bands(path, file.data)
        if found is not None:
            return found
    if file.mode in UNREADABLE_MODES:
        raise tiff_files.unreadable(path, UNREADABLE_MODES[file.mode])
    picture = file.picture
    has_alpha = picture.has_transparency_data
    count = (1 if file.mode in GREY_MODES else 3) + has_alpha
    is_single = not getattr(picture, "is_animated", False)  # OpenCV reads no moving WebP
    if file.mode in PLAIN_MODES and picture.format != "TIFF" and is_single:
        image = _opencv(file.data)
        found = image.shape[2]
        if found == count and count < 3:
            return image, has_alpha
        if found >= 3 and count == 1:  # in a palette of grey
            return image[..., :1], has_alpha
        if found == 4 and count == 2:
            return image[..., 2:], has_alpha
        if found == 4 and count == 4:
            return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA), has_alpha
        if found >= 3 and count == 3:  # the fourth is what fills up 32 bits in a BMP
            return cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB), has_alpha
    image = np.asarray(picture.convert(("L", "LA", "RGB", "RGBA")[count - 1]))
    return image.reshape(*image.shape[:2], -1), has_alpha


def _in_channels(path: str | Path, bands: np.ndarray, has_alpha: bool, channels: int) -> np.ndarray:
    """Bands as `read_image` gives them. Raises InputError: there are others than `channels`."""
    if has_alpha and bands.shape[2] != channels:
        alpha = bands[..., -1]
        if alpha.min() < np.iinfo(alpha.dtype).max:
            remarks.remark(remarks.ALPHA, path)
        bands, has_alpha = bands[..., :-1], False
    count = bands.shape[2]
    if count != channels and (count, channels) != (1, 3):
        raise InputError(
            f"{path} has {count} band{'s' * (count != 1)}, cfg.num_channels={channels}: set it to "
            f"{count} and give data.mean and data.std a value a band, or convert the file"
        )
    if bands.dtype == np.uint16:
        highest = (bands[..., :-1] if has_alpha else bands).max()
        if 0 < highest < TWELVE_BITS:
            raise InputError(
                f"{path} has 16 bits and values up to {highest}: of 16 bits the upper 8 are read, "
                "so it would be nearly black; scale it to 0 to 65535, or to 8 bits"
            )
        bands = (bands >> 8).astype(np.uint8)
    if count != channels:
        bands = cv2.cvtColor(bands, cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(bands)


def _stored_values(path: str | Path, file: _File) -> np.ndarray:
    """The values of a label, (H, W), of any type of whole numbers."""
    if file.png:
        depth = file.png.depth
        if depth == 1 and file.png.colour_type == GREY:
            remarks.remark(remarks.ONE_BIT, path)
        # OpenCV checks all that there is to check, but expands palettes and scales to 0 to 255.
        values = _opencv(file.png.indices())[..., 0]
        return values // (255 // (2**depth - 1)) if depth < 8 else values
    if file.data.startswith(TIFF_STARTS):
        return tiff_files.read_values(path, file.data, file.picture)
    return np.asarray(file.picture)


def _npy(path: str | Path, data: bytes) -> np.ndarray:
    """The array in a .npy file as (H, W, bands), uint8 or uint16. It is a header and bytes."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0) or int.from_bytes(data[8:10], "little") > NUMPY_HEADER:
            raise ValueError("another header than np.save writes for a plain array")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:
        raise _damaged(path, data) from error
    native = dtype.newbyteorder("=")
    if native not in (np.uint8, np.uint16) or len(shape) not in (2, 3) or 0 in shape:
        raise InputError(
            f"{path} holds an array of {dtype}, {shape}: expected uint8 or uint16, (height, width) "
            "or (height, width, bands)"
        )
    if shape[0] * shape[1] > image_pixels():
        raise _too_large(path, image_pixels())
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise _damaged(path, data)
    array = np.frombuffer(data, dtype, offset=file.tell())
    array = array.reshape(shape, order="F" if is_fortran else "C")
    return array.astype(native, copy=False).reshape(*shape[:2], -1)


def _too_large(path: str | Path, most: int) -> InputError:
    return InputError(
        f"{path} has more pixels than the {most:,} up to which such images are read; "
        f"cut or scale it, or set {IMAGE_PIXELS_SETTING}"
    )


def _unusable(path: str | Path, data: bytes) -> InputError:
    kinds = (kind for start, kind in OTHER_FILES.items() if data.startswith(start))
    if kind := next(kinds, "HEIF or AVIF, or a video" if data[4:8] == b"ftyp" else None):
        return InputError(
            f"{path} holds {kind}: expected an image, {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; "
            "convert it or take it out"
        )
    return _damaged(path, data)


def _damaged(path: str | Path, data: bytes) -> InputError:
    return InputError(
        f"{path}: damaged, cut short or not an image ({len(data)} bytes); "
        "replace the file or take it out"
    )
