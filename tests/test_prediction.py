"""Prediction by what lies beside the weights, and of folders and images as people have them."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import transformers
from PIL import Image

from conftest import CLASSES, CONFIG, tiny_run
from projects.SegFormer.evaluation import picture_inputs
from projects.SegFormer.evaluation import prediction as module
from projects.SegFormer.evaluation.prediction import disagreements, prediction_of
from projects.SegFormer.evaluation.result_files import ResultFiles, check_folder
from projects.SegFormer.model_utils.beside_weights import Beside, Scaled, beside_weights
from projects.SegFormer.model_utils.onnx_metadata import beside_onnx
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.tools import export, predict
from projects.SegFormer.tools.predict import find_images, is_override

TINY = dict(
    depths=[1, 1, 1, 1],
    hidden_sizes=[16, 16, 32, 32],
    num_attention_heads=[1, 1, 1, 4],
    decoder_hidden_size=32,
    initializer_range=0.2,
)


def huggingface(folder: Path, classes: int, processor: dict | None = None, seed: int = 0):
    """transformers' own model of random weights, saved, and its image processor."""
    torch.manual_seed(seed)
    names = {index: f"thing {index}" for index in range(classes)}
    config = transformers.SegformerConfig(**TINY, num_labels=classes, id2label=names)
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def photo(path: Path, height: int = 90, width: int = 130) -> np.ndarray:
    """A smooth picture with some noise, saved."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (9, 13, 3)).astype(np.uint8), (width, height))
    picture = (picture * 0.8 + rng.integers(0, 50, picture.shape)).astype(np.uint8)
    Image.fromarray(picture).save(path)
    return picture


def labels_of(output: Path, name: str = "photo") -> np.ndarray:
    return cv2.imread(str(output / f"{name}_labels.png"), cv2.IMREAD_UNCHANGED)


ODD = dict(image_mean=[0.3, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
PROCESSORS = {
    "bilinear": dict(size={"height": 64, "width": 96}, **ODD),
    "nearest": dict(size={"height": 64, "width": 96}, resample=0, **ODD),
    "lanczos": dict(size={"height": 64, "width": 96}, resample=1, **ODD),
    "bicubic": dict(size={"height": 160, "width": 96}, resample=3, **ODD),
    "whole": dict(do_resize=False, **ODD),
    "not_rescaled": dict(
        do_resize=False, do_rescale=False, image_mean=[90.0] * 3, image_std=[60.0] * 3
    ),
    "not_normalised": dict(do_resize=False, do_normalize=False),
    "another_factor": dict(do_resize=False, rescale_factor=1 / 127.5, **ODD),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_folder_of_hugging_face_alone(tmp_path, kind):
    """What lies beside the weights counts: the labels are those of transformers' own pipeline."""
    model = huggingface(tmp_path / "weights", 7, PROCESSORS[kind])
    picture = photo(tmp_path / "photo.png")
    output = tmp_path / "output"
    arguments = ["--weights", str(tmp_path / "weights"), "--output", str(output)]
    assert predict.main([*arguments, str(tmp_path / "photo.png")]) == 0

    processor = transformers.SegformerImageProcessor(**PROCESSORS[kind])
    inputs = processor(picture, return_tensors="pt")
    images = prediction_of(None, str(tmp_path / "weights"), []).network_input(picture)
    np.testing.assert_allclose(images, inputs["pixel_values"].numpy(), rtol=0, atol=1e-4)
    with torch.no_grad():
        logits = model(**inputs).logits
    logits = torch.nn.functional.interpolate(logits, size=picture.shape[:2], mode="bilinear")[0]
    best, second = logits.topk(2, dim=0).values
    labels = labels_of(output)
    wrong = labels != logits.argmax(0).numpy()
    assert len(np.unique(labels)) > 1
    # transformers interpolates once more, from the network's input to the image: between classes.
    assert wrong.mean() < 0.03
    assert not wrong[(best - second > 0.1 * logits.std()).numpy()].any()


