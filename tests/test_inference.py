"""Inference modes against straightforward NumPy and PyTorch forms."""

import numpy as np
import oneflow as flow
import pytest
import torch

from projects.SegFormer.evaluation import inference as module
from projects.SegFormer.evaluation.inference import Inference
from projects.SegFormer.modeling.errors import InputError

CLASSES = 5


class Network:
    """Stands in for a model: logits at a quarter of the size that depend on what a window sees.

    A local mean of the image and a share of the mean of the whole window, so that a window gives
    other logits than the whole image, and a mirrored image not the mirrored logits.
    """

    def __init__(self):
        rng = np.random.default_rng(0)
        self.local = rng.normal(size=(3, CLASSES)).astype(np.float32)
        self.overall = rng.normal(size=(3, CLASSES)).astype(np.float32)
        self.sizes = []

    def __call__(self, images):
        images = images.numpy()
        self.sizes.append(images.shape[-2:])
        logits = flow.from_numpy(self.logits(images))
        placement = flow.placement("cpu", [0])
        return {"prediction_scores": logits.to_global(placement, flow.sbp.broadcast)}

    def logits(self, images: np.ndarray) -> np.ndarray:
        """(N, 3, H, W) -> (N, CLASSES, ceil(H / 4), ceil(W / 4))."""
        n, _, height, width = images.shape
        padded = np.pad(images, ((0, 0), (0, 0), (0, -height % 4), (0, -width % 4)), mode="edge")
        blocks = padded.reshape(n, 3, padded.shape[2] // 4, 4, padded.shape[3] // 4, 4)
        left = np.linspace(1, 2, blocks.shape[4], dtype=np.float32)  # not symmetric
        local = np.einsum("nchw,ck->nkhw", blocks.mean((3, 5)) * left, self.local)
        overall = np.einsum("nc,ck->nk", images.mean((2, 3)), self.overall)
        return np.ascontiguousarray(local + overall[..., None, None], dtype=np.float32)


def interpolate(x: np.ndarray, size) -> np.ndarray:
    tensor = torch.from_numpy(np.ascontiguousarray(x, np.float64))
    kwargs = dict(mode="bilinear", align_corners=False)
    return torch.nn.functional.interpolate(tensor, size=tuple(size), **kwargs).numpy()


def whole_logits(network, images):
    """At the size of the images."""
    return interpolate(network.logits(images), images.shape[-2:])


def slide_logits(network, images, crop, stride):
    """Every window's logits are added to a sum; it is divided by how often each pixel was seen."""
    n, _, height, width = images.shape
    total = np.zeros((n, CLASSES, height, width), np.float64)
    count = np.zeros((height, width))
    crop_height, crop_width = min(crop[0], height), min(crop[1], width)
    top = 0
    while True:
        top = min(top, height - crop_height)
        left = 0
        while True:
            left = min(left, width - crop_width)
            window = (slice(top, top + crop_height), slice(left, left + crop_width))
            total[(..., *window)] += whole_logits(network, images[(..., *window)])
            count[window] += 1
            if left == width - crop_width:
                break
            left += stride[1]
        if top == height - crop_height:
            break
        top += stride[0]
    assert count.min() > 0
    return (total / count).astype(np.float32)


def softmax(x):
    x = np.exp(x - x.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def images_of(height, width, n=1, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(n, 3, height // 8 + 2, width // 8 + 2)).astype(np.float32)
    fine = rng.normal(0, 0.1, (n, 3, height, width))
    return (interpolate(coarse, (height, width)) + fine).astype(np.float32)


def values(inference, network, images, size):
    """What the arg max is taken of, (N, CLASSES, *size)."""
    views = [
        inference._view(network, images, scale, mirrored, tuple(size))
        for scale in inference.scales
        for mirrored in ((False, True) if inference.flip else (False,))
    ]
    return module._scores(views, slice(0, size[0]), slice(0, size[1])).transpose(0, 3, 1, 2)


SLIDES = [
    ((64, 96), (64, 64), (48, 48)),
    ((100, 130), (64, 48), (40, 30)),
    ((70, 50), (64, 64), (64, 64)),  # one side shorter than the window
    ((40, 45), (64, 64), (48, 48)),  # smaller than the window
    ((97, 64), (32, 32), (1, 32)),
    ((129, 65), (64, 64), (64, 64)),  # a last window of one new row
]


@pytest.mark.parametrize("size, crop, stride", SLIDES)
@pytest.mark.parametrize("result", [None, (50, 77), (150, 99)])
def test_slide_equals_the_straightforward_form(size, crop, stride, result):
    network, images = Network(), images_of(*size, n=2)
    expected = slide_logits(network, images, crop, stride)
    expected = interpolate(expected, result or size)
    found = values(Inference(crop, stride), network, images, result or size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    labels = Inference(crop, stride)(network, images, result or size)
    assert labels.shape == (2, *(result or size)) and labels.dtype == np.int64
    np.testing.assert_array_equal(labels, found.argmax(1))


@pytest.mark.parametrize("size", [(64, 96), (70, 50), (33, 47)])
def test_one_window_is_whole_inference(size):
    network, images = Network(), images_of(*size)
    whole = values(Inference(), network, images, size)
    np.testing.assert_allclose(whole, whole_logits(network, images), rtol=0, atol=1e-5)
    for crop in (size, (128, 128)):
        crop = tuple(max(side, 32) for side in crop)
        np.testing.assert_array_equal(values(Inference(crop), network, images, size), whole)
    assert len(set(network.sizes)) == 1


def test_windows_give_something_else_than_the_whole():
    """Or the tests above would hold for a slide that does not slide."""
    network, images = Network(), images_of(128, 128)
    difference = slide_logits(network, images, (64, 64), (48, 48)) - whole_logits(network, images)
    assert np.abs(difference).max() > 0.1


@pytest.mark.parametrize("mode", [{}, dict(crop_size=(64, 64), stride=(48, 40))])
def test_one_scale_without_flip_is_no_augmentation(mode):
    network, images = Network(), images_of(100, 80)
    plain = Inference(**mode)(network, images, (110, 90))
    one = Inference(**mode, scales=[1.0], flip=False)(network, images, (110, 90))
    np.testing.assert_array_equal(one, plain)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [None, (48, 48)])
def test_augmentation_averages_probabilities(flip, crop):
    network, images, size = Network(), images_of(64, 80, n=2), (90, 100)
    expected = []
    for scale in (0.75, 1.0, 1.5):
        scaled = interpolate(images, (int(64 * scale), int(80 * scale)))
        for mirrored in (False, True) if flip else (False,):
            seen = scaled[..., ::-1] if mirrored else scaled
            logits = slide_logits(network, seen, crop or seen.shape[-2:], crop or (1, 1))
            logits = logits[..., ::-1] if mirrored else logits
            expected.append(softmax(interpolate(logits, size)))
    found = values(Inference(crop, scales=[0.75, 1.0, 1.5], flip=flip), network, images, size)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=0, atol=1e-5)


def test_flip_alone_is_symmetric():
    """What is averaged over both views of an image mirrors that of the mirrored one."""
    network, images = Network(), images_of(64, 72)
    both = values(Inference(flip=True), network, images, (64, 72))
    mirrored = values(Inference(flip=True), network, images[..., ::-1], (64, 72))
    np.testing.assert_allclose(mirrored[..., ::-1], both, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "source, kwargs, expected",
    [
        ((360, 480), {}, (360, 480)),
        ((360, 480), dict(resize=(512, 2048)), (512, 683)),
        ((480, 360), dict(resize=(512, 2048), divisor=32), (704, 512)),
        ((1024, 2048), dict(resize=(1024, 2048)), (1024, 2048)),
        ((360, 480), dict(resize=(512, 2048), divisor=32, scales=[0.5]), (256, 352)),
        ((101, 51), dict(scales=[0.5]), (51, 26)),
    ],
)
def test_size_that_the_network_sees(source, kwargs, expected):
    network, inference = Network(), Inference(**kwargs)
    assert inference.input_size(source, inference.scales[0]) == expected
    inference(network, images_of(*source), (64, 64))
    assert network.sizes == [tuple(max(side, 32) for side in expected)]


@pytest.mark.parametrize("size", [(7, 9), (20, 100), (1, 1), (31, 33)])
def test_small_images_are_padded(size):
    network, images = Network(), images_of(*size)
    padded = np.pad(images, ((0, 0), (0, 0), (0, max(0, 32 - size[0])), (0, max(0, 32 - size[1]))))
    expected = whole_logits(network, padded)[..., : size[0], : size[1]]
    found = values(Inference(), network, images, size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_tiles_change_nothing(monkeypatch):
    network, images = Network(), images_of(70, 90, n=2)
    inference = Inference((64, 64), (40, 40), scales=[0.8, 1.0], flip=True)
    at_once = inference(network, images, (81, 103))
    monkeypatch.setattr(module, "TILE_VALUES", 11 * 11 * 2 * CLASSES)
    np.testing.assert_array_equal(inference(network, images, (81, 103)), at_once)


def test_operators_of_oneflow(monkeypatch):
    """What a GPU computes with gives the same as NumPy, which a CPU does."""
    network, images = Network(), images_of(70, 90, n=2)
    inference, size = Inference((64, 64), (40, 40), scales=[0.8, 1.0], flip=True), (81, 103)
    expected = values(inference, network, images, size)
    on_cpu = module._local_logits

    def tensor(*arguments):
        return flow.tensor(np.ascontiguousarray(on_cpu(*arguments)))

    monkeypatch.setattr(module, "_local_logits", tensor)
    views = inference._view(network, images, 1.0, False, size)
    assert all(isinstance(window.logits, flow.Tensor) for window in views)
    found = module._scores([views, views], slice(0, 81), slice(0, 103))
    assert isinstance(found, flow.Tensor)
    labels = inference(network, images, size)
    gap = np.diff(np.sort(expected, axis=1)[:, -2:], axis=1)[:, 0]  # where it is no tie
    assert (labels == expected.argmax(1))[gap > 1e-6].all() and (gap > 1e-6).mean() > 0.99


def test_tiles_of_a_pixel(monkeypatch):
    network, images = Network(), images_of(40, 40)
    at_once = Inference()(network, images, (9, 7))
    monkeypatch.setattr(module, "TILE_VALUES", 1)
    np.testing.assert_array_equal(Inference()(network, images, (9, 7)), at_once)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(crop_size=(48, 64)),
        dict(crop_size=(48, 64), stride=(20, 33), scales=(0.5, 1.0, 1.75), flip=True),
        dict(resize=(40, 200), divisor=32, flip=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(40, 50), (97, 131)])
def test_passes_are_how_often_the_network_runs(settings, size):
    network, inference = Network(), Inference(**settings)
    inference(network, np.zeros((1, 3, *size), np.float32), size)
    assert inference.passes(size) == len(network.sizes)


@pytest.mark.slow
def test_memory_of_a_large_image():
    """Logits of 150 classes at 2000x3000 would be 3.6 GB; a tile is 4 MB."""

    class Constant(Network):
        def logits(self, images):
            n, _, height, width = images.shape
            return np.zeros((n, 150, -(-height // 4), -(-width // 4)), np.float32)

    before = peak_memory()
    images = np.zeros((1, 3, 2000, 3000), np.float32)
    labels = Inference(resize=(512, 2048), divisor=32)(Constant(), images, (2000, 3000))
    assert labels.shape == (1, 2000, 3000)
    assert peak_memory() - before < 1.2e9


def peak_memory() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(stride=(4, 4)), "without inference.crop_size"),
        (dict(crop_size=(64, 64), stride=(65, 64)), "larger than inference.crop_size"),
        (dict(crop_size=(16, 64)), "must be 32 or more"),
        (dict(crop_size=(64,)), r"inference.crop_size=\[64\]: expected \[height, width\]"),
        (dict(crop_size=64), r"inference.crop_size=\[64\]"),
        (dict(crop_size=(64, 64), stride=(0, 64)), r"inference.stride=\[0, 64\]"),
        (dict(resize=(512.5, 2048)), r"inference.resize=\[512.5, 2048\]"),
        (dict(scales=[]), r"inference.scales=\[\]"),
        (dict(scales=[1.0, -1]), "expected positive"),
        (dict(divisor=0), "inference.divisor=0"),
    ],
)
def test_settings_that_make_no_sense(kwargs, message):
    with pytest.raises(InputError, match=message) as error:
        Inference(**kwargs)
    assert "\n" not in str(error.value)
