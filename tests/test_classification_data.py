"""Images of classes from disk to arrays; the transforms against Pillow, NumPy and FlowVision's."""

import math
import random

import cv2
import numpy as np
import PIL.Image
import pytest
from flowvision.data import auto_augment
from libai.config import instantiate
from omegaconf import OmegaConf

from projects.SegFormer.configs.data.imagenet import data, dataloader
from projects.SegFormer.dataset import classification_transforms
from projects.SegFormer.dataset.build import build_test_loader
from projects.SegFormer.dataset.classification import ClassificationFolder, ImageNet
from projects.SegFormer.dataset.classification_transforms import (
    OPERATIONS,
    CenterCrop,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    ResizeShortSide,
)
from projects.SegFormer.dataset.sampler import Draw
from projects.SegFormer.dataset.transforms import Compose
from projects.SegFormer.modeling.errors import InputError


def rng(seed=0):
    return np.random.default_rng(seed)


def noise(height, width, seed=0):
    return rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photo(height, width, seed=0):
    """Smooth, as a filter would not leave noise."""
    return cv2.GaussianBlur(noise(height, width, seed), (0, 0), 3)


def coordinates(height, width):
    """Channels 0 and 1 are y and x of each pixel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.zeros_like(x)], axis=-1).astype(np.uint8)


def box_of(part):
    """Where in `coordinates` a part of it is from: left, upper, right, lower, as Pillow has it."""
    top, left = part[0, 0, :2].astype(int)
    np.testing.assert_array_equal(part[..., 0] - top, coordinates(*part.shape[:2])[..., 0])
    np.testing.assert_array_equal(part[..., 1] - left, coordinates(*part.shape[:2])[..., 1])
    return left, top, left + part.shape[1], top + part.shape[0]


# ---- Crops ------------------------------------------------------------------------------------


@pytest.fixture
def crop_only(monkeypatch):
    """RandomResizedCrop without the scaling."""
    monkeypatch.setattr(classification_transforms, "_resize", lambda image, height, width: image)


@pytest.mark.parametrize("size", [(200, 250), (250, 140), (120, 120)])
def test_random_crops_are_within_the_image_and_the_limits(crop_only, size):
    image, transform, generator = coordinates(*size), RandomResizedCrop(224), rng()
    shares, ratios, lefts = [], [], []
    for _ in range(1000):
        part, label = transform(image, 7, generator)
        left, top, right, bottom = box_of(part)
        assert 0 <= left < right <= size[1] and 0 <= top < bottom <= size[0] and label == 7
        shares.append((right - left) * (bottom - top) / math.prod(size))
        ratios.append((right - left) / (bottom - top))
        lefts.append(left / max(1, size[1] - (right - left)))
    # Sides are whole numbers, the shortest about 30.
    assert 0.08 * 0.96 < min(shares) < 0.12 and 0.7 < max(shares) <= 1
    assert 0.75 * 0.97 < min(ratios) < 0.78 and 1.28 < max(ratios) < 1.33 * 1.03
    assert abs(np.log(ratios).mean()) < 0.06  # as often wide as high
    assert 0.3 < np.mean(shares) < 0.56  # uniform, less what does not fit
    assert min(lefts) == 0 and max(lefts) == 1 and abs(np.mean(lefts) - 0.5) < 0.05


def test_random_crop_is_pillow_s(monkeypatch):
    image, transform = photo(160, 250), RandomResizedCrop(64)
    results = [transform(image, 0, rng(seed))[0] for seed in range(8)]
    monkeypatch.setattr(classification_transforms, "_resize", lambda image, height, width: image)
    for seed, result in enumerate(results):
        box = box_of(transform(coordinates(160, 250), 0, rng(seed))[0])
        part = PIL.Image.fromarray(image).crop(box)
        expected = part.resize((64, 64), PIL.Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(result, np.asarray(expected))


@pytest.mark.parametrize(
    "size, expected",
    [
        ((10, 300), (143, 0, 156, 10)),  # 10 * 4/3 wide, in the middle
        ((203, 10), (0, 95, 10, 108)),  # 10 / (3/4) high
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_crop_where_none_fits(crop_only, size, expected):
    transform = RandomResizedCrop(224, scale=(0.99, 1.0))
    assert box_of(transform(coordinates(*size), 0, rng())[0]) == expected


@pytest.mark.parametrize(
    "size, expected",
    [((375, 500), (256, 341)), ((500, 375), (341, 256)), ((100, 100), (256, 256)), ((1, 3), None)],
)
def test_short_side(size, expected):
    height, width = expected or (256, 768)
    image = photo(*size)
    result, label = ResizeShortSide(256)(image, 3, None)
    picture = PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(result, np.asarray(picture))
    assert label == 3


def test_scaling_down_leaves_no_aliases():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    result, _ = ResizeShortSide(150)(stripes, 0, None)
    assert np.abs(result[:, 5:-5].astype(int) - 128).max() < 12


@pytest.mark.parametrize(
    "size, corner", [((8, 8), (2, 2)), ((5, 7), (0, 2)), ((9, 4), (2, 0)), ((4, 4), (0, 0))]
)
def test_center_crop(size, corner):
    """Of an odd rest, torchvision has half a pixel rounded to the even side."""
    left, top, right, bottom = box_of(CenterCrop(4)(coordinates(*size), 0, None)[0])
    assert (top, left, bottom - top, right - left) == (*corner, 4, 4)


def test_center_crop_of_too_little():
    with pytest.raises(InputError, match="5x3 .*smaller than size=4; .*ResizeShortSide"):
        CenterCrop(4)(np.zeros((5, 3, 3), np.uint8), 0, None)


# ---- RandAugment ------------------------------------------------------------------------------

# FlowVision has timm's operations, in timm's order, here with a sign of its own for each.
REFERENCES = dict(zip(OPERATIONS, auto_augment._RAND_INCREASING_TRANSFORMS, strict=True))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("strength", [0.9, -0.9, 0.83, -0.5, 1.0, 0.0])
def test_operation_is_timm_s(monkeypatch, name, strength):
    sign = 0.9 if strength < 0 else 0.1
    monkeypatch.setattr(auto_augment.random, "random", lambda: sign)
    hparams = {"interpolation": PIL.Image.Resampling.BICUBIC, "img_mean": (124, 116, 104)}
    reference = auto_augment.AugmentOp(
        REFERENCES[name], prob=1.0, magnitude=10 * abs(strength), hparams=hparams
    )
    picture = PIL.Image.fromarray(photo(50, 70))
    result = np.asarray(OPERATIONS[name](picture, strength))
    np.testing.assert_array_equal(result, np.asarray(reference(picture)))


def grey(image):
    """Luma as ITU-R 601-2 has it."""
    return image @ np.array([0.299, 0.587, 0.114])


PLAIN = {
    "invert": lambda x: 255 - x,
    "posterize": lambda x: np.where(x >= 128, 128, 0),  # 4 - int(3.6) bits are left
    "solarize": lambda x: np.where(x < 256 - 230, x, 255 - x),
    "solarize_add": lambda x: np.where(x < 128, np.minimum(x + 99, 255), x),
    "brightness": lambda x: 1.81 * x,
    "contrast": lambda x: 1.81 * x - 0.81 * np.floor(grey(x).mean() + 0.5),
    "colour": lambda x: 1.81 * x - 0.81 * np.floor(grey(x) + 0.5)[..., None],
    "auto_contrast": lambda x: (x - x.min((0, 1))) * 255 / np.ptp(x, (0, 1)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_operation_at_magnitude_9_written_out(name):
    image = photo(50, 70)
    result = np.asarray(OPERATIONS[name](PIL.Image.fromarray(image), 0.9))
    expected = np.clip(PLAIN[name](image.astype(float)), 0, 255)
    # Pillow rounds grey and the blend to whole levels.
    assert np.abs(result - expected).max() <= (2 if name in ("contrast", "colour") else 1)


def test_direction_and_fill():
    image = photo(40, 40)
    mean = np.array([124, 116, 104])
    moved = np.asarray(OPERATIONS["translate_x"](PIL.Image.fromarray(image), 0.5))  # 9 pixels
    np.testing.assert_array_equal(moved[:, :31], image[:, 9:])
    assert (moved[:, 31:] == mean).all()
    moved = np.asarray(OPERATIONS["translate_y"](PIL.Image.fromarray(image), -0.5))
    np.testing.assert_array_equal(moved[9:], image[:31])
    assert (moved[:9] == mean).all()


def test_what_is_drawn(monkeypatch):
    drawn = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda p, s, name=name: drawn.append((name, s)) or p)
    image, transform, generator = noise(4, 4), RandAugment(9.0, 2, 0.5), rng()
    counts = []
    for _ in range(3000):
        before = len(drawn)
        result, label = transform(image, 5, generator)
        counts.append(len(drawn) - before)
        assert label == 5
        np.testing.assert_array_equal(result, image)
    # Binomial: two operations, each done with probability 0.5.
    np.testing.assert_allclose(np.bincount(counts) / 3000, [0.25, 0.5, 0.25], atol=0.03)
    names, strengths = zip(*drawn, strict=True)
    times = [names.count(name) for name in OPERATIONS]
    assert abs(np.array(times) - len(drawn) / 15).max() < 4.5 * math.sqrt(len(drawn) / 15)
    magnitudes = 10 * np.abs(strengths)
    assert magnitudes.max() == 10 and magnitudes.min() > 6.5
    assert np.median(magnitudes) == pytest.approx(9, abs=0.05)
    inside = np.mean(np.abs(magnitudes - 9) < 0.5)  # one standard deviation
    assert inside == pytest.approx(math.erf(math.sqrt(0.5)), abs=0.04)
    assert np.mean(np.sign(strengths)) == pytest.approx(0, abs=0.08)


# ---- RandomErasing ------------------------------------------------------------------------------


def test_erased_rectangles():
    image, transform, generator = np.full((60, 80, 3), 9, np.float32), RandomErasing(), rng()
    values, shares, ratios = [], [], []
    for _ in range(2000):
        result, label = transform(image, 2, generator)
        assert label == 2 and (image == 9).all() and result.dtype == np.float32
        if result is image:
            continue
        changed = (result != 9).all(-1)
        np.testing.assert_array_equal(changed, (result != 9).any(-1))
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        hole = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        assert changed[hole].all()
        height, width = changed[hole].shape
        shares.append(height * width / image[..., 0].size)
        ratios.append(height / width)
        values.append(result[hole].reshape(-1, 3))
    assert len(shares) / 2000 == pytest.approx(0.25, abs=0.03)
    assert 0.018 < min(shares) < 0.04 and 0.3 < max(shares) < 0.345
    assert np.mean(shares) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    assert 0.27 < min(ratios) < 0.35 and 2.9 < max(ratios) < 3.6
    values = np.concatenate(values)
    np.testing.assert_allclose(values.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(np.cov(values.T), np.eye(3), atol=0.01)  # each channel its own


def test_nothing_is_erased_at_probability_0():
    image = np.ones((8, 8, 3), np.float32)
    assert all(RandomErasing(prob=0)(image, 0, rng(seed))[0] is image for seed in range(20))


# ---- All of them ------------------------------------------------------------------------------


def imagenet_transforms():
    cfg = OmegaConf.create({"data": data, "dataloader": {}}, flags={"allow_objects": True})
    cfg.dataloader.transforms = dataloader["train"]["dataset"]["transforms"]
    return instantiate(cfg.dataloader.transforms)


def test_a_sample_depends_on_its_rng_alone():
    transforms = Compose(imagenet_transforms())
    image = photo(120, 160)
    original = image.copy()

    def run(seed, state):
        random.seed(state)
        np.random.seed(state)
        return transforms(image, None, rng(seed))[0]

    results = [run(seed, 0) for seed in range(12)]
    assert all(result.shape == (224, 224, 3) for result in results)
    for seed in reversed(range(12)):
        np.testing.assert_array_equal(run(seed, 1), results[seed])
    assert len({result.tobytes() for result in results}) == 12
    np.testing.assert_array_equal(image, original)


# ---- The data set -----------------------------------------------------------------------------


def put(root, *names, seed=0):
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(noise(12, 16, seed + index)).save(path)


@pytest.fixture
def root(tmp_path):
    put(tmp_path, "train/cat/1.png", "train/cat/more/0.JPEG", "train/ant/x.jpg", "train/bee/b.bmp")
    put(tmp_path, "val/cat/v.png", "val/bee/v.png", seed=10)
    (tmp_path / "train/ant/._x.jpg").write_bytes(b"left by macOS")
    (tmp_path / "train/ant/readme.txt").write_text("not an image")
    (tmp_path / "train/.cache").mkdir()
    return tmp_path


def relative(dataset, root):
    return [image.removeprefix(f"{root}/") for image in dataset.images]


def test_classes_are_those_of_train_in_every_split(root):
    train, val = (ClassificationFolder(root, split, []) for split in ("train", "val"))
    assert train.classes == val.classes == ["ant", "bee", "cat"]
    assert relative(train, root) == [
        "train/ant/x.jpg",
        "train/bee/b.bmp",
        "train/cat/1.png",
        "train/cat/more/0.JPEG",
    ]
    np.testing.assert_array_equal(train.labels, [0, 1, 2, 2])
    assert train.labels.dtype == np.int64 and len(train) == 4
    assert relative(val, root) == ["val/bee/v.png", "val/cat/v.png"]
    np.testing.assert_array_equal(val.labels, [1, 2])


def test_sample(root):
    dataset = ClassificationFolder(root, "val", [])
    image, label = dataset[Draw(1, 77)]
    np.testing.assert_array_equal(image, noise(12, 16, 10).transpose(2, 0, 1))
    assert image.dtype == np.float32 and image.flags.c_contiguous
    assert label == 2 and dataset[Draw(1, 77, valid=False)][1] == -1


def test_class_survives_the_augmentation(root):
    """RandomFlip mirrors label maps, too; a class is none."""
    transforms = imagenet_transforms()
    dataset = ClassificationFolder(root, "val", transforms)
    samples = [dataset[Draw(1, position)] for position in range(8)]
    assert all(type(label) is int and label == 2 for _, label in samples)
    assert all(image.shape == (3, 224, 224) for image, _ in samples)


def test_seed_and_position_decide_the_augmentation(root):
    def sample(seed, position):
        return ClassificationFolder(root, "val", [RandomResizedCrop(8)], seed)[Draw(0, position)][0]

    np.testing.assert_array_equal(sample(1, 5), sample(1, 5))
    assert (sample(1, 5) != sample(2, 5)).any() and (sample(1, 5) != sample(1, 6)).any()


def test_batches_of_an_evaluation(root):
    loader = build_test_loader(ClassificationFolder(root, "train", [ResizeShortSide(8)]), 3)
    labels = [batch.get("labels").tensor.numpy() for batch in loader]
    assert all(array.dtype == np.int64 for array in labels)
    np.testing.assert_array_equal(np.concatenate(labels), [0, 1, 2, 2, -1, -1])


def one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message and all(str(part) in message for part in parts), message


def test_folders_that_are_wrong(root, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(InputError) as error:
        ClassificationFolder(empty, "val", [])
    one_line(error, empty / "train", "no folder of a class", "<class>/<name>.jpg")
    for split in ("vall", "train/ant"):
        with pytest.raises(InputError) as error:
            ClassificationFolder(root, split, [])
        one_line(error, root / split, "no folder of a class", root / "train")
    put(root, "val/dog/1.png")
    with pytest.raises(InputError) as error:
        ClassificationFolder(root, "val", [])
    one_line(error, root / "val", "'dog'", "the 3 of", root / "train")
    (root / "train/dog").mkdir()
    with pytest.raises(InputError) as error:
        ClassificationFolder(root, "train", [])
    one_line(error, root / "train/dog", "no image")


def test_three_channels_and_pixels_as_they_are_stored(root):
    """As torchvision reads them: an orientation is not applied."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = root / "train/ant/x.jpg"
    with PIL.Image.open(path) as file:
        stored = np.asarray(file)
        file.save(path, exif=exif, quality=100)
    dataset = ClassificationFolder(root, "train", [])
    image, _ = dataset.load(dataset.images.index(str(path)))
    assert image.shape == stored.shape and image.shape[0] != image.shape[1]
    with pytest.raises(InputError) as error:
        ClassificationFolder(root, "train", [], num_channels=4)
    one_line(error, "cfg.num_channels=4", "set cfg.num_channels=3")


