"""What a file holds against what comes out: damage, depths, colours, orientation, end markers."""

import io
import json
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps

from conftest import ROOT
from data_files import noise, raises_line, save, tiff
from projects.SegFormer.dataset import remarks
from projects.SegFormer.dataset.image_files import image_size, read_image, read_label, turn
from projects.SegFormer.dataset.remarks import listening
from projects.SegFormer.dataset.segmentation import SegmentationDataset
from projects.SegFormer.modeling.bounds import MOST_IMAGE_PIXELS, image_pixels

DAMAGED = "damaged, cut short or not an image"
LABEL = np.zeros((60, 80), np.uint8)
LABEL[20:40, 30:60], LABEL[45:] = 2, 1


def encoded(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth, colour, pixels: bytes, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join((*chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + header + body


def told(read, path) -> list[str]:
    """What is remarked of a file that is read."""
    with listening() as heard:
        read(path)
    assert {file for _, file in heard.remarks} <= {str(path)}
    return [remark for remark, _ in heard.remarks]


# ---- Damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 6])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_one_flipped_bit_is_seen(tmp_path, level, mode):
    """Wherever it is in what makes the pixels; Pillow alone reads some as other classes."""
    image = Image.fromarray(LABEL)
    if mode == "P":
        image = Image.fromarray(LABEL, "P")
        image.putpalette(range(30))
    data = encoded(image, compress_level=level)
    path = tmp_path / "a.png"
    start = data.index(b"IDAT") + 4
    length = struct.unpack(">I", data[start - 8 : start - 4])[0]
    wrong = 0
    for bit in range(0, 8 * (length + 4), max(1, length // 40)):
        damaged = bytearray(data)
        damaged[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for read in (read_label, read_image):
            with raises_line(f"a.png: {DAMAGED}"):
                read(path)
        try:
            wrong += not np.array_equal(Image.open(path), LABEL)
        except (OSError, SyntaxError):
            continue
    assert wrong or level == 0  # or nothing would have been shown


def test_checksum_of_the_packed_data_is_seen(tmp_path):
    """Of a file whose chunks are right, as some program wrote them."""
    raw = zlib.compress(b"".join(b"\0" + row.tobytes() for row in LABEL))
    for pixels in (raw[:-4] + bytes(4), raw[:-4], raw[: len(raw) // 2]):
        (tmp_path / "a.png").write_bytes(png(80, 60, 8, 0, pixels))
        for read in (read_label, read_image):
            with raises_line(f"a.png: {DAMAGED}"):
                read(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png(80, 60, 8, 0, raw))
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), LABEL)


# ---- Depths of labels ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "depth, colour", [*((depth, 0) for depth in (1, 2, 4, 8, 16)), (1, 3), (2, 3), (4, 3), (8, 3)]
)
def test_stored_values_of_a_label_count(tmp_path, depth, colour):
    """A label of few bits is its twin of eight, whatever viewers show."""
    values = np.random.default_rng(depth).integers(0, 2 ** min(depth, 8), (24, 40), np.uint8)
    if depth == 16:
        rows = values.astype(">u2").view(np.uint8).reshape(24, -1)
    else:
        bits = np.unpackbits(values[..., None], axis=2)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(24, -1), axis=1)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour else b""
    clear = chunk(b"tRNS", bytes(5)) if colour else b""
    path = tmp_path / "a.png"
    path.write_bytes(png(40, 24, depth, colour, pixels, palette, clear))
    np.testing.assert_array_equal(read_label(path), values)
    assert told(read_label, path) == ([remarks.ONE_BIT] if (depth, colour) == (1, 0) else [])


def test_black_and_white_of_one_bit(tmp_path):
    """As Pillow and OpenCV write it: 1 where viewers show white, as their 8-bit twin has 255."""
    mask = LABEL > 0
    Image.fromarray(mask).save(tmp_path / "pillow.png")
    cv2.imwrite(str(tmp_path / "opencv.png"), mask * np.uint8(255), [cv2.IMWRITE_PNG_BILEVEL, 1])
    save(mask * np.uint8(255), tmp_path / "twin.png")
    for name, expected in (("pillow", 1), ("opencv", 1), ("twin", 255)):
        np.testing.assert_array_equal(read_label(tmp_path / f"{name}.png"), mask * expected)
    white = read_image(tmp_path / "pillow.png")
    np.testing.assert_array_equal(white, read_image(tmp_path / "twin.png"))


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_labels_in_tiff(tmp_path, photometric, bits):
    values = np.random.default_rng(0).integers(0, 2 ** min(bits, 8), (24, 40, 1), np.uint8)
    if bits == 16:
        data = tiff(values.astype(np.uint16), photometric=photometric)
    elif bits == 8:
        data = tiff(values, photometric=photometric)
    else:
        rows = np.unpackbits(values, axis=2)[..., 8 - bits :].reshape(24, -1)
        packed = np.packbits(rows, axis=1)[..., None]
        data = tiff(packed, photometric=photometric, t256=(40,), t258=(bits,))
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), values[..., 0])


def test_palette_labels_in_bmp_and_tiff(tmp_path):
    image = Image.fromarray(LABEL, "P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
    for kind in ("BMP", "TIFF"):
        image.save(tmp_path / "a.png", kind)
        np.testing.assert_array_equal(read_label(tmp_path / "a.png"), LABEL)


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.int32])
def test_labels_of_other_numbers_are_told(tmp_path, dtype):
    values = np.where(LABEL == 2, -1, LABEL).astype(dtype)
    (tmp_path / "a.png").write_bytes(tiff(values[..., None]))
    with raises_line("a.png(: the label is an image of mode F| holds (signed|32-bit))"):
        read_label(tmp_path / "a.png")


# ---- Depths and colours of images ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "npy"])
def test_twelve_bits_in_sixteen_are_told(tmp_path, kind):
    path = tmp_path / "a.x"

    def write(array):
        np.save(path.open("wb"), array) if kind == "npy" else path.write_bytes(encoded(array, kind))

    values = np.arange(0, 4096, 3, dtype=np.uint16)[:1200].reshape(30, 40)
    write(values)
    for channels in (1, 3):
        with raises_line(f"a.x has 16 bits and values up to {values.max()}: .*scale it"):
            read_image(path, channels)
    write(values * 16)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], values * 16 >> 8)
    write(values * 0)
    assert not read_image(path).any()
    write(np.full((30, 40), 4096, np.uint16))
    assert (read_image(path) == 16).all()


