"""What the bytes of PNG and JPEG files say of themselves, before they are decoded.

All raise ValueError for what is damaged or cut short.
"""

import zlib
from typing import NamedTuple

from projects.SegFormer.dataset.tiff_files import orientation

PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
LONG_TEXT = 2**20  # bytes
GREY = 0  # colour type of PNG
END = b"\0\0\0\0IEND\xaeB`\x82"

SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
COEFFICIENTS = (1 << 64) - 1  # a bit for each of the 64 of a block


class Png(NamedTuple):
    """A PNG file: its pixels' chunks, and what else it says.

    Chunks are (name, whole chunk). Only what the pixels need is there: text, colour profiles and
    animations are not, so no decoder can trip over them.
    """

    chunks: list[tuple[bytes, bytes]]
    depth: int
    colour_type: int
    orientation: int
    finished: bool
    has_long_text: bool

    def image(self) -> bytes:
        """The file as it is decoded."""
        return PNG_START + b"".join(chunk for _, chunk in self.chunks) + END

    def indices(self) -> bytes:
        """The same as a grey image: of a palette image the indices."""
        header = bytearray(self.chunks[0][1])
        header[17] = GREY
        header[21:] = zlib.crc32(header[4:21]).to_bytes(4, "big")
        data = [chunk for name, chunk in self.chunks if name == b"IDAT"]
        return b"".join([PNG_START, header, *data, END])


def read_png(data: bytes) -> Png:
    """The chunks of a PNG file. Pillow does not look at the checksums of the pixels' chunks."""
    chunks, turned, text, finished = [], 1, 0, False
    position, view = len(PNG_START), memoryview(data)
    while position + 12 <= len(data):
        name = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(view[position : position + 4], "big")
        if name == b"IEND":
            finished = True
            break
        if not name[0] & 0x20 or name == b"tRNS":  # what a decoder may not pass over
            checksum = zlib.crc32(view[position + 4 : end - 4]).to_bytes(4, "big")
            if end > len(data) or checksum != view[end - 4 : end]:
                raise ValueError(f"the checksum of a chunk {name!r} is wrong")
            chunks.append((name, view[position:end]))
        elif name == b"eXIf":
            turned = orientation(data[position + 8 : end - 4])
        elif name in TEXTS:
            text += end - position
        position = end
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 25:
        raise ValueError("no header")
    header = chunks[0][1]
    return Png(chunks, header[16], header[17], turned, finished, text > LONG_TEXT)


class Jpeg(NamedTuple):
    """Of a JPEG file: the number of its scans, orientation, and whether its end marker is there; if
    it is not, whether all coefficients have been in a scan."""

    scans: int
    orientation: int
    finished: bool
    complete: bool


def read_jpeg(data: bytes) -> Jpeg:
    """The header segments and scans of a JPEG file."""
    # Skip the header segments (marker, 2 bytes of length): an EXIF thumbnail is a JPEG of its own.
    position, turned, components = 2, None, None
    while position < len(data) and (marker := data[position : position + 2]) != SCAN:
        if marker == b"\xff\xff":  # 0xFF may fill up before a marker
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == b"\xff\xe1" and turned is None:
            segment = data[position + 4 : position + 2 + length]
            turned = orientation(segment[6:]) if segment.startswith(b"Exif\0\0") else None
        elif marker[1:] and marker[1] in FRAMES:
            count = data[position + 9 : position + 10]
            components = data[position + 10 : position + 10 + 3 * (count or b"\0")[0] : 3]
        position += 2 + length
    finished = data.find(END_OF_IMAGE, position) >= 0
    scans = data.count(SCAN, position)
    complete = finished or _has_all_coefficients(data, position, components or b"")
    return Jpeg(scans, turned or 1, finished, complete)


def _has_all_coefficients(data: bytes, position: int, components: bytes) -> bool:
    """Whether the scans hold all coefficients of all components to the last bit.

    A progressive file has them in several scans: one that ends after some of them looks whole.
    """
    found = dict.fromkeys(components, 0)
    while (position := data.find(SCAN, position)) >= 0:
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        header = data[position + 4 : position + 2 + length]
        position += 2
        if len(header) < 6 or len(header) != 4 + 2 * header[0] or header[-1] & 15:
            continue
        first, last = header[-3], min(header[-2], 63)
        bits = sum(1 << k for k in range(first, last + 1))
        for component in header[1:-3:2]:
            if component in found:
                found[component] |= bits
    return bool(found) and all(bits == COEFFICIENTS for bits in found.values())
