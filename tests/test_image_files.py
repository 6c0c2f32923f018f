"""Image files of all kinds, those that attack among them, against Pillow, OpenCV and NumPy."""

import io
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, features

from conftest import ROOT
from data_files import noise, raises_line, save
from postscript_files import EPS, fake_ghostscript
from projects.SegFormer.dataset import image_files
from projects.SegFormer.dataset.image_files import image_size, read_image, read_label
from projects.SegFormer.modeling.bounds import IMAGE_BYTES, IMAGE_PIXELS, TABLE_BYTES

DAMAGED = "damaged, cut short or not an image"


def label_map(height=24, width=32, seed=0):
    label = np.random.default_rng(seed).integers(0, 5, (height, width), dtype=np.uint8)
    label[label == 4] = 255
    return label


# ---- reading images -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_images_are_rgb(tmp_path, suffix):
    image = noise()
    save(image, tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), image)


def test_grey_palette_and_alpha_become_rgb(tmp_path):
    image = noise()
    grey, alpha = image[..., 0], image[..., 1:2]
    save(grey, tmp_path / "grey.png")
    save(np.concatenate([image, alpha], axis=-1), tmp_path / "alpha.png")
    Image.fromarray(image // 128 * 255).convert("P").save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), image)
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), image // 128 * 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_the_upper_eight(tmp_path, suffix):
    values = np.arange(0, 65536, 97, dtype=np.uint16)[:660].reshape(22, 30)
    save(values, tmp_path / f"deep.{suffix}")
    image = read_image(tmp_path / f"deep.{suffix}")
    np.testing.assert_array_equal(image, np.stack([values >> 8] * 3, axis=-1))


def jpeg(tmp_path, **kwargs):
    Image.fromarray(np.full((24, 32, 3), (250, 120, 10), np.uint8)).save(
        tmp_path / "a.jpg", **kwargs
    )
    return tmp_path / "a.jpg"


def with_thumbnail(tmp_path):
    """A JPEG with a JPEG in its header, as cameras write them, and a fill byte before a marker."""
    path = jpeg(tmp_path)
    body, thumbnail = path.read_bytes(), path.read_bytes()
    segment = b"Exif\0\0" + thumbnail
    header = b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment
    path.write_bytes(body[:2] + header + b"\xff\xff" + body[2:])
    return path


