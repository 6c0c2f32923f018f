"""tools/export.py: what ONNX Runtime makes of the graph, against OneFlow, transformers, PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import oneflow as flow
import onnx
import onnxruntime
import pytest
import torch
import transformers
from PIL import Image

from conftest import CLASSES, CONFIG, tiny_run
from projects.SegFormer.evaluation import onnx_export, prediction
from projects.SegFormer.evaluation.inference import Inference
from projects.SegFormer.evaluation.onnx_export import Form, check_form
from projects.SegFormer.evaluation.onnx_model import OnnxModel
from projects.SegFormer.evaluation.segmenter import Segmenter
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.onnx_graph import add_arg_max, to_onnx
from projects.SegFormer.model_utils.onnx_metadata import beside_onnx
from projects.SegFormer.model_utils.onnx_quantisation import quantise, to_half
from projects.SegFormer.model_utils.segf_loader import load_weights
from projects.SegFormer.model_utils.weight_writers import write_libai
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import (
    SegformerForSemanticSegmentation,
    assign,
)
from projects.SegFormer.tools import convert_weights, export, predict

# Nothing here follows from anything else, and the two eps are large enough to show.
IRREGULAR = dict(
    num_channels=4,
    depths=[1, 2, 1, 2],
    hidden_sizes=[12, 20, 24, 40],
    num_attention_heads=[1, 2, 3, 5],
    sr_ratios=[4, 3, 2, 1],
    mlp_ratios=[2, 4, 3, 1],
    patch_sizes=[7, 3, 5, 3],
    strides=[4, 2, 2, 2],
    layer_norm_eps=0.1,
    embed_norm_eps=0.3,
    decoder_hidden_size=10,
    num_classes=5,
)
# Several heads where there is no reduction, one where there is, and channels in blocks of 16.
BLOCKS = dict(
    depths=[1, 1, 1, 1],
    hidden_sizes=[16, 16, 32, 32],
    num_attention_heads=[1, 1, 1, 4],
    decoder_hidden_size=32,
    num_classes=3,
)
SHAPES = [(1, 32, 32), (2, 33, 47), (3, 97, 64), (1, 32, 131)]
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # of ImageNet, as everywhere


def random_model(**settings) -> SegformerForSemanticSegmentation:
    """In evaluation mode, with random numbers also where a new model has zeros and ones."""
    model = SegformerForSemanticSegmentation(**settings).eval()
    rng = np.random.default_rng(1)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        shape = tuple(tensor.shape)
        if tensor.ndim == 1:
            low = 0.5 if name.endswith(("weight", "var")) else -0.5
            assign(tensor, rng.uniform(low, low + 1, shape))
        else:
            assign(tensor, rng.normal(0, np.prod(shape[1:]) ** -0.5, shape))
    return model


def images_of(model, shape: tuple, seed=0) -> np.ndarray:
    channels = model.segformer.patch_embeds[0].proj.weight.shape[1]
    batch, *size = shape
    return np.random.default_rng(seed).normal(size=(batch, channels, *size)).astype(np.float32)


def oneflow_logits(model, images: np.ndarray) -> np.ndarray:
    with flow.no_grad():
        return model(images=flow.from_numpy(images))["prediction_scores"].numpy()


def run(graph: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(None, {"images": images})[0]


def graph_of(model) -> onnx.ModelProto:
    return to_onnx(model)


def metadata_of(graph: onnx.ModelProto) -> dict:
    return {entry.key: json.loads(entry.value) for entry in graph.metadata_props}


@pytest.fixture(scope="module", params=[IRREGULAR, BLOCKS], ids=["irregular", "blocks"])
def exported(request):
    """A model and its graph."""
    model = random_model(**request.param)
    return model, graph_of(model)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_are_those_of_oneflow(exported, shape):
    model, graph = exported
    images = images_of(model, shape)
    expected = oneflow_logits(model, images)
    assert expected.std() > 0.1
    np.testing.assert_allclose(run(graph, images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_labels_are_the_arg_max_of_interpolated_logits(exported, shape):
    model, graph = exported
    images = images_of(model, shape)
    logits = torch.from_numpy(run(graph, images))
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    add_arg_max(graph)
    labels = run(graph, images)
    assert labels.dtype == np.int64
    logits = torch.nn.functional.interpolate(logits, size=shape[1:], mode="bilinear")
    best, second = logits.topk(2, dim=1).values.unbind(1)
    clear = (best - second > 1e-4).numpy()  # elsewhere rounding decides
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], logits.argmax(1).numpy()[clear])


@pytest.mark.slow
def test_memory_grows_with_the_pixels(tmp_path):
    """Of a 1536x1536 image the scores of the first block alone would be 1.4 GB at once."""
    onnx.save(graph_of(random_model(**BLOCKS)), str(tmp_path / "model.onnx"))
    script = """if True:
        import sys
        import numpy, onnxruntime
        session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
        session.run(None, {"images": numpy.zeros((1, 3, 1536, 1536), numpy.float32)})
        # Not getrusage, which counts what the process that started this one had.
        print(next(line.split()[1] for line in open("/proc/self/status") if "VmHWM" in line))
    """
    command = [sys.executable, "-c", script, str(tmp_path / "model.onnx")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak < 1e6  # kB


def with_body(graph: onnx.ModelProto, change) -> bytes:
    """The graph, with `change` made to the body of its first Scan."""
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    node = next(node for node in graph.graph.node if node.op_type == "Scan")
    change(next(it.g for it in node.attribute if it.name == "body"), node)
    return graph.SerializeToString()


def larger_operator(body, node):
    body.node.append(onnx.helper.make_node("Expand", [body.input[0].name, "s"], ["huge"], "huge"))


def own_constants(body, node):
    body.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "mine"))


def scan_in_a_scan(body, node):
    body.node.append(onnx.NodeProto.FromString(node.SerializeToString()))


def another_loop(body, node):
    node.op_type = "Loop"


def other_domain(body, node):
    body.node[0].domain = "com.microsoft"


def only_constants(body, node):
    body.node.append(onnx.helper.make_node("MatMul", ["gelu.one", "gelu.one"], ["c"], "c"))


@pytest.mark.parametrize(
    "change",
    [larger_operator, own_constants, scan_in_a_scan, another_loop, other_domain, only_constants],
)
def test_bodies_that_are_not_attention_are_refused(exported, change):
    assert OnnxModel(with_body(exported[1], lambda body, node: None)).num_classes in (3, 5)
    with pytest.raises(InputError, match="is not a model of tools/export.py"):
        OnnxModel(with_body(exported[1], change))


def test_logits_are_those_of_transformers(tmp_path):
    torch.manual_seed(0)
    settings = dict(BLOCKS) | {"num_labels": BLOCKS["num_classes"]}
    settings.pop("num_classes")
    reference = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(**settings, initializer_range=0.2)
    ).eval()
    reference.decode_head.batch_norm.running_mean.uniform_(-1, 1)
    reference.decode_head.batch_norm.running_var.uniform_(0.5, 2)
    reference.save_pretrained(tmp_path)
    model = load_weights({}, str(tmp_path))
    images = images_of(model, (2, 70, 55))
    with torch.no_grad():
        expected = reference(torch.from_numpy(images)).logits.numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(run(graph_of(model), images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("arg_max", [False, True], ids=["logits", "labels"])
def test_graph_is_plain_onnx(exported, arg_max):
    model, graph = exported
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    if arg_max:
        add_arg_max(graph)
    onnx.checker.check_model(graph, full_check=True)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 17)]
    assert {node.domain for node in graph.graph.node} == {""}
    names = [node.name for node in graph.graph.node]
    assert len(set(names)) == len(names)
    classes = model.head.linear_pred.weight.shape[0]
    expected = {
        "images": ["N", images_of(model, (1, 32, 32)).shape[1], "H", "W"],
        **(
            {"labels": ["N", "H", "W"]}
            if arg_max
            else {"prediction_scores": ["N", classes, "H_out", "W_out"]}
        ),
    }
    found = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.graph.input, *graph.graph.output]
    }
    assert found == expected


def test_no_weight_is_in_the_file_twice(exported):
    """The graph holds what the model in evaluation needs, the decode head in its folded form."""
    model, graph = exported
    sizes = {
        tensor.name: int(np.prod(tensor.dims))
        for tensor in graph.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    used = [name for node in graph.graph.node for name in node.input]
    assert sizes.keys() <= set(used)
    state = {name: values.size for name, values in state_of(model).items()}
    encoder = sum(size for name, size in state.items() if name.startswith("segformer."))
    width, channels = (
        model.head.linear_pred.weight.shape[1],
        [norm.weight.shape[0] for norm in model.segformer.layer_norms],
    )
    classifier = state["head.linear_pred.weight"] + state["head.linear_pred.bias"]
    gelu = 3
    assert sum(sizes.values()) == encoder + (sum(channels) + 1) * width + classifier + gelu


def test_quantised_logits_are_close():
    model = random_model(**BLOCKS)
    graph = graph_of(model)
    batches = [images_of(model, (1, 64, 96), seed) for seed in range(4)]
    quantised = quantise(graph, batches)
    onnx.checker.check_model(quantised, full_check=True)
    assert {node.domain for node in quantised.graph.node} == {""}
    images = images_of(model, (2, 75, 50), seed=9)
    expected = run(graph, images)
    error = np.sqrt(np.mean((run(quantised, images) - expected) ** 2))
    assert 0 < error < 0.1 * expected.std()
    int8 = {
        tensor.name.removesuffix("_quantized")
        for tensor in quantised.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.name.endswith("_quantized")
    }
    matrices = {
        tensor.name
        for tensor in graph.graph.initializer
        if tensor.name.startswith("segformer.") and len(tensor.dims) > 1
    }
    assert int8 == matrices


# --- the tools ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A checkpoint of a random model of three classes, with its settings."""
    folder = tmp_path_factory.mktemp("weights") / "checkpoint"
    model = random_model(**BLOCKS)
    settings = BLOCKS | dict(layer_norm_eps=1e-3, embed_norm_eps=1e-2)
    write_libai(str(folder), state_of(model), settings, list(CLASSES), {})
    return folder