def test_broken_image(root):
    (root / "train/ant/x.jpg").write_bytes((root / "train/ant/x.jpg").read_bytes()[:300])
    with pytest.raises(InputError) as error:
        ClassificationFolder(root, "train", [])[0]
    one_line(error, root / "train/ant/x.jpg", "damaged, cut short")


# ---- ImageNet -----------------------------------------------------------------------------------

ANT, BEE = "n02219486", "n02206856"
SOLUTION = f"""ImageId,PredictionString
ILSVRC2012_val_00000002,{BEE} 85 1 499 272
ILSVRC2012_val_00000001,{ANT} 110 129 321 300 {ANT} 1 2 3 4
"""


@pytest.fixture
def downloaded(tmp_path):
    """As it is downloaded from Kaggle: `val` is flat, the tables are three folders above."""
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    put(root, f"train/{ANT}/{ANT}_10.JPEG", f"train/{BEE}/{BEE}_7.JPEG")
    put(root, *(f"val/ILSVRC2012_val_0000000{index}.JPEG" for index in (1, 2)), seed=10)
    return tmp_path, root


@pytest.mark.parametrize("above", [0, 3])
def test_flat_val(downloaded, above):
    top, root = downloaded
    ((top if above else root) / "LOC_val_solution.csv").write_text(SOLUTION)
    dataset = ImageNet(root, "val", [])
    assert dataset.classes == [BEE, ANT]  # sorted ids
    assert [dataset.classes[label] for label in dataset.labels] == [ANT, BEE]
    np.testing.assert_array_equal(ImageNet(root, "train", []).labels, [0, 1])


