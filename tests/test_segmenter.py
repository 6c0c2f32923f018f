"""Use from Python: what transformers' model says of the same images, however they are given."""

import json
import shutil

import numpy as np
import oneflow as flow
import pytest
import torch
import transformers
from PIL import Image
from test_prediction import ODD, huggingface, labels_of, photo

from conftest import CLASSES as NAMES
from conftest import run_tool
from projects.SegFormer.dataset.folder import distinct_palette
from projects.SegFormer.dataset.label_sources.shapes import decode_rle
from projects.SegFormer.evaluation.inference import Inference
from projects.SegFormer.evaluation.picture_inputs import BATCH
from projects.SegFormer.evaluation.segmenter import (
    KINDS,
    Segmentation,
    Segmenter,
    checked_kinds,
    class_indices,
)
from projects.SegFormer.evaluation.visualize import contours
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


@pytest.mark.parametrize(
    "name, words",
    [
        ("nowhere", "no weights at .*nowhere: neither a file nor a folder"),
        ("empty", "no weights in .*empty: .* it is empty"),
        ("begun", "no weights in .*begun: .* it holds config.yaml"),
        ("photo.png", "photo.png is no PyTorch file"),
        ("gone.onnx", "no file .*gone.onnx: expected a model.onnx"),
    ],
)
def test_no_weights(trained, tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    shutil.copy(trained / "config.yaml", tmp_path / "begun")
    photo(tmp_path / "photo.png")
    with pytest.raises(InputError, match=words):
        Segmenter(tmp_path / name)


def test_overlay(segmenter, tmp_path):
    picture = photo(tmp_path / "photo.png")
    result = segmenter(picture)
    np.testing.assert_array_equal(result.overlay(opacity=0, legend=False), picture)
    colours = result.overlay(opacity=1, legend=False)
    expected = np.array(result.palette, np.uint8)[result.labels]
    expected[contours(result.labels)] = 255
    np.testing.assert_array_equal(colours, expected)
    assert result.overlay().shape[1] > picture.shape[1]
    with pytest.raises(InputError, match="opacity=55: expected a number from 0 to 1"):
        result.overlay(opacity=55)


def test_a_subset_of_classes_is_drawn(segmenter, tmp_path):
    """The others are the plain image, and black in the colours; label files have all."""
    picture = photo(tmp_path / "photo.png")
    result = segmenter(picture)
    first, second = np.argsort(-np.bincount(result.labels.ravel()))[:2]
    names = [result.classes[second].upper() + " "]
    others = result.labels != second
    assert others.any() and not others.all()
    shown = result.overlay(opacity=1, legend=False, classes=names)
    line = contours(np.where(others, 0, 1))
    np.testing.assert_array_equal(shown[others & ~line], picture[others & ~line])
    assert (shown[~others & ~line] == result.palette[second]).all()
    assert result.polygons(names)["features"]
    for feature in result.polygons(names)["features"]:
        assert feature["properties"]["index"] == second
    whole = result.overlay(opacity=1, legend=False)
    inner = (result.labels == first) & ~contours(result.labels)
    assert inner.any() and (whole[inner] == result.palette[first]).all()

    result.save(tmp_path / "some", "a", KINDS, classes=names)
    result.save(tmp_path / "all", "a", KINDS)
    colours = np.asarray(Image.open(tmp_path / "some" / "a_colors.png"))
    assert not colours[others].any() and (colours[~others] == result.palette[second]).all()
    same = {"a_labels.png", "a_probabilities.png"}
    for path in (tmp_path / "all").iterdir():
        is_same = path.read_bytes() == (tmp_path / "some" / path.name).read_bytes()
        assert is_same == (path.name in same)
    masks = json.loads((tmp_path / "some" / "a_rle.json").read_text())
    assert [mask["category_id"] for mask in masks] == [second]
    (mask,) = masks
    np.testing.assert_array_equal(decode_rle(mask["segmentation"]["counts"], 90, 130), ~others)


def test_all_kinds_of_results(segmenter, tmp_path):
    photo(tmp_path / "photo.png")
    result = segmenter(tmp_path / "photo.png")
    result.save(tmp_path / "out", kinds=["polygons", "probabilities"], opacity=0.1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("photo.geojson", "photo_rle.json", "photo_probabilities.png")
    }
    with Image.open(tmp_path / "out" / "photo_probabilities.png") as picture:
        assert picture.mode == "I;16"
        stored = np.asarray(picture) / 65535
    np.testing.assert_allclose(stored, result.confidence, rtol=0, atol=1 / 65535)
    polygons = json.loads((tmp_path / "out" / "photo.geojson").read_text())
    assert polygons == result.polygons()
    areas = np.zeros(CLASSES, int)
    for feature in polygons["features"]:
        areas[feature["properties"]["index"]] += feature["properties"]["area"]
    np.testing.assert_array_equal(areas, np.bincount(result.labels.ravel(), minlength=CLASSES))


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(kinds=["labels", "polygon"]), "a result 'polygon': expected some of labels, colors"),
        (dict(opacity="0.5"), "opacity='0.5': expected a number from 0 to 1"),
        (dict(opacity=float("nan")), "opacity=nan: expected a number from 0 to 1"),
        (dict(classes=["thing 1", "tihng 4"]), "no class is called 'tihng 4': .*nearest.* thing 4"),
    ],
)
def test_wrong_options_of_results_are_told(segmenter, tmp_path, options, words):
    result = segmenter(photo(tmp_path / "photo.png"))
    with pytest.raises(InputError, match=words):
        result.save(tmp_path, **options)


