"""TIFF directories: the tags of EXIF and of TIFF files, and bands of any number.

OpenCV reads up to four bands, some of them as grey, and Pillow those that it has a mode for. So a
file of n bands is given to Pillow as a grey one whose rows are n times as long: that is the same to
every compression that takes bytes as they come.
"""

import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from projects.SegFormer.modeling.errors import InputError

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
ORIENTATION, SAMPLES, ROWS_PER_STRIP, PLANAR, PREDICTOR = 274, 277, 278, 284, 317
STRIPS, TILES = (273, 279), (324, 325)  # offsets, lengths
TILE_WIDTH, TILE_HEIGHT, EXTRA_SAMPLES, SAMPLE_FORMAT = 322, 323, 338, 339

TYPES = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}  # whole numbers, as NumPy calls them
FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
WHITE_IS_ZERO, GREY, RGB, PALETTE = range(4)  # photometric interpretations
ALPHA = (1, 2)  # extra samples: associated, that is, multiplied with the colours, or not
# None, LZW, deflate (two numbers), PackBits, LZMA, Zstandard.
COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)
UNPREDICTED = (1, 32773)  # compressions that know no predictor
HORIZONTAL = 2  # predictor: differences to the pixel on the left
MOST_PAGES, MOST_TAGS = 1024, 256