@pytest.fixture(scope="module")
def model_onnx(weights, folder_data, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "new" / "model.onnx"
    export_tool(weights, folder_data, file)
    return file


def export_tool(weights: Path, data: Path, output: Path, *more: str) -> None:
    overrides = tiny_run(data, output.parent)
    arguments = ["--config", CONFIG, "--weights", str(weights), "--output", str(output), *more]
    export.main([*arguments, *overrides])


def test_tool_writes_the_graph_and_tells_how_far_it_is_off(weights, folder_data, tmp_path, capsys):
    output = tmp_path / "model.onnx"
    export_tool(weights, folder_data, output)
    told = capsys.readouterr().out
    assert float(told.split(" at most")[0].split()[-1]) < 1e-5
    model = load_weights({}, str(weights))
    images = images_of(model, (2, 40, 60))
    logits = run(onnx.load(str(output)), images)
    np.testing.assert_allclose(logits, oneflow_logits(model, images), rtol=0, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    metadata = metadata_of(onnx.load(str(output)))
    palette = metadata.pop("palette")
    assert len(set(map(tuple, palette))) == 3 and np.shape(palette) == (3, 3)
    whole = dict(crop_size=None, stride=None, resize=None, divisor=1, scales=[1.0], flip=False)
    assert metadata == {
        "channel_order": "RGB",
        "layout": "NCHW",
        "value_range": [0, 255],
        "mean": MEAN,
        "std": STD,
        "classes": list(CLASSES),
        "ignore_index": 255,
        "trained_on": [64, 64],
        "inference": whole,
    }


MODES = {
    "whole": [],
    "windows_scales_flip": [
        "inference.crop_size=[48,48]",
        "inference.stride=[32,32]",
        "inference.scales=[0.5,1.0]",
        "inference.flip=True",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_both_engines_predict_the_same(weights, model_onnx, folder_data, tmp_path, mode):
    written = {}
    for engine, file in (("oneflow", weights), ("onnx", model_onnx)):
        output = tmp_path / engine
        arguments = ["--config", CONFIG, "--engine", engine, "--weights", str(file)]
        arguments += ["--output", str(output), str(folder_data / "images" / "val")]
        assert predict.main([*arguments, *tiny_run(folder_data, tmp_path), *MODES[mode]]) == 0
        written[engine] = {path.name: path.read_bytes() for path in output.iterdir()}
    assert len(written["onnx"]) == 15
    assert written["onnx"] == written["oneflow"]
    labels = cv2.imread(str(tmp_path / "onnx" / "00_labels.png"), cv2.IMREAD_UNCHANGED)
    assert len(np.unique(labels)) > 1


@pytest.mark.slow
def test_int8_reports_what_it_loses(trained, folder_data, tmp_path, capsys):
    output = tmp_path / "model.onnx"
    export_tool(trained / "model_final", folder_data, output, "--int8", "--arg-max")
    words = capsys.readouterr().out.split()
    before, after, difference = (float(words[index]) for index in (1, 4, 7))
    truth = json.loads((trained / "evaluation.json").read_text())["mIoU"]
    assert before == pytest.approx(truth, abs=0.02)
    assert abs(after - before) < 3 and difference == pytest.approx(after - before, abs=0.011)
    image = cv2.imread(str(folder_data / "images" / "val" / "00.png"))[..., ::-1]
    images = ((image - np.array(MEAN)) / STD).astype(np.float32).transpose(2, 0, 1)[None]
    labels = run(onnx.load(str(output)), images)[0]
    truth = cv2.imread(str(folder_data / "annotations" / "val" / "00.png"), cv2.IMREAD_UNCHANGED)
    assert (labels == truth)[truth != 255].mean() > 0.8


# --- the file alone -----------------------------------------------------------------------------


def random_photo(path: Path, height: int = 90, width: int = 130) -> np.ndarray:
    """Smooth colours, saved as PNG."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (9, 13, 3)).astype(np.uint8), (width, height))
    Image.fromarray(picture).save(path)
    return picture


def agree(labels: np.ndarray, expected: np.ndarray, share: float = 0.999) -> bool:
    """Whether two label maps are the same but where rounding decides, and not of one class."""
    assert labels.shape == expected.shape and len(np.unique(expected)) > 1
    return (labels == expected).mean() >= share


def save_form(path: Path, segmenter: Segmenter, **form) -> str:
    """The file that tools/export.py would write of a segmenter that is there."""
    graph, _ = onnx_export.exported(segmenter.prediction, Form(**form))
    onnx.save(graph, str(path))
    return str(path)


@pytest.fixture(scope="module")
def ours(trained) -> Segmenter:
    """What all files here are of."""
    return Segmenter(trained)


RESIZED = ["inference.resize=[64,200]", "inference.divisor=32"]
WINDOWS = ["inference.crop_size=[64,64]", "inference.stride=[32,48]"]
PALETTE = [(9, 8, 7), (0, 255, 0), (1, 2, 3)]
ALONE = {
    "whole": [],
    "resized": RESIZED,
    "windows": [*WINDOWS, "inference.flip=True"],
}


@pytest.mark.parametrize("mode", ALONE)
def test_the_file_needs_no_config(trained, tmp_path, mode):
    """The config of the training, its palette and its way of inference are in the file."""
    picture = random_photo(tmp_path / "photo.png")
    palette = str(list(map(list, PALETTE))).replace(" ", "")
    settings = [*ALONE[mode], f"dataloader.test.0.dataset.palette={palette}"]
    ours = Segmenter(trained, overrides=settings)
    alone = Segmenter(save_form(tmp_path / "model.onnx", ours))
    expected, found = ours(picture), alone(picture)
    assert agree(found.labels, expected.labels)
    assert found.classes == expected.classes == list(CLASSES)
    assert found.palette == expected.palette == PALETTE
    assert alone.prediction.trained_on == (64, 64)
    if mode == "windows":  # the others are the same to the tool
        arguments = ["--weights", str(tmp_path / "model.onnx"), "--output", str(tmp_path / "tool")]
        assert predict.main([*arguments, str(tmp_path / "photo.png")]) == 0
        colours = cv2.imread(str(tmp_path / "tool" / "photo_colors.png"))[..., ::-1]
        np.testing.assert_array_equal(colours, np.array(PALETTE)[found.labels])


def test_overrides_go_over_what_is_in_the_file(ours, trained, tmp_path):
    picture = random_photo(tmp_path / "photo.png")
    file = save_form(tmp_path / "model.onnx", Segmenter(trained, overrides=RESIZED))
    found = Segmenter(file, overrides=["inference.resize=null", "inference.divisor=1"])
    assert agree(found(picture).labels, ours(picture).labels)
    with pytest.raises(InputError, match="inference.scales"):
        Segmenter(file, overrides=["inference.scales=[0]"])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"channel_order": "BGR"}, "channel_order is 'BGR': expected 'RGB'"),
        ({"layout": "NHWC"}, "layout is 'NHWC': expected 'NCHW'"),
        ({"value_range": [0, 1]}, "value_range is .* expected .0, 255"),
        ({"palette": [[0, 0, 256]]}, "palette is no list of .red, green, blue."),
        ({"std": [1, 0, 1]}, "std is no list of numbers above 0"),
        ({"size": [64]}, "size is no .height, width. or number of pixels"),
        ({"inference": {"crop_size": 5}}, "inference is no settings of crop_size, "),
        ({"inference": {"train": 5}}, "inference is no settings of"),
        ({"inference": {"scales": [1e9]}}, "inference is no settings of"),
        ({"trained_on": [True, 5]}, "trained_on is no .height, width."),
        ({"resample": "x"}, "resample is no filter"),
    ],
)
def test_metadata_of_another_kind(change, words):
    values = {key: json.dumps(value) for key, value in change.items()}
    with pytest.raises(InputError, match=f"the metadata of x.onnx: {words}.*; export it again"):
        beside_onnx(values, "x.onnx")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"palette": [[0, 0, 0]]}, "has 3 classes, .* names 1 colours"),
        ({"inference": {"stride": [9, 9]}}, "inference.stride=.* without inference.crop_size"),
    ],
)
def test_metadata_that_does_not_belong_together(model_onnx, tmp_path, change, words):
    graph = onnx.load(str(model_onnx))
    values = metadata_of(graph) | change
    onnx.helper.set_model_props(graph, {key: json.dumps(it) for key, it in values.items()})
    onnx.save(graph, str(tmp_path / "model.onnx"))
    with pytest.raises(InputError, match=words):
        Segmenter(tmp_path / "model.onnx")


def test_images_are_not_scaled_beyond_all_bounds(model_onnx, monkeypatch):
    monkeypatch.setenv("SEGFORMER_IMAGE_PIXELS", "40000")
    large = Segmenter(model_onnx, overrides=["inference.scales=[4.0]"])
    with pytest.raises(InputError, match="scales it to 256x256, more than 40,000 pixels"):
        large(np.zeros((64, 64, 3), np.uint8))


def test_a_file_of_an_earlier_version(model_onnx, tmp_path):
    """It has classes, mean and std alone."""
    picture = random_photo(tmp_path / "photo.png")
    graph = onnx.load(str(model_onnx))
    kept = {key: json.dumps(metadata_of(graph)[key]) for key in ("classes", "mean", "std")}
    onnx.helper.set_model_props(graph, kept)
    onnx.save(graph, str(tmp_path / "old.onnx"))
    labels = Segmenter(tmp_path / "old.onnx")(picture).labels
    np.testing.assert_array_equal(labels, Segmenter(model_onnx)(picture).labels)


# What the documentation shows; it runs in a folder with model.onnx and photo.png.
ONNXRUNTIME_ALONE = """
import json
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
image = Image.open("photo.png").convert("RGB")
size = image.size
if limits := about["inference"]["resize"]:
    scale = min(min(limits) / min(size), max(limits) / max(size))
    size = [int(side * scale + 0.5) for side in size]
values = (np.asarray(image.resize(size, Image.BILINEAR)) - np.array(about["mean"])) / about["std"]
values = values.transpose(2, 0, 1)[None].astype(np.float32)  # (1, 3, height, width)
(logits,) = session.run(["prediction_scores"], {"images": values})
scores = [Image.fromarray(one).resize(image.size, Image.BILINEAR) for one in logits[0]]
labels = np.argmax([np.asarray(one) for one in scores], axis=0)  # indices of about["classes"]
Image.fromarray(np.array(about["palette"], np.uint8)[labels]).save("colors.png")
"""

PIPELINE = """
import numpy as np
from transformers import pipeline

segment = pipeline("image-segmentation", "huggingface")
parts = segment("photo.png")  # of each class that is there its "label" and its "mask"
labels = np.zeros(parts[0]["mask"].size[::-1], np.uint8)  # (height, width)
for part in parts:
    labels[np.asarray(part["mask"]) > 0] = segment.model.config.label2id[part["label"]]
"""


# With --arg-max the first takes the place of the lines that make labels; with --size the second
# that of reading the image.
LABELS = '((labels,),) = session.run(["labels"], {"images": values})\n'
SCALED = 'np.asarray(image.resize(about["size"][::-1], about["resample"]))'


@pytest.mark.parametrize("form", [{}, {"arg_max": True}, {"size": (64, 96)}], ids=str)
def test_onnx_runtime_alone(ours, tmp_path, monkeypatch, form):
    picture = random_photo(tmp_path / "photo.png", 93, 131)
    file = save_form(tmp_path / "model.onnx", ours, **form)
    expected = Segmenter(file)(picture) if "size" in form else ours(picture)
    monkeypatch.chdir(tmp_path)
    text = ONNXRUNTIME_ALONE
    if "arg_max" in form:
        start, end = text.index("(logits,)"), text.index("Image.fromarray(np.array")
        text = text[:start] + LABELS + text[end:]
    if "size" in form:
        text = text.replace("np.asarray(image.resize(size, Image.BILINEAR))", SCALED)
    names = {}
    exec(text, names)
    # Of an image that was scaled the project interpolates to that size first, and then on.
    assert agree(names["labels"], expected.labels, 0.97 if "size" in form else 0.999)
    colours = np.asarray(Image.open("colors.png"))
    np.testing.assert_array_equal(colours, np.array(expected.palette)[names["labels"]])


def test_onnx_runtime_alone_with_a_resize(trained, tmp_path, monkeypatch):
    """Pillow smooths what it scales down, OpenCV does not: borders of classes move a little."""
    picture = random_photo(tmp_path / "photo.png", 186, 262)
    expected = Segmenter(trained, overrides=["inference.resize=[64,256]"])
    save_form(tmp_path / "model.onnx", expected)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(ONNXRUNTIME_ALONE, names)
    assert names["size"] == [90, 64]
    assert agree(names["labels"], expected(picture).labels, 0.97)


@pytest.mark.slow
def test_pipeline_of_transformers(ours, trained, tmp_path, monkeypatch, capsys):
    picture = random_photo(tmp_path / "photo.png", 93, 131)
    expected = ours(picture)
    monkeypatch.chdir(tmp_path)
    arguments = ["--from", str(trained), "--to", "huggingface", "--output", "huggingface"]
    convert_weights.main(arguments)
    assert "whole images" not in capsys.readouterr().out
    names = {}
    exec(PIPELINE, names)
    assert agree(names["labels"], expected.labels)
    text = (trained / "config.yaml").read_text().replace("resize: null", "resize: [64, 96]")
    (tmp_path / "resized.yaml").write_text(text)
    convert_weights.main([*arguments[:-1], "again", "--config", "resized.yaml"])
    assert "note: resized.yaml scales images" in capsys.readouterr().out


# --- float16, and one size ----------------------------------------------------------------------


def test_half(ours, trained, tmp_path, capsys):
    """All weights are float16, images and logits float32, nearly all labels the same."""
    picture = random_photo(tmp_path / "photo.png")
    file = str(tmp_path / "half.onnx")
    export.main(["--weights", str(trained), "--output", file, "--half"])
    told = capsys.readouterr().out
    assert "in float16 they differ by" in told and "% have the same class" in told
    half = onnx.load(file).graph
    kinds = {it.data_type for it in half.initializer} - {onnx.TensorProto.INT64}
    assert kinds == {onnx.TensorProto.FLOAT16}
    for value in (*half.input, *half.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    result, single = Segmenter(file)(picture), ours(picture)
    assert agree(result.labels, single.labels, 0.99)
    difference = np.abs(result.probabilities - single.probabilities).max()
    assert 1e-6 < difference < 0.05


def test_half_of_weights_beyond_its_range():
    model = random_model(**BLOCKS)
    assign(model.head.linear_pred.bias, np.full(3, 1e5))
    graph = to_onnx(model)
    with pytest.raises(InputError, match="in float16 the logits differ by .* leave out --half"):
        onnx_export.compare_half(graph, to_half(graph), 3)


@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
def test_one_size(ours, tmp_path, half):
    """All shapes are known, nothing loops, and images are scaled to the size."""
    picture = random_photo(tmp_path / "photo.png")
    file = save_form(tmp_path / "model.onnx", ours, size=(64, 96), half=half)
    graph = onnx.load(file)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info)
    }
    assert shapes["images"] == [1, 3, 64, 96] and shapes["prediction_scores"] == [1, 3, 16, 24]
    assert all(all(shape) for shape in shapes.values() if shape)
    assert "Scan" not in {node.op_type for node in graph.graph.node}
    assert metadata_of(graph)["size"] == [64, 96]
    scaled = np.asarray(Image.fromarray(picture).resize((96, 64), Image.BILINEAR))
    scores = ours(scaled).probabilities.transpose(2, 0, 1)
    expected = [np.asarray(Image.fromarray(it).resize((130, 90), Image.BILINEAR)) for it in scores]
    found = list(Segmenter(file)([picture, picture]))
    assert agree(found[0].labels, np.argmax(expected, 0), 0.97)
    np.testing.assert_array_equal(found[0].labels, found[1].labels)
    with pytest.raises(InputError, match="exported with --size 64 96 and takes no image of 32x48"):
        Segmenter(file, overrides=["inference.scales=[0.5]"])(picture)


def test_windows_of_one_size(trained, tmp_path):
    picture = random_photo(tmp_path / "photo.png")
    ours = Segmenter(trained, overrides=WINDOWS)
    file = str(tmp_path / "model.onnx")
    export.main(["--weights", str(trained), "--output", file, "--size", "64", "64", *WINDOWS])
    alone = Segmenter(file)
    assert agree(alone(picture).labels, ours(picture).labels)
    with pytest.raises(InputError, match="takes no image of 40x64"):
        alone(picture[:40])


@pytest.mark.parametrize(
    "form, inference, words",
    [
        (Form(half=True, int8=True), {}, "--int8 and --half are two forms"),
        (Form(size=(64, 16)), {}, "--size 64 16: expected height and width, 32 or more each"),
        (Form(size=(99999, 99999)), {}, "--size 99999 99999: expected .* pixels"),
        (Form(size=(64, 64)), {"scales": [1.0, 2.0]}, "--size 64 64 and inference.scales"),
        (
            Form(size=(64, 64)),
            {"crop_size": [64, 96]},
            "--size 64 64 and windows of inference.crop_size=.64, 96.: set that to .64,64.",
        ),
    ],
)
def test_forms_that_do_not_go_together(ours, form, inference, words):
    prediction = ours.prediction._replace(inference=Inference(**inference))
    with pytest.raises(InputError, match=words):
        check_form(prediction, form)


@pytest.mark.parametrize("sides", [[2, 64, 96], [1, 64, 8], [1, 2**20, 2**20], [0, 64, 64]])
def test_other_fixed_sizes_are_refused(model_onnx, sides):
    graph = onnx.load(str(model_onnx))
    axes = graph.graph.input[0].type.tensor_type.shape.dim
    for axis, side in zip((0, 2, 3), sides):
        axes[axis].dim_value = side
    with pytest.raises(InputError, match="images has fixed sizes that are not of one image"):
        OnnxModel(graph.SerializeToString())


def test_what_is_of_no_map_is_refused(model_onnx):
    """ONNX Runtime would compute it, of whatever size, as soon as it has read the file."""
    graph = onnx.load(str(model_onnx))
    constant = onnx.helper.make_node("DequantizeLinear", ["gelu.one", "gelu.half"], ["c"], "c")
    graph.graph.node.append(constant)
    for node in (
        onnx.helper.make_node("MatMul", ["c", "c"], ["huge"], "huge"),
        onnx.helper.make_node("MatMul", ["gelu.one", "head.batch.Shape"], ["huge"], "huge"),
        onnx.helper.make_node(
            "Resize", ["gelu.one", "", "", "head.sizes.Concat"], ["huge"], "huge", mode="nearest"
        ),
    ):
        wrong = onnx.ModelProto.FromString(graph.SerializeToString())
        wrong.graph.node.append(node)
        with pytest.raises(InputError, match=f"it has {node.op_type} huge in it"):
            OnnxModel(wrong.SerializeToString())


# --- errors -------------------------------------------------------------------------------------


def test_a_graph_that_differs_is_not_written(weights, folder_data, tmp_path, monkeypatch):
    def wrong(*arguments, **settings):
        graph = to_onnx(*arguments, **settings)
        (bias,) = (x for x in graph.graph.initializer if x.name == "head.linear_pred.bias")
        shifted = onnx.numpy_helper.to_array(bias) + np.float32(1e-3)
        bias.CopyFrom(onnx.numpy_helper.from_array(shifted, bias.name))
        return graph

    monkeypatch.setattr(onnx_export, "to_onnx", wrong)
    with pytest.raises(InputError, match=r"differ from OneFlow's by 1\.0e-03, more than 0\.0001"):
        export_tool(weights, folder_data, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(weights, folder_data, tmp_path):
    output = tmp_path / "model.onnx"
    output.write_text("mine")
    with pytest.raises(InputError, match="model.onnx is already there"):
        export_tool(weights, folder_data, output)
    assert output.read_text() == "mine"


def test_output_of_another_suffix(weights, folder_data, tmp_path):
    with pytest.raises(InputError, match="expected a file that ends with .onnx"):
        export_tool(weights, folder_data, tmp_path / "model")


def test_no_place_to_write(weights, folder_data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*model.onnx: "):
        export_tool(weights, folder_data, tmp_path / "file" / "model.onnx")


def test_other_number_of_classes(weights, folder_data, tmp_path):
    two = "dataloader.test.0.dataset.classes=[one,two]"
    with pytest.raises(InputError, match="has 3 classes, the data of the config 2"):
        export.main(
            ["--config", CONFIG, "--weights", str(weights), "--output", str(tmp_path / "m.onnx")]
            + [*tiny_run(folder_data, tmp_path), two]
        )


@pytest.mark.parametrize(
    ("engine", "file", "classes", "words"),
    [
        ("oneflow", "model.onnx", 3, "--engine oneflow does not take .*model.onnx"),
        ("onnx", "checkpoint", 3, "--engine onnx does not take .*checkpoint"),
        ("onnx", "gone.onnx", 3, "no file .*gone.onnx"),
        ("onnx", "broken.onnx", 3, "cannot read .*broken.onnx"),
        ("onnx", "labels.onnx", 3, "labels.onnx was exported with --arg-max"),
        ("onnx", "other.onnx", 3, "other.onnx is not a model of tools/export.py"),
        ("onnx", "model.onnx", 2, "model.onnx has 3 classes, the data of the config 2"),
    ],
)
def test_weights_of_another_kind(model_onnx, tmp_path, engine, file, classes, words):
    graph = onnx.load(str(model_onnx))
    onnx.save(graph, str(tmp_path / "model.onnx"))
    graph.graph.input[0].name = "pixels"
    graph.graph.node.insert(0, onnx.helper.make_node("Identity", ["pixels"], ["images"]))
    onnx.save(graph, str(tmp_path / "other.onnx"))
    graph = onnx.load(str(model_onnx))
    add_arg_max(graph)
    onnx.save(graph, str(tmp_path / "labels.onnx"))
    (tmp_path / "broken.onnx").write_bytes(model_onnx.read_bytes()[:1000])
    with pytest.raises(InputError, match=words):
        prediction.load_model(engine, str(tmp_path / file), {}, classes)


def test_onnx_runtime_is_missing(model_onnx, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match="ONNX Runtime cannot be imported .*tools/setup.sh"):
        OnnxModel(str(model_onnx))
