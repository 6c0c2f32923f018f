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

from conftest import CLASSES, CONFIG, tiny_run
from projects.SegFormer.evaluation import prediction
from projects.SegFormer.evaluation.onnx_model import OnnxModel
from projects.SegFormer.model_utils.model_weights import state_of
from projects.SegFormer.model_utils.onnx_graph import add_arg_max, to_onnx
from projects.SegFormer.model_utils.onnx_quantisation import quantise
from projects.SegFormer.model_utils.segf_loader import load_weights
from projects.SegFormer.model_utils.weight_writers import write_libai
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import (
    SegformerForSemanticSegmentation,
    assign,
)
from projects.SegFormer.tools import export, predict

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
    names = [f"class {index}" for index in range(model.head.linear_pred.weight.shape[0])]
    return to_onnx(model, names, MEAN, STD)


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
    names = [f"class {index}" for index in range(classes)]
    assert metadata_of(graph) == {"classes": names, "mean": MEAN, "std": STD}


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
    metadata = {
        entry.key: json.loads(entry.value) for entry in onnx.load(str(output)).metadata_props
    }
    assert metadata == {"classes": list(CLASSES), "mean": MEAN, "std": STD}


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


# --- errors -------------------------------------------------------------------------------------


def test_a_graph_that_differs_is_not_written(weights, folder_data, tmp_path, monkeypatch):
    def wrong(*arguments):
        graph = to_onnx(*arguments)
        (bias,) = (x for x in graph.graph.initializer if x.name == "head.linear_pred.bias")
        shifted = onnx.numpy_helper.to_array(bias) + np.float32(1e-3)
        bias.CopyFrom(onnx.numpy_helper.from_array(shifted, bias.name))
        return graph

    monkeypatch.setattr(export, "to_onnx", wrong)
    with pytest.raises(InputError, match=r"differ from OneFlow's by 1\.0e-03, more than 0\.0001"):
        export_tool(weights, folder_data, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(weights, folder_data, tmp_path):
    output = tmp_path / "model.onnx"
    output.write_text("mine")
    with pytest.raises(InputError, match="model.onnx is already there"):
        export_tool(weights, folder_data, output)
    assert output.read_text() == "mine"


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