def lab(image: Image.Image) -> Image.Image:
    profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    return ImageCms.profileToProfile(image, *profiles, outputMode="LAB")


def cmyk(image: Image.Image) -> Image.Image:
    return image.convert("CMYK")


@pytest.mark.parametrize("kind, convert", [("JPEG", cmyk), ("TIFF", cmyk), ("TIFF", lab)])
def test_inks_and_lab_are_colours(tmp_path, kind, convert):
    image = Image.fromarray(cv2.GaussianBlur(noise(40, 48), (0, 0), 3))
    path = tmp_path / "a.x"
    path.write_bytes(encoded(convert(image), kind))
    with Image.open(path) as file:
        np.testing.assert_array_equal(read_image(path), file.convert("RGB"))
    assert np.abs(read_image(path).astype(int) - np.asarray(image)).max() < 16
    with raises_line("a.x has 3 bands, cfg.num_channels=4"):
        read_image(path, 4)


def test_jpeg_in_tiff(tmp_path):
    image = Image.fromarray(cv2.GaussianBlur(noise(40, 48), (0, 0), 3))
    path = tmp_path / "a.tif"
    image.save(path, compression="jpeg")
    with Image.open(path) as file:
        np.testing.assert_array_equal(read_image(path), file.convert("RGB"))


# ---- Orientation --------------------------------------------------------------------------------

KINDS = ("JPEG", "PNG", "TIFF", "WEBP", "TIFF jpeg")


