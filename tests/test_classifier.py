"""Classification from Python: what transformers' model, and the project's evaluation, say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_prediction import ODD, TINY, photo
from test_prediction import huggingface as segmentation_folder
from test_yaml_config import save_yaml

from conftest import CONFIG
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.evaluation.classifier import Classification, Classifier, predictor_of
from projects.SegFormer.evaluation.segmenter import Segmenter
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.segf_loader import load_weights
from projects.SegFormer.model_utils.weight_writers import write_official
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification
from projects.SegFormer.tools import convert_weights, export

PRETRAINING = "configs/segformer_imgnet1k_pretrain.py"
CLASSES = 7
NAMES = [f"kind {index}" for index in range(CLASSES)]


def save(folder: Path, processor: dict | None) -> transformers.SegformerForImageClassification:
    torch.manual_seed(1)
    names = dict(enumerate(NAMES))
    config = transformers.SegformerConfig(**TINY, num_labels=CLASSES, id2label=names)
    model = transformers.SegformerForImageClassification(config).eval()
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


def probabilities(model, values: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(values)).logits.softmax(-1).numpy()


PROCESSOR = dict(size={"height": 64, "width": 96}, **ODD)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder of Hugging Face, and its model."""
    folder = tmp_path_factory.mktemp("classifier") / "weights"
    return folder, save(folder, PROCESSOR)


def test_a_folder_of_hugging_face(theirs, tmp_path):
    folder, model = theirs
    picture = photo(tmp_path / "photo.png")
    processor = transformers.SegformerImageProcessor(**PROCESSOR)
    (expected,) = probabilities(model, processor(picture, return_tensors="np").pixel_values)
    classifier = Classifier(folder)
    result = classifier(str(tmp_path / "photo.png"))
    assert result.probabilities.dtype == np.float32 and result.name == "photo"
    assert result.probabilities.std() > 0.01
    np.testing.assert_allclose(result.probabilities, expected, rtol=0, atol=1e-5)
    assert result.classes == classifier.classes == NAMES
    order = np.argsort(-expected)
    assert [name for name, _ in result.top(5)] == [NAMES[index] for index in order[:5]]
    np.testing.assert_allclose([it for _, it in result.top(99)], expected[order], atol=1e-5)
    images = [picture, Image.fromarray(picture), picture[:70], tmp_path / "photo.png"]
    several = list(classifier(image for image in images))
    for index in (0, 1, 3):
        np.testing.assert_allclose(several[index].probabilities, expected, rtol=0, atol=1e-5)
    assert not np.allclose(several[2].probabilities, expected, atol=1e-5)
    with pytest.raises(InputError, match="expected an image"):
        classifier(picture.astype(np.float32))


def test_the_likeliest_first():
    result = Classification(np.array([0.2, 0.5, 0.2, 0.1], np.float32), list("abcd"), "image")
    assert [name for name, _ in result.top(3)] == ["b", "a", "c"]
    assert len(result.top()) == 4


@pytest.fixture
def training(theirs, tmp_path):
    """The output folder of a training, as far as a classifier needs it, with weights of theirs."""
    run = tmp_path / "run"
    folder, _ = theirs
    run.mkdir()
    source = ["--from", str(folder), "--to", "libai", "--output", str(run / "model_best")]
    convert_weights.main(source)
    (run / "model_best" / "segformer.json").unlink()
    (run / "model_best" / "checkpoint.json").write_text("{}")
    names = ("depths", "hidden_sizes", "num_attention_heads")
    sizes = [f"cfg.{name}={TINY[name]}".replace(" ", "") for name in names]
    # transformers' classes have this eps everywhere
    sizes += ["cfg.layer_norm_eps=1e-5", f"cfg.num_classes={CLASSES}"]
    config = load_config(PRETRAINING, [*sizes, f"data.root={tmp_path / 'gone'}"])
    save_yaml(config, str(run / "config.yaml"))
    return run