def test_more_classes_than_8_bits_hold(tmp_path):
    model = huggingface(tmp_path / "weights", 300, dict(do_resize=False))
    with torch.no_grad():
        model.decode_head.classifier.bias[:256] = -100
    model.save_pretrained(tmp_path / "weights")
    photo(tmp_path / "photo.png")
    output = tmp_path / "output"
    arguments = ["--weights", str(tmp_path / "weights" / "model.safetensors"), "--output"]
    assert predict.main([*arguments, str(output), str(tmp_path / "photo.png")]) == 0
    labels = labels_of(output)
    assert labels.dtype == np.uint16 and labels.min() >= 256 and labels.max() < 300
    colours = np.array(module.distinct_palette(300), np.uint8)
    np.testing.assert_array_equal(
        cv2.imread(str(output / "photo_colors.png"))[..., ::-1], colours[labels]
    )


def test_what_has_to_be_assumed_is_told(tmp_path, capsys):
    huggingface(tmp_path / "weights", 3)
    images = prediction_of(None, str(tmp_path / "weights"), []).network_input(
        np.full((32, 40, 3), 128, np.uint8)
    )
    expected = (128 - np.array([123.675, 116.28, 103.53])) / (58.395, 57.12, 57.375)
    np.testing.assert_allclose(images[0, :, 0, 0], expected, rtol=1e-6)
    assert "note: " in (told := capsys.readouterr().err) and "ImageNet's are taken" in told
    processor = dict(do_resize=False, reduce_labels=True, **ODD)
    (tmp_path / "weights" / "preprocessor_config.json").write_text(json.dumps(processor))
    prediction_of(None, str(tmp_path / "weights"), [])
    told = capsys.readouterr().err
    assert "counts classes from 1" in told and "ImageNet" not in told


def test_scaled_to_the_shorter_side():
    picture = np.zeros((60, 90, 4), np.uint8)
    assert Scaled(30, 2)(picture, None, None)[0].shape == (30, 45, 4)
    with pytest.raises(InputError, match="more than .* pixels"):
        Scaled(2**15, 2)(np.zeros((1, 20, 3), np.uint8), None, None)