@pytest.mark.parametrize("make", [jpeg, lambda p: jpeg(p, progressive=True), with_thumbnail])
def test_jpeg_whole_and_cut(tmp_path, make):
    path = make(tmp_path)
    data = path.read_bytes()
    assert read_image(path).shape == (24, 32, 3)
    path.write_bytes(data + b"\0" * 1000)  # some cameras pad their files
    assert read_image(path).shape == (24, 32, 3)
    for end in (len(data) // 2, len(data) - 30, len(data) - 5):
        path.write_bytes(data[:end])
        with raises_line("a.jpg: damaged, cut short or not an image"):
            read_image(path)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_cut_images(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    save(noise(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with raises_line(rf"a.{suffix}: damaged, cut short or not an image"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"hello, this is no image"])
@pytest.mark.parametrize("read", [read_image, read_label])
def test_not_an_image(tmp_path, content, read):
    (tmp_path / "a.png").write_bytes(content)
    with raises_line("a.png: damaged, cut short or not an image"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("read", [read_image, read_label])
def test_missing_file(tmp_path, read):
    with raises_line("a.png: cannot be read: No such file"):
        read(tmp_path / "a.png")


# ---- reading labels -----------------------------------------------------------------------------


def test_palette_labels_give_the_index(tmp_path):
    label = label_map()
    file = Image.fromarray(label, mode="P")
    file.putpalette([7 * i % 256 for i in range(768)])
    file.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), label)


def test_label_depths(tmp_path):
    label = label_map()
    save(label.astype(np.uint16), tmp_path / "deep.png")
    save(label > 100, tmp_path / "flat.png")
    np.testing.assert_array_equal(read_label(tmp_path / "deep.png"), label)
    np.testing.assert_array_equal(read_label(tmp_path / "flat.png"), label > 100)
    assert read_label(tmp_path / "deep.png").dtype == np.uint8
    save(label.astype(np.uint16) + 300, tmp_path / "beyond.png")
    with raises_line("beyond.png: label values from 300 to 555; expected 0 to 255"):
        read_label(tmp_path / "beyond.png")


def test_labels_of_several_channels_are_refused(tmp_path):
    save(noise(), tmp_path / "a.png")
    with raises_line("a.png: the label is an image of mode RGB; expected one channel"):
        read_label(tmp_path / "a.png")


def test_cut_label(tmp_path):
    save(label_map(), tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with raises_line("a.png: damaged, cut short or not an image"):
        read_label(tmp_path / "a.png")


# ---- whatever a file is called, its content decides ---------------------------------------------

MODES = {
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "WEBP": ("L", "RGB", "RGBA"),
}


@pytest.mark.parametrize("kind, mode", [(kind, mode) for kind in MODES for mode in MODES[kind]])
def test_values_are_those_of_the_decoders(tmp_path, kind, mode):
    """Images as OpenCV decodes the file, inks and label maps as Pillow does."""
    path = tmp_path / "a.png"
    image = Image.fromarray(noise(57, 41))
    deep = noise(57, 41)[..., 0].astype(np.uint16) * 250
    image = Image.fromarray(deep) if mode == "I;16" else image.convert(mode)
    image.save(path, kind)
    expected = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), 1 | 128)[..., ::-1]
    if mode == "CMYK":
        expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == (57, 41)
    with Image.open(path) as file:
        bands, values = len(file.getbands()), np.asarray(file)
    if bands > 1:
        with raises_line("a.png: the label is an image of mode .*; expected one channel"):
            read_label(path)
    elif values.max() > 255:
        with raises_line(f"label values from {values.min()} to {values.max()}; expected 0 to 255"):
            read_label(path)
    else:
        np.testing.assert_array_equal(read_label(path), values)


@pytest.mark.parametrize("read", [read_image, read_label, image_size])
@pytest.mark.parametrize(
    "content, kind",
    [
        (EPS, r"PostScript \(EPS\)"),
        (b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS, "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1" + bytes(30), "Photoshop"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\0\0\0\x1cftypheic", "HEIF or AVIF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "HTML"),
        ("GIF", "GIF"),
        ("ICO", "ICO"),
        ("PPM", "PPM"),
        pytest.param(
            *("JPEG2000", "JPEG 2000"),
            marks=pytest.mark.skipif(not features.check("jpg_2000"), reason="no encoder"),
        ),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, content, kind, read):
    if isinstance(content, str):
        Image.fromarray(noise()).save(tmp_path / "a.png", content)
    else:
        (tmp_path / "a.png").write_bytes(content)
    with raises_line(f"a.png holds {kind}.*: expected an image, JPEG, PNG, BMP, TIFF or WEBP"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["image", "label"])
def test_no_program_is_started(tmp_path, kind):
    path, marker = fake_ghostscript(tmp_path)
    (tmp_path / "a.png").write_bytes(EPS)

    def run(code):
        command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
        process = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        return process.stderr

    told = run(
        f"import sys; from projects.SegFormer.dataset.image_files import read_{kind};"
        f"read_{kind}(sys.argv[1])"
    )
    assert "a.png holds PostScript (EPS)" in told and not marker.exists()
    run("import sys; from PIL import Image; Image.open(sys.argv[1]).load()")
    assert marker.exists()  # what Pillow does when it may open everything


# ---- what a file says of its size ---------------------------------------------------------------


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes, *chunks: bytes, depth=8, colour=0) -> bytes:
    """A PNG of the compressed `pixels`, its other chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = (*chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(body)


def zeros(size: int) -> bytes:
    """`size` zeros, compressed."""
    stream = zlib.compressobj(1)
    return b"".join(stream.compress(bytes(2**20)) for _ in range(size >> 20)) + stream.flush()


def tiff(width: int, height: int, tags: int = 0) -> bytes:
    """The header of an RGB TIFF without data, with `tags` tags that share half a megabyte."""
    shared = bytes(500_000 if tags else 200)
    values = ((256, width), (257, height), (258, 8), (259, 1), (262, 2), (273, 8), (277, 3))
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values]
    entries += [struct.pack("<HHII", 30000 + i, 7, len(shared), 8) for i in range(tags)]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(shared)) + shared + directory


def jpeg_data(**options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def jpeg_with_exif(exif: bytes) -> bytes:
    data = jpeg_data()
    parts = (b"Exif\0\0" + exif[i : i + 65000] for i in range(0, len(exif), 65000))
    segments = (b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return data[:2] + b"".join(segments) + data[2:]


def jpeg_of_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose header says side x side, with its last scan over and over."""
    data = jpeg_data(progressive=True)
    size = data.index(b"\xff\xc2") + 5
    data = data[:size] + struct.pack(">HH", side, side) + data[size + 4 :]
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def bmp(width: int, height: int) -> bytes:
    return struct.pack("<2sIII", b"BM", 54, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0
    )


def webp(width: int, height: int) -> bytes:
    """The header of an animation without a frame."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + size
    chunks += b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def matrix(kind: int, height: int, width: int, values: bytes) -> bytes:
    """A variable S of a MATLAB file, version 5."""
    body = struct.pack("<IIII", 6, 8, kind, 0) + struct.pack("<IIii", 5, 8, height, width)
    body += struct.pack("<HH4s", 1, 1, b"S\0\0\0") + values
    return struct.pack("<II", 14, len(body)) + body


def mat(element: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + element


def packed(data: bytes) -> bytes:
    return struct.pack("<II", 15, len(data)) + data


UINT8, CELLS = 9, 1
LARGE = TABLE_BYTES * 4
TOO_LARGE = "has more pixels than the "
NO_MATLAB = "damaged, cut short or not a MATLAB file"
ATTACKS = {
    "too_large.png": (lambda: png(IMAGE_PIXELS // 4 + 1, 4, b""), TOO_LARGE),
    "huge.png": (lambda: png(2**31 - 1, 2**31 - 1, b""), TOO_LARGE),
    "nothing.png": (lambda: png(0, 4, b""), DAMAGED),
    "empty_rows.png": (lambda: png(8192, 8192, zeros(2**20), colour=6, depth=16), DAMAGED),
    "text.png": (lambda: png(4, 4, b"", chunk(b"zTXt", b"a\0\0" + zeros(LARGE))), DAMAGED),
    "profile.png": (lambda: png(4, 4, b"", chunk(b"iCCP", b"a\0\0" + zeros(LARGE))), DAMAGED),
    "huge.tif": (lambda: tiff(2**32 - 1, 2**32 - 1), TOO_LARGE),
    "nothing.tif": (lambda: tiff(0, 4), DAMAGED),
    "no_data.tif": (lambda: tiff(8192, 8192), DAMAGED),
    "tags.tif": (lambda: tiff(4, 4, tags=6000), DAMAGED),
    "exif.jpg": (lambda: jpeg_with_exif(tiff(4, 4, tags=6000)), [64, 64, 3]),
    "fill.jpg": (lambda: b"\xff\xd8" + b"\xff" * 20_000_000, DAMAGED),
    "scans.jpg": (lambda: jpeg_of_scans(8192, 5000), DAMAGED),
    "coefficients.jpg": (lambda: jpeg_of_scans(16384, 1), TOO_LARGE),
    "no_data.bmp": (lambda: bmp(8192, 8192), DAMAGED),
    "below_zero.bmp": (lambda: bmp(8192, -(2**31)), TOO_LARGE),
    "no_data.webp": (lambda: webp(8192, 8192), DAMAGED),
    "huge.webp": (lambda: webp(2**24, 2**24), ""),
    "zeros.mat": (
        lambda: mat(packed(zlib.compress(matrix(UINT8, 4, 4, b""))[:-5] + zeros(LARGE))),
        NO_MATLAB,
    ),
    "long.mat": (lambda: mat(packed(zeros(LARGE))), NO_MATLAB),
    "axes.mat": (lambda: mat(matrix(UINT8, 2**31 - 1, 2**31 - 1, bytes(16))), NO_MATLAB),
    "length.mat": (lambda: mat(matrix(UINT8, 4, 4, struct.pack("<II", 2, 2**32 - 1))), NO_MATLAB),
    "cells.mat": (lambda: mat(matrix(CELLS, 2**15, 2**15, b"")), "no matrix S of numbers"),
}
READ = """
import json, os, signal, sys
from pathlib import Path
from projects.SegFormer.dataset.coco_stuff import _read_mat as read_mat
from projects.SegFormer.dataset.image_files import read_image, read_label
from projects.SegFormer.modeling.errors import InputError

kind, *paths = sys.argv[1:]
read = {"image": read_image, "label": read_label}[kind]
for path in paths:
    process = os.fork()
    if not process:
        signal.alarm(60)
        try:
            told = list((read_mat if path.endswith(".mat") else read)(path).shape)
        except InputError as error:
            told = str(error)
        peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
        print(json.dumps([told, int(peak)]), flush=True)
        os._exit(0)
    if os.waitpid(process, 0)[1]:
        print(json.dumps(["the process ended", 0]), flush=True)
"""


def read_apart(kind: str, paths: list[Path]) -> list[tuple[list[int] | str, int]]:
    """Shape or error, and kB of memory at most, of each file read in a process of its own."""
    command = [sys.executable, "-c", READ, kind, *map(str, paths)]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=300).stdout
    return [tuple(json.loads(line)) for line in output.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "label"])
def test_attacks_take_little(tmp_path, kind):
    """Each is told in one line, takes no gigabyte and no minute, and ends no process."""
    for name, (make, _) in ATTACKS.items():
        (tmp_path / name).write_bytes(make())
    results = read_apart(kind, [tmp_path / name for name in ATTACKS])
    assert len(results) == len(ATTACKS)
    for (name, (_, expected)), (told, memory) in zip(ATTACKS.items(), results):
        assert memory < 1_000_000, (name, memory)
        if kind == "label" and "of mode" in told:
            continue  # of several channels: seen before anything is decoded
        if isinstance(expected, list):
            assert told == expected
        else:
            assert isinstance(told, str) and str(tmp_path / name) in told, (name, told)
            assert expected in told and "\n" not in told, (name, told)


def test_image_at_the_bound(tmp_path):
    (tmp_path / "a.png").write_bytes(png(IMAGE_PIXELS // 4, 4, b""))
    assert image_size(tmp_path / "a.png") == (4, IMAGE_PIXELS // 4)
    (tmp_path / "b.png").write_bytes(png(IMAGE_PIXELS // 4 + 1, 4, b""))
    with raises_line("b.png has more pixels than the .* or set SEGFORMER_IMAGE_PIXELS"):
        image_size(tmp_path / "b.png")


def test_size_that_is_not_the_headers_is_refused(tmp_path, monkeypatch):
    save(noise(), tmp_path / "a.png")
    monkeypatch.setattr(cv2, "imdecode", lambda *_: noise(24, 31))
    with raises_line(f"a.png: {DAMAGED}"):
        read_image(tmp_path / "a.png")


# ---- what is no file ----------------------------------------------------------------------------


def test_pipes_sockets_devices_and_folders_are_refused(tmp_path):
    """At once: to open a pipe that nobody writes to would wait for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.png"))
        paths = sorted(tmp_path.iterdir())
        assert any(stat.S_ISFIFO(path.lstat().st_mode) for path in paths) and len(paths) == 5
        for kind in ("image", "label"):
            for path, (told, _) in zip(paths, read_apart(kind, paths), strict=True):
                assert isinstance(told, str) and f"{path}" in told and "\n" not in told
                assert "no regular file" in told or "cannot be read: " in told, told


def test_large_files_are_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(IMAGE_BYTES + 1)  # a hole: it takes no room
    with raises_line(f"a.png has {IMAGE_BYTES + 1:,} bytes"):
        read_image(tmp_path / "a.png")


# ---- damaged files ------------------------------------------------------------------------------


def samples() -> list[bytes]:
    """Small files of all formats, single and animated."""
    image = Image.fromarray(cv2.GaussianBlur(noise(40, 48), (0, 0), 3))
    found = []
    for mode, kind, options in [
        *((mode, kind, {}) for kind in image_files.FORMATS for mode in ("RGB", "L")),
        ("P", "PNG", {}),
        ("RGB", "JPEG", {"progressive": True, "exif": b"Exif\0\0" + tiff(4, 4)[:300]}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("L", "TIFF", {"compression": "tiff_adobe_deflate"}),
        *(("RGB", kind, {"save_all": True, "append_images": [image]}) for kind in ("PNG", "TIFF")),
        ("RGB", "WEBP", {"save_all": True, "append_images": [image.rotate(90)]}),
    ]:
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


@pytest.mark.filterwarnings("ignore")  # pytest shows what dataset/image_files.py silences
def test_any_damage_is_one_line_or_none(tmp_path):
    """Bytes changed, taken out and doubled, mostly in the header: an array or an InputError."""
    rng = np.random.default_rng(0)
    path = tmp_path / "a.png"
    outcomes = []
    for data in samples():
        for _ in range(25):
            damaged = bytearray(data)
            for _ in range(rng.integers(1, 5)):
                place = int(rng.integers(min(len(damaged), rng.choice([64, 512, 10**6]))))
                damaged[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
            place, length = (int(value) for value in rng.integers(0, len(data), 2))
            kind = rng.integers(4)
            if kind == 0:
                del damaged[place : place + length // 8]
            elif kind == 1:
                damaged[place:place] = damaged[place // 2 : place // 2 + length // 8]
            path.write_bytes(damaged)
            for read in (read_image, read_label):
                try:
                    array = read(path)
                    assert array.dtype == np.uint8 and array.shape[:2] == image_size(path)
                    outcomes.append("read")
                except image_files.InputError as error:
                    assert str(path) in str(error) and "\n" not in str(error)
                    outcomes.append("refused")
    assert min(outcomes.count("read"), outcomes.count("refused")) > 50
