"""Use from Python: what transformers' model says of the same images, however they are given."""

import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_prediction import ODD, huggingface, labels_of, photo

from conftest import CLASSES as NAMES
from conftest import run_tool
from projects.SegFormer.evaluation.picture_inputs import BATCH
from projects.SegFormer.evaluation.segmenter import Segmenter
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.weight_writers import write_official
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.tools import export, predict

CLASSES = 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmenter") / "weights"
    huggingface(folder, CLASSES, dict(do_resize=False, **ODD))
    return folder


@pytest.fixture(scope="module")
def segmenter(weights):
    return Segmenter(weights)


def probabilities(weights, picture: np.ndarray) -> np.ndarray:
    """transformers' (H, W, classes) of an image whose sides divide by 32."""
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(weights).eval()
    processor = transformers.SegformerImageProcessor.from_pretrained(weights)
    with torch.no_grad():
        logits = model(**processor(picture, return_tensors="pt")).logits
    logits = torch.nn.functional.interpolate(logits, size=picture.shape[:2], mode="bilinear")
    return logits.softmax(1)[0].permute(1, 2, 0).numpy()


def test_probabilities_and_labels(segmenter, weights, tmp_path):
    picture = photo(tmp_path / "photo.png", 96, 128)
    expected = probabilities(weights, picture)
    result = segmenter(tmp_path / "photo.png")
    np.testing.assert_allclose(result.probabilities, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(result.confidence, expected.max(-1), rtol=0, atol=2e-5)
    best = np.sort(expected)[..., -2:]
    clear = best[..., 1] - best[..., 0] > 1e-4
    np.testing.assert_array_equal(result.labels[clear], expected.argmax(-1)[clear])
    assert clear.mean() > 0.99 and len(np.unique(result.labels)) > 1
    assert result.labels.dtype == np.uint8 and result.name == "photo"
    assert result.classes == segmenter.classes == [f"thing {index}" for index in range(CLASSES)]


def test_paths_arrays_and_pillows_are_one(segmenter, tmp_path):
    picture = photo(tmp_path / "photo.png")
    labels = segmenter(str(tmp_path / "photo.png")).labels
    for image in (picture, Image.fromarray(picture), Image.fromarray(picture).convert("RGBA")):
        result = segmenter(image)
        np.testing.assert_array_equal(result.labels, labels)
        assert result.name == "image"


def test_several_come_as_they_are_asked_for(segmenter, tmp_path):
    """In their order; neighbours of one size go through the network together."""
    sizes = [(64, 96)] * (BATCH + 2) + [(96, 64), (64, 96)]
    pictures = []
    for index, size in enumerate(sizes):
        pictures.append(photo(tmp_path / f"{index}.png", *size) // 2 + 10 * index)
    runs = []
    segmenter.prediction.model.register_forward_hook(lambda *_: runs.append(1))
    taken = []
    results = segmenter(taken.append(index) or picture for index, picture in enumerate(pictures))
    assert not taken
    found = [result.labels for result in results]
    assert len(runs) == 4
    assert len(found) == len(pictures)
    for labels, picture in zip(found, pictures):
        alone = segmenter(picture).labels
        assert labels.shape == alone.shape and (labels != alone).mean() < 1e-3


def test_views_are_averaged(weights, tmp_path):
    """Of a picture and its mirror image: the mean of both probabilities."""
    picture = photo(tmp_path / "photo.png", 96, 128)
    result = Segmenter(weights, overrides=["inference.flip=True"])(picture)
    mirrored = probabilities(weights, np.ascontiguousarray(picture[:, ::-1]))[:, ::-1]
    expected = (probabilities(weights, picture) + mirrored) / 2
    np.testing.assert_allclose(result.probabilities, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(result.confidence, expected.max(-1), rtol=0, atol=2e-5)


def test_files_are_those_of_the_tool(segmenter, weights, tmp_path):
    photo(tmp_path / "photo.png")
    segmenter(tmp_path / "photo.png").save(tmp_path / "api")
    arguments = ["--weights", str(weights), "--output", str(tmp_path / "tool")]
    assert predict.main([*arguments, str(tmp_path / "photo.png")]) == 0
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("api", "tool")
    ]
    assert len(written[0]) == 3 and written[0] == written[1]
    segmenter(tmp_path / "photo.png").save(tmp_path / "api", "other")
    assert (labels_of(tmp_path / "api", "other") == labels_of(tmp_path / "tool")).all()


def test_onnx_file(segmenter, weights, tmp_path):
    export.main(["--weights", str(weights), "--output", str(tmp_path / "model.onnx")])
    picture = photo(tmp_path / "photo.png", 96, 128)
    result = Segmenter(tmp_path / "model.onnx")(picture)
    expected = segmenter(picture)
    np.testing.assert_allclose(result.probabilities, expected.probabilities, rtol=0, atol=2e-5)
    assert result.classes == expected.classes


def test_a_part_of_a_checkpoint(trained, tmp_path):
    """Averaged weights, as train.ema keeps them in a checkpoint."""
    picture = photo(tmp_path / "photo.png")
    shutil.copytree(trained / "model_best", tmp_path / "run" / "model_best")
    shutil.copytree(trained / "model_best" / "model", tmp_path / "run" / "model_best" / "ema")
    shutil.copy(trained / "config.yaml", tmp_path / "run")
    result = Segmenter(tmp_path / "run" / "model_best" / "ema")(picture)
    np.testing.assert_array_equal(result.labels, Segmenter(trained)(picture).labels)
    assert result.classes == list(NAMES)


def test_a_file_of_the_papers_authors(trained, tmp_path):
    picture = photo(tmp_path / "photo.png")
    file, config = str(tmp_path / "segformer.pth"), str(trained / "config.yaml")
    model = Segmenter(trained).prediction.model
    write_official(file, state_of(model), list(NAMES))
    result = Segmenter(file, config)(picture)
    assert (result.labels == Segmenter(trained)(picture).labels).mean() > 0.99
    with pytest.raises(InputError, match="does not say how it is used.*--config"):
        Segmenter(file)


def test_overlay(segmenter, tmp_path):
    picture = photo(tmp_path / "photo.png")
    result = segmenter(picture)
    np.testing.assert_array_equal(result.overlay(opacity=0, legend=False), picture)
    colours = result.overlay(opacity=1, legend=False)
    np.testing.assert_array_equal(colours, np.array(result.palette, np.uint8)[result.labels])
    assert result.overlay().shape[1] > picture.shape[1]
    with pytest.raises(InputError, match="opacity=55: expected a number from 0 to 1"):
        result.overlay(opacity=55)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32, 3), np.float32),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((1, 32, 32, 3), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}-{image.ndim}-{image.shape[0]}",
)
def test_what_is_no_image_is_told(segmenter, image):
    with pytest.raises(InputError, match=r"expected an image \(height, width, 3\) of uint8"):
        segmenter(image)


def test_missing_file_is_told(segmenter, tmp_path):
    with pytest.raises(InputError, match="nothing.png"):
        segmenter(tmp_path / "nothing.png")


def test_the_example_of_the_module(weights, tmp_path):
    """In a program of its own, which has imported nothing else."""
    photo(tmp_path / "photo.png")
    code = (
        "from projects.SegFormer.evaluation.segmenter import Segmenter\n"
        f"segmenter = Segmenter({str(weights)!r})\n"
        f"result = segmenter({str(tmp_path / 'photo.png')!r})\n"
        f"result.save({str(tmp_path / 'predictions')!r})\n"
    )
    process = run_tool("-c", code)
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "predictions").iterdir())) == 3