def test_val_in_folders(downloaded):
    _, root = downloaded
    for index, name in ((1, ANT), (2, BEE)):
        (root / "val" / name).mkdir()
        image = f"ILSVRC2012_val_0000000{index}.JPEG"
        (root / "val" / image).rename(root / "val" / name / image)
    dataset = ImageNet(str(root), "val", [])
    assert [dataset.classes[label] for label in dataset.labels] == [BEE, ANT]


def test_readable_names(downloaded):
    top, root = downloaded
    text = f"{ANT} ant, emmet, pismire\n{BEE} bee\nn01440764 tench, Tinca tinca\n"
    (top / "LOC_synset_mapping.txt").write_text(text)
    dataset = ImageNet(root, "train", [])
    assert dataset.classes == [f"{BEE} bee", f"{ANT} ant"]
    np.testing.assert_array_equal(dataset.labels, [0, 1])


def test_flat_val_without_its_classes(downloaded):
    _, root = downloaded
    with pytest.raises(InputError) as error:
        ImageNet(root, "val", [])
    one_line(error, root / "val", "2 images", "LOC_val_solution.csv", "val/<WordNet id>/")
    (root / "LOC_val_solution.csv").write_text(SOLUTION.replace("00000002", "00000003"))
    with pytest.raises(InputError) as error:
        ImageNet(root, "val", [])
    one_line(error, root / "LOC_val_solution.csv", "ILSVRC2012_val_00000002.JPEG", "1 of 2")