def test_what_a_training_leaves(theirs, training, tmp_path, capsys):
    """Its test transforms: the short side 256, the middle 224, by Pillow's bicubic filter."""
    picture = photo(tmp_path / "photo.png", 300, 400)
    scaled = Image.fromarray(picture).resize((341, 256), Image.BICUBIC)
    middle = np.asarray(scaled)[16:240, 58:282]
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    values = ((middle - np.array(mean)) / std).transpose(2, 0, 1)[None].astype(np.float32)
    (expected,) = probabilities(theirs[1], values)
    (training / "evaluation.json").write_text(json.dumps({"Acc": dict.fromkeys(NAMES, 1.0)}))
    for weights in (training, training / "model_best"):
        result = Classifier(weights)(picture)
        np.testing.assert_allclose(result.probabilities, expected, rtol=0, atol=1e-5)
        assert result.classes == NAMES
    assert "note" not in capsys.readouterr().err


def test_names_of_classes_are_looked_for(training, tmp_path, capsys):
    """In evaluation.json, in the folders of the data; where none is, it is told."""
    assert Classifier(training).classes[-1] == f"LABEL_{CLASSES - 1}"
    assert "note: nothing names the classes of" in capsys.readouterr().err
    for name in NAMES:
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
    with_data = [f"data.root={tmp_path / 'data'}"]
    assert Classifier(training, overrides=with_data).classes == NAMES
    (tmp_path / "data" / "train" / "more").mkdir()
    with pytest.raises(InputError, match="has 7 classes, what lies beside it names 8"):
        Classifier(training, overrides=with_data)


def test_a_file_of_the_papers_authors(theirs, tmp_path):
    """It names no classes, and no sizes: it needs the config of its training."""
    file = tmp_path / "mit.pth"
    model = load_weights({}, str(theirs[0]), SegformerForImageClassification)
    write_official(str(file), state_of(model), NAMES)
    with pytest.raises(InputError, match="does not say how it is used.*--config"):
        Classifier(file)
    sizes = [
        *(f"cfg.{name}={TINY[name]}".replace(" ", "") for name in TINY if name.endswith("s")),
        f"cfg.num_classes={CLASSES}",
    ]
    sizes = [it for it in sizes if "decoder" not in it]
    classifier = Classifier(file, PRETRAINING, [*sizes, "data.root=nowhere"])
    assert classifier.classes[0] == "LABEL_0"
    picture = photo(tmp_path / "photo.png")
    assert classifier(picture).probabilities.sum() == pytest.approx(1)
    with pytest.raises(InputError, match="mit.pth are a classifier's"):
        Segmenter(file, CONFIG)


def test_a_training_as_a_folder_of_hugging_face(training, tmp_path):
    (training / "evaluation.json").write_text(json.dumps({"Acc": dict.fromkeys(NAMES, 1.0)}))
    source = ["--from", str(training), "--to", "huggingface"]
    convert_weights.main([*source, "--output", str(tmp_path / "huggingface")])
    picture = photo(tmp_path / "photo.png", 224, 224)
    expected = transformers.pipeline("image-classification", str(tmp_path / "huggingface"))
    result = Classifier(tmp_path / "huggingface")(picture)
    for (name, probability), other in zip(result.top(5), expected(Image.fromarray(picture))):
        assert name == other["label"] and probability == pytest.approx(other["score"], abs=1e-4)


# --- which of both ------------------------------------------------------------------------------


def test_each_names_the_other(theirs, training, tmp_path):
    segmentation_folder(tmp_path / "segmentation", 3, dict(do_resize=False))
    for weights in (theirs[0], training):
        with pytest.raises(InputError, match="are a classifier's: Classifier of .*classifier.py"):
            Segmenter(weights)
        assert isinstance(predictor_of(weights), Classifier)
    with pytest.raises(InputError, match="are a segmentation model's: Segmenter of .*segmenter.py"):
        Classifier(tmp_path / "segmentation")
    assert isinstance(predictor_of(tmp_path / "segmentation"), Segmenter)
    with pytest.raises(InputError, match="model.onnx are a segmentation model's"):
        Classifier(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="--engine onnx does not take"):
        predictor_of(theirs[0], engine="onnx")


def test_export_is_for_segmentation(theirs, tmp_path):
    with pytest.raises(InputError, match="a classifier's: export is for segmentation"):
        export.main(["--weights", str(theirs[0]), "--output", str(tmp_path / "model.onnx")])


def test_a_config_of_the_other_kind(theirs):
    with pytest.raises(InputError, match="camvid.py is not a config of classification"):
        Classifier(theirs[0], CONFIG)
    with pytest.raises(InputError, match="inference.flip=True needs --config"):
        Classifier(theirs[0], overrides=["inference.flip=True"])
