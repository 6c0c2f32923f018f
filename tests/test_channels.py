"""Images of any number of bands: files, transforms and batches against NumPy."""

import io
import logging
import zlib

import cv2
import numpy as np
import pytest
from libai.config import instantiate
from PIL import Image

from conftest import CLASSES, CONFIG, tiny_run
from data_files import noise, raises_line, save, tiff
from projects.SegFormer.dataset import remarks
from projects.SegFormer.dataset.build import build_train_loader
from projects.SegFormer.dataset.folder import SegmentationFolder
from projects.SegFormer.dataset.image_files import as_rgb, image_size, read_image
from projects.SegFormer.dataset.transforms import (
    Normalize,
    Pad,
    PhotometricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
)
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.trainer import check_data

BANDS = (1, 2, 3, 4, 5, 8, 13)


def bands_of(count, dtype=np.uint8, height=24, width=32, seed=0):
    high = np.iinfo(dtype).max
    shape = (height, width, count)
    return np.random.default_rng(seed).integers(0, high, shape, dtype, endpoint=True)


def eight_bits(bands):
    return (bands >> 8 if bands.dtype == np.uint16 else bands).astype(np.uint8)


def write(path, data):
    path.write_bytes(data)
    return path


# ---- TIFF ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", BANDS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_of_any_bands(tmp_path, count, dtype):
    bands = bands_of(count, dtype)
    for planar in (False, True):
        for deflate in (False, True):
            for order in "<>":
                data = tiff(bands, planar, deflate, order=order)
                path = write(tmp_path / "a.tif", data)
                np.testing.assert_array_equal(read_image(path, count), eight_bits(bands))
                assert image_size(path) == (24, 32)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_as_pillow_writes_it(tmp_path, mode, compression):
    """With and without differences instead of values, classic and BigTIFF, in strips."""
    deep = Image.fromarray(bands_of(1, np.uint16, 300, 200)[..., 0])
    image = deep if mode == "I;16" else Image.fromarray(noise(300, 200)).convert(mode)
    expected = np.asarray(image).reshape(300, 200, -1)
    for predictor in (1, 2):
        for big in (False, True):
            image.save(
                tmp_path / "a.tif",
                compression=compression,
                tiffinfo={317: predictor},
                big_tiff=big,
            )
            found = read_image(tmp_path / "a.tif", expected.shape[2])
            np.testing.assert_array_equal(found, eight_bits(expected))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_in_tiles_with_differences(tmp_path, dtype):
    """Where each tile begins anew, and the last ones reach over the edge."""
    bands = bands_of(5, dtype, 40, 40)
    padded = np.zeros((48, 48, 5), dtype)
    padded[:40, :40] = bands
    tiles = []
    for top in range(0, 48, 16):
        for left in range(0, 48, 16):
            tile = padded[top : top + 16, left : left + 16].copy()
            tile[:, 1:] -= tile[:, :-1].copy()
            tiles.append(tile.tobytes())
    strips = [zlib.compress(tile) for tile in tiles]
    offsets = np.cumsum([8, *map(len, strips)])[:-1]
    data = tiff(
        np.frombuffer(b"".join(strips), np.uint8).reshape(1, -1, 1),
        t256=(40,), t257=(40,), t258=(8 * bands.itemsize,) * 5, t259=(8,), t277=(5,), t317=(2,),
        t322=(16,), t323=(16,), t324=offsets, t325=[*map(len, strips)], t339=(1,) * 5,
    )  # fmt: skip
    path = write(tmp_path / "a.tif", data)
    np.testing.assert_array_equal(read_image(path, 5), eight_bits(bands))


def test_pages_of_one_band_are_bands(tmp_path):
    """As an array of (bands, H, W) is written; pages of colours are further images."""
    bands = bands_of(6)
    first, *others = (Image.fromarray(bands[..., i]) for i in range(6))
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 6), bands)
    with raises_line("a.tif has 6 bands, cfg.num_channels=3"):
        read_image(tmp_path / "a.tif")
    image = Image.fromarray(noise())
    image.save(tmp_path / "b.tif", save_all=True, append_images=[image.rotate(180)])
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), noise())