@pytest.mark.parametrize(
    "processor, words",
    [
        ({"image_mean": "abc"}, "image_mean is no list of numbers"),
        ({"image_std": [0, 1, 1]}, "image_std must be above 0"),
        ({"image_std": [float("nan")] * 3}, "image_std is no list"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"rescale_factor": "x"}, "rescale_factor is no list"),
        ({"resample": 99}, "resample is 99"),
        ({"resample": [2]}, "resample is"),
        ({"size": {"height": 512}}, "size is"),
        ({"size": 10**9}, "size is 1000000000"),
        ({"size": {"height": True, "width": 5}}, "size is"),
    ],
)
def test_image_processors_that_make_no_sense(tmp_path, processor, words):
    config = {"model_type": "segformer", "id2label": {"0": "a", "1": "b"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(InputError, match=f"preprocessor_config.json: .*{words}"):
        beside_weights(str(tmp_path))


@pytest.mark.parametrize("value", ["abc", '"abc"', "[1]", "{", "[" * 10_000, '{"a": 1}'])
@pytest.mark.parametrize("name", ["classes", "mean"])
def test_metadata_that_makes_no_sense(name, value):
    if (name, value) == ("mean", "[1]"):
        assert beside_onnx({name: value}, "x.onnx").mean == [1.0]
    else:
        with pytest.raises(InputError, match="the metadata of x.onnx: "):
            beside_onnx({name: value, "other": "{"}, "x.onnx")


def test_what_a_training_leaves_is_enough(trained, folder_data, tmp_path):
    """Its output folder, or a checkpoint in it, alone or with the config: the same pictures."""
    image = str(folder_data / "images" / "val" / "00.png")
    written = []
    best = ["--weights", str(trained / "model_best")]
    for number, arguments in enumerate(
        ([*best, "--config", str(trained / "config.yaml")], best, ["--weights", str(trained)])
    ):
        output = tmp_path / str(number)
        assert predict.main([*arguments, "--output", str(output), image]) == 0
        written.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert len(written[0]) == 3 and written[0] == written[1] == written[2]


@pytest.fixture(scope="module")
def model_onnx(tmp_path_factory, folder_data) -> tuple[Path, Path]:
    """A model of three classes as a folder of Hugging Face and as an ONNX file, of an odd mean."""
    root = tmp_path_factory.mktemp("onnx")
    huggingface(root / "weights", 3, dict(do_resize=False, **ODD))
    changes = ["data.mean=[76.5,127.5,153]", "data.std=[51,76.5,102]"]
    arguments = ["--config", CONFIG, "--weights", str(root / "weights"), "--output"]
    export.main(
        [*arguments, str(root / "model.onnx"), *tiny_run(folder_data, root / "run", *changes)]
    )
    return root / "weights", root / "model.onnx"


def test_an_onnx_file_alone(model_onnx, tmp_path):
    """Its own mean, std and classes count, which are those beside the weights that it is of."""
    photo(tmp_path / "photo.png")
    written = []
    for file in model_onnx:
        output = tmp_path / file.name
        arguments = ["--weights", str(file), "--output", str(output)]
        assert predict.main([*arguments, str(tmp_path / "photo.png"), "inference.flip=True"]) == 0
        written.append((output / "photo_labels.png").read_bytes())
    assert written[0] == written[1] and len(np.unique(labels_of(output))) > 1
    made = prediction_of(None, str(model_onnx[1]), [])
    assert made.classes == list(CLASSES)


def test_export_of_a_folder_alone(model_onnx, tmp_path):
    output = tmp_path / "model.onnx"
    arguments = ["--weights", str(model_onnx[0]), "--output", str(output)]
    with pytest.raises(InputError, match="--int8 needs --config"):
        export.main([*arguments, "--int8"])
    export.main(arguments)
    found = beside_onnx(
        {entry.key: entry.value for entry in onnx.load(str(output)).metadata_props}, "it"
    )
    assert found.classes == ["thing 0", "thing 1", "thing 2"]
    np.testing.assert_allclose(found.mean, [76.5, 127.5, 153])
    np.testing.assert_allclose(found.std, [51, 76.5, 102])


def test_scaling_of_an_image_processor_is_in_the_file(tmp_path):
    huggingface(tmp_path / "weights", 7, PROCESSORS["bicubic"])
    picture = photo(tmp_path / "photo.png")
    files = str(tmp_path / "weights"), str(tmp_path / "model.onnx")
    export.main(["--weights", files[0], "--output", files[1]])
    made = [prediction_of(None, file, []) for file in files]
    first, second = (it.network_input(picture) for it in made)
    assert first.shape == (1, 3, 160, 96)
    np.testing.assert_array_equal(first, second)


def test_what_disagrees_is_told_and_the_config_counts(model_onnx, folder_data, tmp_path, capsys):
    overrides = tiny_run(folder_data, tmp_path)
    made = prediction_of(CONFIG, str(model_onnx[0]), overrides)
    told = capsys.readouterr().err.splitlines()
    assert made.classes == list(CLASSES)
    assert ["class 0 'thing 0', the config 'disc'" in told[0], "a mean of [76.5" in told[1]] == [
        True,
        True,
    ]
    assert "a std of [51.0" in told[2] and all("camvid.py counts" in line for line in told[:3])
    images = made.network_input(np.full((32, 32, 3), 128, np.uint8))
    expected = (128 - np.array([123.675, 116.28, 103.53])) / (58.395, 57.12, 57.375)
    np.testing.assert_allclose(images[0, :, 0, 0], expected, rtol=1e-6)


def test_what_agrees_is_not_told():
    config = Beside("config", ["a", "b"], [123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    same = config._replace(mean=[0.485 * 255, 0.456 * 255, 0.406 * 255])
    assert disagreements(config, same) == disagreements(config, None) == []
    assert len(disagreements(config, same._replace(size=(5, 5)))) == 1
    (line,) = disagreements(config, same._replace(classes=["a", "b", "c"]))
    assert "calls class 2 'c', the config None" in line


def test_a_config_goes_over_that_of_the_training(trained, tmp_path, capsys):
    """What is other than in the training is told; a damaged config.yaml beside does not matter."""
    shutil.copytree(trained / "model_best", tmp_path / "model_best")
    config = trained / "config.yaml"
    text = config.read_text()
    (tmp_path / "config.yaml").write_text(text.replace("disc", "disk"))
    arguments = (str(config), str(tmp_path / "model_best"), [])
    assert prediction_of(*arguments).classes == list(CLASSES)
    assert "calls class 0 'disk', the config 'disc'" in capsys.readouterr().err
    assert prediction_of(None, *arguments[1:]).classes[0] == "disk"
    (tmp_path / "config.yaml").write_text("[")
    assert prediction_of(*arguments).classes == list(CLASSES)
    assert "note: cannot load the config" in capsys.readouterr().err


def test_other_numbers_of_classes_are_an_error(model_onnx, folder_data, tmp_path):
    overrides = [*tiny_run(folder_data, tmp_path), "dataloader.test.0.dataset.classes=[one,two]"]
    for file in model_onnx:
        with pytest.raises(InputError, match="has 3 classes, the data of the config 2"):
            prediction_of(CONFIG, str(file), overrides)
    graph = onnx.load(str(model_onnx[1]))
    next(it for it in graph.metadata_props if it.key == "classes").value = '["a", "b"]'
    onnx.save(graph, str(tmp_path / "model.onnx"))
    with pytest.raises(InputError, match="has 3 classes, .*model.onnx names 2"):
        prediction_of(None, str(tmp_path / "model.onnx"), [])


def test_neither_config_nor_anything_beside(model_onnx, tmp_path):
    shutil.copy(model_onnx[0] / "model.safetensors", tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match="does not say how it is used.*--config"):
        prediction_of(None, str(tmp_path / "mine.safetensors"), [])
    with pytest.raises(InputError, match="data.root=x needs --config"):
        prediction_of(None, str(model_onnx[0]), ["data.root=x"])


# --- large images -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, size, is_told",
    [
        ([], (1024, 1024), False),
        ([], (1025, 1024), True),
        (["inference.resize=[512,2048]"], (3000, 4000), False),
        (["inference.crop_size=[512,512]"], (3000, 4000), False),
    ],
)
def test_images_far_larger_than_the_crops_are_told(model_onnx, overrides, size, is_told):
    made = prediction_of(None, str(model_onnx[0]), overrides)
    text = made.too_large(np.zeros((1, 3, *size), np.float32))
    assert bool(text) == is_told
    if is_told:
        assert "inference.resize=[512,2048]" in text and "inference.crop_size=[512,512]" in text


def test_the_size_of_crops_is_that_of_the_config(model_onnx, folder_data, tmp_path):
    made = prediction_of(CONFIG, str(model_onnx[0]), tiny_run(folder_data, tmp_path))
    assert made.trained_on == (64, 64)


@pytest.mark.parametrize("kind", [0, 1], ids=["oneflow", "onnx"])
def test_progress_within_an_image(model_onnx, monkeypatch, kind):
    """Each block of each window is counted, as many as were announced."""
    counted = []

    class Bar:
        def __init__(self, total, **options):
            self.total, self.done = total, 0
            counted.append(self)

        def update(self):
            self.done += 1

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(module, "tqdm", Bar)
    windows = ["inference.crop_size=[48,48]", "inference.stride=[32,32]", "inference.flip=True"]
    made = prediction_of(None, str(model_onnx[kind]), windows)
    made.views(np.zeros((1, 3, 64, 100), np.float32), (64, 100))
    (bar,) = counted
    steps = 4 if kind == 0 else 1
    assert bar.done == bar.total == 2 * 2 * 3 * steps


# --- folders and names --------------------------------------------------------------------------


@pytest.fixture
def messy(tmp_path) -> Path:
    """Two images, and all kinds of what lies beside images."""
    for name in (
        *("a.png", "b/c.JPG", ".hidden.png", ".ipynb_checkpoints/a-checkpoint.png"),
        *("__MACOSX/x.png", "._a.png", "out/a_labels.png", "out/deep/else.png"),
        *("a_labels.png", "a_colors.png", "a_overlay.png", "b/mine_labels.png"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    return tmp_path


def test_what_no_image_is_meant_by_is_left_out(messy, capsys):
    assert [*find_images([messy], str(messy / "out"))] == ["a", "b/c", "b/mine_labels"]
    assert "note: 5 results of an earlier prediction are left out" in capsys.readouterr().err
    assert [*find_images([messy], str(messy))] == [
        *("a", "b/c", "b/mine_labels", "out/a_labels", "out/deep/else")
    ]
    assert [*find_images([messy / "a_labels.png"], str(messy))] == ["a_labels"]


def test_results_go_to_a_folder_around_the_images(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    assert [*find_images([tmp_path / "photos"], str(tmp_path))] == ["a"]


def test_a_folder_of_results_alone(tmp_path):
    for kind in ("labels", "colors"):
        (tmp_path / f"a_{kind}.png").touch()
    with pytest.raises(InputError, match="there are only results of an earlier prediction"):
        find_images([tmp_path])


@pytest.mark.parametrize(
    "word, expected",
    [
        ("inference.flip=True", True),
        ("data.root=/some/where", True),
        ("inference.crop_size=[512,512]", True),
        ("photo=1.jpg", False),
        ("photo.v=2.TIF", False),
        ("folder/a=b", False),
        ("photo.jpg", False),
        ("there=1", False),
    ],
)
def test_images_and_settings(tmp_path, monkeypatch, word, expected):
    (tmp_path / "there=1").touch()
    monkeypatch.chdir(tmp_path)
    assert is_override(word) == expected


def run(model_onnx, output: Path, *images) -> int:
    arguments = ["--weights", str(model_onnx[1]), "--output", str(output)]
    return predict.main([*arguments, *map(str, images)])


def test_a_missing_image_with_an_equals_sign(model_onnx, tmp_path, capsys):
    photo(tmp_path / "a=b.png")
    assert run(model_onnx, tmp_path / "out", tmp_path / "a=b.png", "photo=1.jpg") == 1
    assert "error: photo=1.jpg: cannot be read: No such file" in capsys.readouterr().err
    assert labels_of(tmp_path / "out", "a=b").shape == (90, 130)


def test_a_name_that_is_too_long_for_its_results(model_onnx, tmp_path, capsys):
    long = "x" * 248
    for name in (long, "z"):
        photo(tmp_path / f"{name}.png")
    assert run(model_onnx, tmp_path / "out", tmp_path, "y" * 300) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [long in errors[0], "y" * 300 in errors[1]] == [True, True] and len(errors) == 2
    assert all("File name too long" in line for line in errors)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"z_{kind}.png" for kind in ("colors", "labels", "overlay")
    ]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ZeroDivisionError("division by zero"),
        UnicodeEncodeError("ascii", "ä", 0, 1, "ordinal not in range"),
        Image.DecompressionBombError("too many"),
        OSError(36, "File name too long"),
        RuntimeError("first line\nsecond line"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_is_wrong_with_an_image(model_onnx, tmp_path, monkeypatch, capsys, error):
    for name in ("bad", "good"):
        photo(tmp_path / f"{name}.png")
    real = picture_inputs.read_image

    def read(path, channels):
        if path.stem == "bad":
            raise error
        return real(path, channels)

    monkeypatch.setattr(picture_inputs, "read_image", read)
    assert run(model_onnx, tmp_path / "out", tmp_path) == 1
    told = capsys.readouterr()
    (line,) = (line for line in told.err.splitlines() if line.startswith("error: "))
    assert f"{tmp_path}/bad.png: {type(error).__name__}: " in line
    assert "1 of 2 images segmented" in told.out and labels_of(tmp_path / "out", "good").any()


@pytest.mark.parametrize("below", ["", "/new/folder"])
def test_output_that_is_a_file(tmp_path, below):
    """It is told before the weights are looked at, which are not there."""
    (tmp_path / "file").write_text("mine")
    output = f"{tmp_path}/file{below}"
    with pytest.raises(InputError, match=f"cannot write {output}: .*/file is no folder"):
        predict.main(["--weights", "nowhere", "--output", output, str(tmp_path)])
    with pytest.raises(InputError, match="file"):
        export.main(["--config", "nowhere", "--weights", "nowhere", "--output", output])
    with pytest.raises(InputError, match="cannot write .*file"):
        ResultFiles(output, [], np.zeros(1, np.uint8))
    assert os.listdir(tmp_path) == ["file"]
    check_folder(tmp_path / "new" / "one")