def turned_file(path, orientation, kind="PNG", image=None):
    exif = Image.Exif()
    exif[0x0112] = orientation
    kind, *compression = kind.split()
    options = {"compression": "jpeg"} if compression else {}
    if kind == "TIFF":
        options["tiffinfo"] = {0x0112: orientation}
    else:
        options["exif"] = exif
    if kind == "WEBP":
        options["lossless"] = True
    image = cv2.GaussianBlur(noise(24, 32), (0, 0), 2) if image is None else image
    path.write_bytes(encoded(image, kind, **options))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_viewers_show_them(tmp_path, kind, orientation):
    path = turned_file(tmp_path / "a.x", orientation, kind)
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2] == ((24, 32), (32, 24))[orientation > 4]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_tiff_of_all_modes_is_turned(tmp_path, mode):
    """Pillow turns some of them while it reads, and others not."""
    image = Image.fromarray(noise()).convert(mode)
    image.save(tmp_path / "a.tif", tiffinfo={0x0112: 6})
    expected = np.rot90(np.asarray(image.convert("RGB")), -1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
    if mode in "1LP":
        np.testing.assert_array_equal(
            read_label(tmp_path / "a.tif"), np.rot90(np.asarray(image), -1)
        )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_first_of_moving_pictures(tmp_path, kind):
    image = Image.fromarray(noise())
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = {"save_all": True, "append_images": [image.rotate(180)]}
    (tmp_path / "a.x").write_bytes(encoded(image, kind, **frames, **options))
    np.testing.assert_array_equal(read_image(tmp_path / "a.x"), noise())


def test_labels_are_turned_alike(tmp_path):
    for orientation in range(1, 9):
        path = turned_file(tmp_path / "a.png", orientation, image=LABEL)
        np.testing.assert_array_equal(read_label(path), turn(LABEL, orientation))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_do_not_exist(tmp_path, value):
    path = turned_file(tmp_path / "a.png", value)
    assert read_image(path).shape == (24, 32, 3)


def pair(tmp_path, orientation, label_shape):
    image = turned_file(tmp_path / "a.jpg", orientation, "JPEG")
    save(np.zeros(label_shape, np.uint8), tmp_path / "a.png")
    labels = [tmp_path / "a.png"]
    return SegmentationDataset([image], labels, ["a"], [(0, 0, 0)], []), image


@pytest.mark.parametrize(
    "orientation, label_shape, expected, remark",
    [
        (6, (32, 24), "turned", remarks.TURNED),
        (6, (24, 32), "stored", remarks.AS_STORED),
        (3, (24, 32), "turned", remarks.TURNED),
        (1, (24, 32), "stored", None),
    ],
)
def test_the_label_tells_what_it_was_drawn_on(tmp_path, orientation, label_shape, expected, remark):
    dataset, path = pair(tmp_path, orientation, label_shape)
    with Image.open(path) as file:
        stored = np.asarray(file)
        turned = np.asarray(ImageOps.exif_transpose(file))
    with listening() as heard:
        image, label = dataset.load(0)
    np.testing.assert_array_equal(image, {"turned": turned, "stored": stored}[expected])
    assert image.shape[:2] == label.shape == dataset.image_size(0)
    assert heard.remarks == ([(remark, str(path))] if remark else [])
    dataset.labels = None
    np.testing.assert_array_equal(dataset.load(0)[0], turned)
    assert dataset.image_size(0) == turned.shape[:2]


def test_a_label_of_neither_size_is_an_error(tmp_path):
    dataset, _ = pair(tmp_path, 6, (24, 33))
    with raises_line("a.png: the label is 24x33 but its image .*a.jpg is 32x24"):
        dataset.load(0)


# ---- End markers and text -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_without_its_end_is_whole_or_refused(tmp_path, options, mode):
    """Cut at every place: all pixels of the whole file, or none."""
    image = Image.fromarray(cv2.GaussianBlur(noise(24, 32), (0, 0), 2)).convert(mode)
    data = encoded(image, "JPEG", **options)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    whole, read = read_image(path), []
    assert told(read_image, path) == []
    for end in range(data.index(b"\xff\xda"), len(data)):
        path.write_bytes(data[:end])
        try:
            np.testing.assert_array_equal(read_image(path), whole)
            read.append(end)
        except ValueError as error:
            assert DAMAGED in str(error)
    assert {len(data) - 2, len(data) - 1} <= {*read} and len(read) < 8
    path.write_bytes(data[:-2])
    assert told(read_image, path) == [remarks.UNFINISHED]
    assert image_size(path) == (24, 32)


def test_jpeg_without_its_end_is_what_pillow_makes_of_it(tmp_path, monkeypatch):
    image = cv2.GaussianBlur(noise(40, 48), (0, 0), 2)
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(image, "JPEG")[:-2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Image.open(path) as file:
        np.testing.assert_array_equal(read_image(path), file.convert("RGB"))


def test_png_without_its_end(tmp_path):
    data, path = encoded(LABEL), tmp_path / "a.png"
    for end in (len(data) - 12, len(data) - 3):
        path.write_bytes(data[:end])
        np.testing.assert_array_equal(read_label(path), LABEL)
        assert told(read_label, path) == told(read_image, path) == [remarks.UNFINISHED]
    path.write_bytes(data[: len(data) - 13])
    with raises_line(DAMAGED):
        read_label(path)


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iTXt"])
def test_png_with_long_text(tmp_path, name):
    text = b"a\0" + {b"tEXt": b"", b"zTXt": b"\0", b"iTXt": b"\0\0\0\0"}[name]
    value = np.random.default_rng(0).bytes(2_000_000)
    long = chunk(name, text + (zlib.compress(value) if name == b"zTXt" else b"b" * 80_000_000))
    data, path = encoded(noise()), tmp_path / "a.png"
    path.write_bytes(data[:33] + long + data[33:])
    np.testing.assert_array_equal(read_image(path), noise())
    assert told(read_image, path) == [remarks.LONG_TEXT]


# ---- The limit of pixels ------------------------------------------------------------------------


def test_limit_of_pixels_can_be_set(tmp_path, monkeypatch):
    save(LABEL, tmp_path / "a.png")
    monkeypatch.setenv("SEGFORMER_IMAGE_PIXELS", str(LABEL.size - 1))
    for read in (read_image, read_label, image_size):
        with raises_line("a.png has more pixels than the 4,799 .* or set SEGFORMER_IMAGE_PIXELS"):
            read(tmp_path / "a.png")
    monkeypatch.setenv("SEGFORMER_IMAGE_PIXELS", str(LABEL.size))
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), LABEL)