@pytest.mark.parametrize("photometric, count", [(2, 4), (1, 2), (1, 3), (1, 4), (2, 5)])
def test_no_band_of_a_tiff_is_left_out(tmp_path, photometric, count):
    path = write(tmp_path / "a.tif", tiff(bands_of(count), photometric=photometric))
    for channels in {1, 2, 3, 4} - {count}:
        with raises_line(
            f"a.tif has {count} bands, cfg.num_channels={channels}: set it to {count}"
        ):
            read_image(path, channels)


def test_white_is_zero(tmp_path):
    grey = bands_of(1)
    path = write(tmp_path / "a.tif", tiff(grey, photometric=0))
    np.testing.assert_array_equal(read_image(path, 1), 255 - grey)


@pytest.mark.parametrize(
    "data, kind",
    [
        (lambda: tiff(np.ones((4, 4, 1), np.float32)), "floating-point"),
        (lambda: tiff(np.ones((4, 4, 3), np.float32), photometric=2), "floating-point"),
        (lambda: tiff(np.ones((4, 4, 1), np.int16)), "signed"),
        (lambda: tiff(np.ones((4, 4, 5), np.int8)), "signed"),
        (lambda: tiff(np.ones((4, 4, 1), np.uint32)), "32-bit"),
        (lambda: tiff(np.ones((4, 4, 2), np.uint32)), "32-bit"),
        (lambda: tiff(np.ones((4, 6, 1), np.uint8), t257=(4,), t256=(4,), t258=(12,)), "12-bit"),
    ],
)
def test_numbers_that_are_no_levels_are_refused(tmp_path, data, kind):
    path = write(tmp_path / "a.tif", data())
    for channels in (1, 3):
        with raises_line(f"a.tif holds {kind} numbers: expected whole numbers of 8 or 16 bits"):
            read_image(path, channels)


# ---- PNG, WebP, NumPy ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, mode",
    [
        *((kind, mode) for kind in ("PNG", "TIFF") for mode in ("L", "LA", "RGB", "RGBA")),
        *(("WEBP", "RGB"), ("WEBP", "RGBA")),
    ],
)
def test_alpha_is_a_band_where_it_is_counted(tmp_path, mode, kind):
    image = Image.fromarray(noise()).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(bands_of(1)[..., 0]))
    path = tmp_path / "a.x"
    image.save(path, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    bands = np.asarray(image).reshape(24, 32, -1)
    count = bands.shape[2]
    np.testing.assert_array_equal(read_image(path, count), bands)
    colours = bands[..., : count - ("A" in mode)]
    np.testing.assert_array_equal(read_image(path), np.broadcast_to(colours, (24, 32, 3)))
    for channels in {1, 2, 4} - {count, colours.shape[2]}:
        with raises_line(f"a.x has .* band.*, cfg.num_channels={channels}"):
            read_image(path, channels)


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_colours(tmp_path, count, suffix):
    bands = bands_of(count, np.uint16)
    order = bands if count == 1 else bands[..., [2, 1, 0, 3][:count]]
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), order)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}", count), bands >> 8)


def test_alpha_that_shows_is_told_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(remarks, "_warned", set())
    image = Image.fromarray(noise())
    image.putalpha(255)
    image.save(tmp_path / "opaque.png")
    image.putpixel((0, 0), (1, 2, 3, 254))
    for name in ("first", "second"):
        image.save(tmp_path / f"{name}.png")
    with caplog.at_level(logging.WARNING):
        for name in ("opaque", "first", "second"):
            assert read_image(tmp_path / f"{name}.png").shape == (24, 32, 3)
    (record,) = caplog.records
    assert "first.png: an alpha band that is not opaque is left out" in record.getMessage()