class Directory:
    """The tags of one image. Raises ValueError if it does not lie in the data.

    Args:
        data: a TIFF file, classic or BigTIFF, or what follows "Exif\\0\\0".
        start: where the directory is; where the header says, for the first.

    Attributes:
        next: where the next directory is, 0 after the last.
        places: type, count and position of the values, by tag.
    """

    def __init__(self, data: bytes, start: int | None = None):
        self.data = data
        self.order = {b"II": "<", b"MM": ">"}.get(data[:2])
        if self.order is None:
            raise ValueError("no TIFF header")
        self.big = self._number("H", 2) == 43
        word, count, size = ("Q", "Q", 20) if self.big else ("I", "H", 12)
        if start is None:
            start = self._number(word, 8 if self.big else 4)
        entries = self._number(count, start)
        first = start + struct.calcsize(count)
        if entries > MOST_TAGS:
            raise ValueError("too many tags")
        self.next = self._number(word, first + size * entries, 0)
        self.places = {}
        for place in range(first, first + size * entries, size):
            tag, kind = self._number("H", place), self._number("H", place + 2)
            number = self._number(word, place + 4)
            if kind in TYPES:
                values = place + 4 + struct.calcsize(word)
                length = int(TYPES[kind][1]) * number
                if length > struct.calcsize(word):
                    values = self._number(word, values)
                self.places.setdefault(tag, (TYPES[kind], number, values))

    def _number(self, kind: str, place: int, default: int | None = None) -> int:
        try:
            return struct.unpack_from(self.order + kind, self.data, place)[0]
        except struct.error:
            if default is None:
                raise ValueError("the directory is cut short") from None
            return default

    def values(self, tag: int) -> np.ndarray:
        """The values of a tag of whole numbers; none if it is not there."""
        kind, count, place = self.places.get(tag, ("u1", 0, 0))
        return np.frombuffer(self.data, self.order + kind, count, place) if count else np.empty(0)

    def get(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return int(values[0]) if len(values := self.values(tag)) else default


def orientation(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1, as stored, where there is none."""
    try:
        value = Directory(exif).get(ORIENTATION, 1)
    except ValueError:
        return 1
    return value if 1 <= value <= 8 else 1


def pages(data: bytes) -> Iterator[Directory]:
    """The directories of a file, the first of its image. Raises ValueError."""
    place = None
    for _ in range(MOST_PAGES):
        directory = Directory(data, place)
        yield directory
        place = directory.next
        if not place:
            return
    raise ValueError("pages without end")


def band_pages(data: bytes) -> list[Directory]:
    """The pages whose bands make up the image: the first, and if it has one band, those that are
    like it: some programs write an array of bands so."""
    found = pages(data)
    first = next(found)
    if first.get(SAMPLES, 1) != 1:
        return [first]
    return [first, *(page for page in found if _form(page) == _form(first))]


def _form(page: Directory) -> tuple:
    reduced = page.get(SUBFILE, 0) & 5  # a smaller copy, or a mask
    return reduced, *(page.get(tag, 1) for tag in (WIDTH, HEIGHT, BITS, SAMPLES, PHOTOMETRIC))


def read_bands(path: object, data: bytes) -> tuple[np.ndarray, bool] | None:
    """The bands of an image, uint8 or uint16 (H, W, bands), and whether the last is alpha.

    None for an image that is none of bands of 8 or 16 bits: Pillow knows palettes, inks and the
    like. The size must have been checked. Raises InputError for numbers that are not unsigned or
    of more bits, and ValueError or what Pillow raises for damage.
    """
    bands = _stored_bands(path, data, (WHITE_IS_ZERO, GREY, RGB))
    if bands is None:
        return None
    page = Directory(data)
    extra = page.values(EXTRA_SAMPLES)
    has_alpha = bands.shape[2] % 2 == 0 and len(extra) == 1 and int(extra[0]) in ALPHA
    return ~bands if page.get(PHOTOMETRIC, GREY) == WHITE_IS_ZERO else bands, has_alpha


def read_values(path: object, data: bytes, picture: Image.Image | None) -> np.ndarray:
    """The values of a label, (H, W): as they are stored, whatever they look like.

    Args:
        picture: the file as Pillow opens it. Raises as `read_bands`.
    """
    bands = _stored_bands(path, data, (WHITE_IS_ZERO, GREY, PALETTE))
    if bands is not None:
        return bands[..., 0]
    page, values = Directory(data), np.asarray(picture)
    bits = page.get(BITS, 1)
    if picture.mode != "P" and page.get(PHOTOMETRIC, GREY) == WHITE_IS_ZERO:
        values = ~values
    return values // (255 // (2**bits - 1)) if picture.mode == "L" and bits < 8 else values


def as_stored(page: Directory) -> bytes:
    """The file with no orientation in it, which Pillow would turn it by."""
    kind, _, place = page.places[ORIENTATION]
    value = np.array(1, page.order + kind).tobytes()
    return page.data[:place] + value + page.data[place + len(value) :]


def unreadable(path: object, kind: str) -> InputError:
    """Of numbers of a `kind` that is no image's."""
    return InputError(
        f"{path} holds {kind} numbers: expected whole numbers of 8 or 16 bits without a sign; "
        "scale them to 0 to 255 and save them with 8 bits"
    )


def _stored_bands(path: object, data: bytes, photometric: tuple[int, ...]) -> np.ndarray | None:
    """(H, W, bands) as stored; None for what only Pillow reads."""
    chosen = band_pages(data)
    page = chosen[0]
    bits = {int(value) for value in page.values(BITS)}
    kinds = {int(value) for value in page.values(SAMPLE_FORMAT)} & FORMATS.keys()
    if kinds:
        raise unreadable(path, FORMATS[min(kinds)])
    if odd := bits - {1, 2, 4, 8, 16}:
        raise unreadable(path, f"{max(odd)}-bit")
    if (
        page.get(PHOTOMETRIC, GREY) not in photometric
        or bits not in ({8}, {16})
        or page.get(COMPRESSION, 1) not in COMPRESSIONS
    ):
        return None
    parts = [part for page in chosen for part in _parts(page)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def _parts(page: Directory) -> Iterator[np.ndarray]:
    """The planes of a page, (H, W, 1) each, or its one plane of all bands, (H, W, bands)."""
    samples = page.get(SAMPLES, 1)
    planes = samples if page.get(PLANAR, 1) == 2 else 1
    bands = samples // planes
    is_tiled = TILES[0] in page.places
    offsets, lengths = (page.values(tag) for tag in (TILES if is_tiled else STRIPS))
    if len(offsets) != len(lengths) or not len(offsets) or len(offsets) % planes:
        raise ValueError("strips or tiles are missing")
    height, width = page.get(HEIGHT, 0), page.get(WIDTH, 0)
    block = page.get(TILE_WIDTH, 0) if is_tiled else width
    if block < 1:
        raise ValueError("tiles of no width")
    shape = (
        {TILE_WIDTH: [block * bands], TILE_HEIGHT: page.values(TILE_HEIGHT)}
        if is_tiled
        else {ROWS_PER_STRIP: [min(page.get(ROWS_PER_STRIP, height), height)]}
    )
    compression = page.get(COMPRESSION, 1)
    is_predicted = page.get(PREDICTOR, 1) == HORIZONTAL and compression not in UNPREDICTED
    count = len(offsets) // planes
    for start in range(0, len(offsets), count):
        tags = {
            WIDTH: [width * bands],
            HEIGHT: [height],
            BITS: page.values(BITS)[:1],
            COMPRESSION: [compression],
            PHOTOMETRIC: [GREY],
            SAMPLES: [1],
            **shape,
            (TILES if is_tiled else STRIPS)[0]: offsets[start : start + count],
            (TILES if is_tiled else STRIPS)[1]: lengths[start : start + count],
        }
        with Image.open(io.BytesIO(_rewritten(page, tags)), formats=("TIFF",)) as file:
            part = np.asarray(file)
        part = part.astype(part.dtype.newbyteorder("="), copy=False)
        if part.shape != (height, width * bands):
            raise ValueError("another size than the header's")
        part = part.reshape(height, width, bands)
        if is_predicted:
            blocks = [part[:, left : left + block] for left in range(0, width, block)]
            part = np.concatenate([np.cumsum(it, axis=1, dtype=it.dtype) for it in blocks], axis=1)
        yield part


def _rewritten(page: Directory, tags: dict) -> bytes:
    """The file with a directory of these tags, at its end, in place of its own."""
    word, count, size = ("Q", "Q", 20) if page.big else ("I", "H", 12)
    kind, length = (16, 8) if page.big else (4, 4)
    start = len(page.data)
    end = start + struct.calcsize("=" + count) + size * len(tags) + length
    entries, outside = b"", b""
    for tag, numbers in sorted(tags.items()):
        values = np.asarray(numbers, page.order + TYPES[kind]).tobytes()
        if len(values) > length:
            outside += values
            values = struct.pack(page.order + word, end + len(outside) - len(values))
        entries += struct.pack(page.order + "HH" + word, tag, kind, len(numbers)) + values
    header = page.data[: 8 if page.big else 4] + struct.pack(page.order + word, start)
    directory = struct.pack(page.order + count, len(tags)) + entries + bytes(length) + outside
    return header + page.data[len(header) :] + directory