@pytest.mark.parametrize("classes, dtype", [(255, np.uint8), (256, np.uint16)])
def test_label_files_of_8_and_of_16_bits(tmp_path, classes, dtype):
    """In 8 bits 255 is what people take for no class."""
    logits = np.zeros((1, classes, 2, 2), np.float32)
    logits[:, -1] = 1
    everywhere = dict(placement=flow.placement("cpu", [0]), sbp=flow.sbp.broadcast)
    scores = {"prediction_scores": flow.tensor(logits, **everywhere)}
    image = np.zeros((1, 3, 32, 32), np.float32)
    views = Inference().views(lambda images: scores, image, (32, 32))
    names, palette = [str(index) for index in range(classes)], distinct_palette(classes)
    result = Segmentation(np.zeros((32, 32, 3), np.uint8), views, names, palette, "a")
    result.save(tmp_path)
    with Image.open(tmp_path / "a_labels.png") as picture:
        labels = np.asarray(picture)
    assert labels.dtype == result.labels.dtype == dtype and (labels == classes - 1).all()
    colours = np.asarray(Image.open(tmp_path / "a_colors.png"))
    assert (colours == palette[-1]).all()


def test_options_of_the_tool(segmenter, weights, tmp_path, capsys):
    photo(tmp_path / "photo.png")
    result = segmenter(tmp_path / "photo.png")
    result.save(tmp_path / "api", None, ["overlay", "polygons"], 0.8, ["thing 1", "thing 3"])
    arguments = ["--weights", str(weights), str(tmp_path / "photo.png"), "--output"]
    options = ["--save", "polygons, overlay", "--opacity", "0.8", "--classes", "Thing 3,thing 1"]
    assert predict.main([*arguments, str(tmp_path / "tool"), *options]) == 0
    written = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("api", "tool")
    ]
    assert len(written[0]) == 3 and written[0] == written[1]
    for options in (
        ["--save", "label"],
        ["--opacity", "55"],
        ["--classes", "thing,thing 1"],
        ["--classes", ""],
    ):
        with pytest.raises(InputError):
            predict.main([*arguments, str(tmp_path / "wrong"), *options])
    with pytest.raises(InputError, match="an image's name is empty"):
        predict.main(["--weights", str(weights), "", "--output", str(tmp_path / "wrong")])
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32, 3), np.float32),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((1, 32, 32, 3), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}-{image.ndim}-{image.shape[0]}",
)
def test_what_is_no_image_is_told(segmenter, image):
    with pytest.raises(InputError, match=r"expected an image \(height, width, 3\) of uint8"):
        segmenter(image)


@pytest.mark.parametrize("image", [b"\xff\xd8", 3, None, [3]], ids=repr)
def test_other_types_are_told(segmenter, image):
    with pytest.raises(InputError, match="an image of type .*: expected a path"):
        list(segmenter(image))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pictures_of_other_depths_are_told(segmenter, mode):
    with pytest.raises(InputError, match=f"of mode {mode}: expected 8 bits a channel"):
        segmenter(Image.new(mode, (32, 32)))


def test_what_comes_before_a_bad_image_is_done(segmenter):
    image, names = np.zeros((32, 32, 3), np.uint8), []
    with pytest.raises(InputError, match="nothing.png"):
        names.extend(result.name for result in segmenter([image, image, "nothing.png", image]))
    assert len(names) == 2


def test_one_name_is_no_list_of_letters():
    assert class_indices("thing 1", ["thing 0", "thing 1"]) == [1]
    assert checked_kinds("labels") == ["labels"]


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