def test_transparent_colours_are_alpha(tmp_path):
    """Of a palette, of one grey and of one colour."""
    palette = Image.fromarray(noise() // 128 * 255).convert("P", palette=Image.Palette.ADAPTIVE)
    grey, colour = Image.fromarray(noise()[..., 0]), Image.fromarray(noise())
    for name, image, transparency in (
        ("palette", palette, 0),
        ("grey", grey, int(noise()[0, 0, 0])),
        ("colour", colour, tuple(noise()[0, 0].tolist())),
    ):
        path = tmp_path / f"{name}.png"
        image.save(path, transparency=transparency)
        with Image.open(path) as file:
            whole, expected = file.convert("RGBA"), file.convert("RGB")
        assert np.asarray(whole)[..., 3].min() == 0
        np.testing.assert_array_equal(read_image(path), expected)
        count = 2 if name == "grey" else 4
        expected = np.asarray(whole)[..., [0, 3] if name == "grey" else slice(None)]
        np.testing.assert_array_equal(read_image(path, count), expected)


@pytest.mark.parametrize("shape", [(24, 32), *((24, 32, count) for count in BANDS)])
@pytest.mark.parametrize("dtype", [">u2", "<u2", "u1"])
def test_numpy_files(tmp_path, shape, dtype):
    array = bands_of(shape[2] if len(shape) == 3 else 1, np.uint16).reshape(shape)
    array = eight_bits(array) if dtype == "u1" else array.astype(dtype)
    for order in (np.ascontiguousarray, np.asfortranarray):
        np.save(tmp_path / "a.npy", order(array))
        expected = eight_bits(array.astype(array.dtype.newbyteorder("="))).reshape(24, 32, -1)
        np.testing.assert_array_equal(read_image(tmp_path / "a.npy", expected.shape[2]), expected)
        assert image_size(tmp_path / "a.npy") == (24, 32)


def numpy_file(header: str, data=b"") -> bytes:
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    "data, message",
    [
        (lambda: npy(np.ones((4, 4), np.float32)), "holds an array of float32"),
        (lambda: npy(np.ones((4, 4), np.int16)), "holds an array of int16"),
        (
            lambda: npy(np.ones((2, 3, 4, 4), np.uint8)),
            "holds an array of uint8, .2, 3, 4, 4.: expected",
        ),
        (lambda: npy(np.ones((4, 0, 3), np.uint8)), "holds an array of uint8, .4, 0, 3"),
        (lambda: npy(np.array([{}, []], object)), "holds an array of object"),
        (lambda: npy(np.ones((8, 4, 4), np.uint8)), "has 4 bands, cfg.num_channels=3"),
        (lambda: npy(np.ones((8, 8, 3), np.uint8))[:-1], "damaged, cut short"),
        (lambda: npy(np.ones((8, 8, 3), np.uint8))[:40], "damaged, cut short"),
        (
            lambda: numpy_file(
                "{'descr': '|u1', 'fortran_order': False, 'shape': (99999, 99999, 3)}\n"
            ),
            "has more pixels than",
        ),
        (lambda: numpy_file("[" * 9000), "damaged, cut short"),
        (lambda: numpy_file("__import__('os').system('false')"), "damaged, cut short"),
    ],
)
def test_numpy_files_that_are_refused(tmp_path, data, message):
    with raises_line(f"a.npy:? ?{message}"):
        read_image(write(tmp_path / "a.npy", data()))


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_many_bands_count_in_the_bound(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGFORMER_IMAGE_PIXELS", "1000")
    path = write(tmp_path / "a.tif", tiff(bands_of(5, height=25, width=40)))
    with raises_line("a.tif has more pixels than the 800"):
        read_image(path, 5)
    path = write(tmp_path / "a.tif", tiff(bands_of(4, height=25, width=40)))
    assert read_image(path, 4).shape == (25, 40, 4)


# ---- Transforms ---------------------------------------------------------------------------------


def alone(transform, image, label=None):
    """Each band by itself, as a grey image of three channels."""
    results = [
        transform(np.repeat(image[..., i : i + 1], 3, axis=2), label, np.random.default_rng(3))[0]
        for i in range(image.shape[2])
    ]
    return np.concatenate([result[..., :1] for result in results], axis=2)


@pytest.mark.parametrize("count", BANDS)
@pytest.mark.parametrize(
    "transform",
    [
        Resize((48, 40), keep_ratio=False),
        Resize((12, 16)),
        RandomResize((24, 32)),
        RandomCrop((16, 16)),
        RandomFlip(1.0),
        Pad((40, 40)),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_transforms_take_each_band_alike(transform, count):
    image = bands_of(count)
    for array in (image, image.astype(np.float32)):
        result, _ = transform(array, None, np.random.default_rng(3))
        assert result.dtype == array.dtype and result.ndim == 3
        # OpenCV rounds a half up or down, by the number of channels.
        tolerance = 1 if array.dtype == np.uint8 else 1e-3
        expected = alone(transform, array).astype(float)
        np.testing.assert_allclose(result.astype(float), expected, atol=tolerance)


@pytest.mark.parametrize("count", BANDS)
def test_normalisation_by_band(count):
    mean, std = np.arange(count) * 7.5 + 3, np.arange(count) + 1.5
    image = bands_of(count)
    result, _ = Normalize(mean, std)(image, None, None)
    np.testing.assert_allclose(result, (image - mean) / std, rtol=1e-5, atol=1e-5)
    assert result.dtype == np.float32 and result.shape == image.shape
    with raises_line(f"data.mean and data.std have {count} values and images {count + 1} channels"):
        Normalize(mean, std)(bands_of(count + 1), None, None)


def test_as_many_means_as_deviations():
    with raises_line("data.mean has 3 values and data.std 4: both need one a channel"):
        Normalize([1, 2, 3], [1, 2, 3, 4])


@pytest.mark.parametrize("count", [1, 2, 4, 13])
def test_photometric_distortion_is_for_colours(count):
    image = bands_of(count)
    for seed in range(5):
        result, _ = PhotometricDistortion()(image, None, np.random.default_rng(seed))
        assert result is image


def test_pictures_of_any_bands():
    for count in BANDS:
        image = bands_of(count)
        expected = image[..., :3] if count > 2 else np.repeat(image[..., :1], 3, axis=2)
        np.testing.assert_array_equal(as_rgb(image), expected)


# ---- From files to batches ----------------------------------------------------------------------


def put_data(root, count, suffix):
    for split in ("train", "val"):
        for index in range(4):
            bands = bands_of(count, height=80, width=96, seed=index)
            path = root / f"images/{split}/{index}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == "npy":
                np.save(path, bands)
            elif suffix == "tif":
                path.write_bytes(tiff(bands))
            else:
                order = bands[..., [2, 1, 0, 3]] if count == 4 else bands
                cv2.imwrite(str(path), order)
            label = np.random.default_rng(index).integers(0, 3, (80, 96), dtype=np.uint8)
            save(label, root / f"annotations/{split}/{index}.png")
    return root


@pytest.mark.parametrize("count, suffix", [(1, "png"), (4, "png"), (5, "npy"), (13, "tif")])
def test_a_config_feeds_images_of_any_bands(tmp_path, count, suffix):
    """By overrides of one setting and the means, training batches of the model's channels."""
    root = put_data(tmp_path / "data", count, suffix)
    mean, std = [float(10 * i + 5) for i in range(count)], [float(i + 2) for i in range(count)]
    numbers = f"data.mean={mean}", f"data.std={std}"
    more = (f"cfg.num_channels={count}", *(it.replace(" ", "") for it in numbers))
    cfg = load_config(CONFIG, tiny_run(root, tmp_path, *more))
    for setting in (cfg.dataloader.train.dataset, cfg.dataloader.test[0].dataset):
        dataset = instantiate(setting)
        check_data(cfg, dataset)
        image, _ = dataset[0]
        assert image.shape[0] == count
    # The test data is not augmented: all of an image is to be seen.
    stored = bands_of(count, height=80, width=96).transpose(2, 0, 1)
    expected = (stored - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    np.testing.assert_allclose(image, expected, rtol=1e-4, atol=1e-4)
    dataset = instantiate(cfg.dataloader.train.dataset)
    loader, _, _ = build_train_loader(dataset, 2, num_workers=0)
    batch = next(iter(loader))
    assert tuple(batch.images.tensor.shape) == (2, count, 64, 64)


@pytest.mark.parametrize(
    "override, message",
    [
        ("cfg.num_channels=4", "data.mean and data.std have 3 values and images 4 channels"),
        (
            "dataloader.train.dataset.num_channels=1",
            "the model has num_channels=3, the data set 1: give each data set",
        ),
        (
            "dataloader.train.dataset.ignore_index=0",
            "the model has ignore_index=255, the data set 0: give each data set",
        ),
    ],
)
def test_data_and_model_must_agree(tmp_path, override, message):
    root = put_data(tmp_path / "data", 4, "png")
    cfg = load_config(CONFIG, tiny_run(root, tmp_path, override))
    with raises_line(message):
        check_data(cfg, instantiate(cfg.dataloader.train.dataset))


def test_images_of_other_bands_are_told_by_name(tmp_path):
    root = put_data(tmp_path, 5, "npy")
    with raises_line("images/train/0.npy has 5 bands, cfg.num_channels=3: set it to 5 and give"):
        SegmentationFolder(root, "train", CLASSES, []).load(0)