@pytest.mark.parametrize("text", ["abc", "0", "-1", "1e9", "2.5", "²", str(MOST_IMAGE_PIXELS + 1)])
def test_limit_that_is_no_number(monkeypatch, text):
    monkeypatch.setenv("SEGFORMER_IMAGE_PIXELS", text)
    with raises_line(f"SEGFORMER_IMAGE_PIXELS={text}: expected a whole number of pixels from 1 to"):
        image_pixels()


LOAD_LABEL = """
import json, sys
from pathlib import Path
from projects.SegFormer.dataset.inspection import value_counts
from projects.SegFormer.dataset.segmentation import SegmentationDataset

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

dataset = SegmentationDataset(sys.argv[1:], sys.argv[1:], ["a", "b"], [(0, 0, 0)] * 2, [])
before = peak()
label = dataset.load_label(0)
print(json.dumps([label.size, value_counts(label)[:2].tolist(), peak() - before]))
"""


@pytest.mark.slow
def test_labels_of_satellites(tmp_path, monkeypatch):
    """400 million pixels, three bytes for each at most."""
    label = np.zeros((20_000, 20_000), np.uint8)
    label[5000:9000] = 1
    cv2.imwrite(str(tmp_path / "a.png"), label)
    del label
    with raises_line("a.png has more pixels than the 268,435,456"):
        read_label(tmp_path / "a.png")
    monkeypatch.setenv("SEGFORMER_IMAGE_PIXELS", "400000000")
    command = [sys.executable, "-c", LOAD_LABEL, str(tmp_path / "a.png")]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    pixels, counts, kilobytes = json.loads(output)
    assert pixels == 400_000_000 and counts == [320_000_000, 80_000_000]
    assert kilobytes * 1000 < 3 * pixels
