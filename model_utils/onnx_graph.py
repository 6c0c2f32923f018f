"""A segmentation model as an ONNX graph, laid out for ONNX Runtime on a CPU.

Operators of opset 17 only, float32; batch, height and width are dynamic. Maps are channels-last, as
in the model, so that matrix products and layer norms find their rows in one piece. Convolutions
want channels first; the transposes around them melt into the regrouping of channels that ONNX
Runtime's convolutions do in any case. The first layer of Mix-FFN is a 1x1 convolution, since then
nothing is regrouped between it and the depthwise one. Attention goes over the rows of a map, so
that what is in memory grows with the pixels and not with their square; a graph of one size, which
is for compilers that have no loops, does without that.
"""

import numpy as np
import oneflow as flow
import onnx
from onnx import TensorProto, helper, numpy_helper

from projects.SegFormer.model_utils.model_weights import state_of, whole
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation

OPSET = 17
IR_VERSION = 8  # of the ONNX release that brought opset 17: older readers take nothing newer
IMAGES, LOGITS, LABELS = "images", "prediction_scores", "labels"
# All that a graph is made of here, quantised too.
OPERATORS = (
    *(
        "Add",
        "ArgMax",
        "Cast",
        "Concat",
        "Conv",
        "Div",
        "Erf",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Relu",
    ),
    *("Reshape", "Resize", "Scan", "Shape", "Softmax", "Sum", "Transpose"),
    *("DequantizeLinear", "QuantizeLinear"),
)
SCANNED = ("MatMul", "Softmax")  # what is done to each row in a Scan
CHANNELS_FIRST, CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
BILINEAR = dict(mode="linear", coordinate_transformation_mode="half_pixel")


def to_onnx(model: SegformerForSemanticSegmentation, by_rows: bool = True) -> onnx.ModelProto:
    """The model as it is in evaluation, with the decode head folded (modeling/head.py).

    Shape: `images` float32 (N, C, H, W), normalised, both sides 32 or more -> `prediction_scores`
    float32 (N, classes, H / 4, W / 4), sides rounded up.

    Args:
        by_rows: whether attention goes over the rows of a map, one after the other, or is computed
            at once.
    """
    writer = _Writer(model, by_rows)
    writer.decode_head(writer.encoder(IMAGES))
    writer.nodes[-1].output[0] = LOGITS
    channels = model.segformer.patch_embeds[0].proj.weight.shape[1]
    classes = model.head.linear_pred.weight.shape[0]
    graph = helper.make_graph(
        writer.nodes,
        "segformer",
        [_value_info(IMAGES, TensorProto.FLOAT, ["N", channels, "H", "W"])],
        [_value_info(LOGITS, TensorProto.FLOAT, ["N", classes, "H_out", "W_out"])],
        [numpy_helper.from_array(values, name) for name, values in writer.constants.items()],
    )
    proto = helper.make_model(
        graph, producer_name="SegFormer for LiBai", opset_imports=[helper.make_opsetid("", OPSET)]
    )
    proto.ir_version = IR_VERSION
    return proto


def add_arg_max(proto: onnx.ModelProto) -> None:
    """Make labels of the logits of `to_onnx`'s graph, in place.

    `labels` is int64 (N, H, W), of each pixel of the images the class whose logit is highest after
    bilinear interpolation (half-pixel centres).
    """
    graph = proto.graph
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value

    def add(operator: str, result: str, *inputs: str, **attributes) -> str:
        graph.node.append(helper.make_node(operator, inputs, [result], result, **attributes))
        return result

    # ONNX Runtime interpolates and compares several times as fast with channels last.
    logits = add("Transpose", f"{LABELS}.logits", LOGITS, perm=CHANNELS_LAST)
    batch = add("Shape", f"{LABELS}.batch", IMAGES, start=0, end=1)
    size = add("Shape", f"{LABELS}.size", IMAGES, start=2, end=4)
    count = f"{LABELS}.classes"
    graph.initializer.append(numpy_helper.from_array(np.array([classes]), count))
    sizes = add("Concat", f"{LABELS}.sizes", batch, size, count, axis=0)
    scores = add("Resize", f"{LABELS}.scores", logits, "", "", sizes, **BILINEAR)
    add("ArgMax", LABELS, scores, axis=3, keepdims=0)
    del graph.output[:]
    graph.output.append(_value_info(LABELS, TensorProto.INT64, ["N", "H", "W"]))


def fix_size(proto: onnx.ModelProto, height: int, width: int) -> onnx.ModelProto:
    """The graph for one image of this size at a time, with the shape of every result in it."""
    fixed = onnx.ModelProto.FromString(proto.SerializeToString())
    (images,), (output,) = fixed.graph.input, fixed.graph.output
    _, channels, *_ = images.type.tensor_type.shape.dim
    images.CopyFrom(_value_info(IMAGES, TensorProto.FLOAT, [1, channels.dim_value, height, width]))
    output.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)


def _value_info(name: str, element_type: int, shape: list | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, shape)


class _Writer:
    """Writes nodes and constants, named after the layers that they are of.

    The methods of layers take names of tensors and the name of the layer and give the name of the
    result. Maps are (N, H, W, C).
    """

    def __init__(self, model: SegformerForSemanticSegmentation, by_rows: bool):
        self.model, self.by_rows = model, by_rows
        self.layers = dict(model.named_modules())
        self.state = state_of(model)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, operator: str, name: str, *inputs: str, **attributes) -> str:
        result = f"{name}.{operator}"
        self.nodes.append(helper.make_node(operator, inputs, [result], result, **attributes))
        return result

    def constant(self, name: str, values) -> str:
        self.constants[name] = np.ascontiguousarray(values)
        return name

    def parameters(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of a layer."""
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def affine(self, name: str, weight: np.ndarray, bias: np.ndarray) -> tuple[str, str]:
        return self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)

    def encoder(self, x: str) -> list[str]:
        """Images (N, C, H, W) -> the maps after each stage, finest first."""
        features = []
        for stage, blocks in enumerate(self.model.segformer.blocks):
            name = f"segformer.patch_embeds.{stage}"
            if features:
                x = self.node("Transpose", name, x, perm=CHANNELS_FIRST)
            x = self.layer_norm(self.strided_conv(x, f"{name}.proj"), f"{name}.norm")
            for block in range(len(blocks)):
                x = self.block(x, f"segformer.blocks.{stage}.{block}")
            x = self.layer_norm(x, f"segformer.layer_norms.{stage}")
            features.append(x)
        return features

    def block(self, x: str, name: str) -> str:
        y = self.attention(self.layer_norm(x, f"{name}.norm1"), f"{name}.attn")
        x = self.node("Add", f"{name}.attn", x, y)
        y = self.mix_ffn(self.layer_norm(x, f"{name}.norm2"), f"{name}.mlp")
        return self.node("Add", f"{name}.mlp", x, y)

    def attention(self, x: str, name: str) -> str:
        layer = self.layers[name]
        reduced = x
        if layer.sr_ratio > 1:
            reduced = self.node("Transpose", name, x, perm=CHANNELS_FIRST)
            reduced = self.layer_norm(self.strided_conv(reduced, f"{name}.sr"), f"{name}.norm")
        q = [values * layer.scale for values in self.parameters(f"{name}.q")]
        k, v = zip(*(np.split(values, 2, axis=-1) for values in self.parameters(f"{name}.kv")))
        of_rows = [1, 0, 3, 2, 4]  # (N, H, W, heads, C / heads) <-> (H, N, heads, W, C / heads)
        axes = of_rows if self.by_rows else [0, 2, 1, 3]  # or as the values, with L for M
        query = self.heads(self.product(x, f"{name}.q", *q), name, "q", axes)
        key = self.heads(self.product(reduced, f"{name}.k", *k), name, "k", [0, 2, 3, 1])
        value = self.heads(self.product(reduced, f"{name}.v", *v), name, "v", [0, 2, 1, 3])
        attend = self.attend_by_rows if self.by_rows else self.attend
        context = attend(query, key, value, name)
        context = self.node("Transpose", f"{name}.context", context, perm=axes)
        shape = self.node("Shape", f"{name}.context", x)
        context = self.node("Reshape", f"{name}.context", context, shape)
        return self.linear(context, f"{name}.proj")

    def attend(self, query: str, key: str, value: str, name: str) -> str:
        """What the queries find.

        Query (N, heads, L, C / heads), key (N, heads, C / heads, M), value with its last axes the
        other way round -> as query.
        """
        scores = self.node("MatMul", f"{name}.scores", query, key)  # (N, heads, L, M)
        weights = self.node("Softmax", f"{name}.scores", scores, axis=-1)
        return self.node("MatMul", f"{name}.context", weights, value)

    def attend_by_rows(self, query: str, key: str, value: str, name: str) -> str:
        """The same of queries (H, N, heads, W, C / heads), one row of the map after the other: what
        is in memory of their scores are a row's, however large the image is.
        """
        outer, self.nodes = self.nodes, []
        row = f"{name}.row"
        result = self.attend(row, key, value, name)
        body, self.nodes = self.nodes, outer
        ends = ([_value_info(end, TensorProto.FLOAT, None)] for end in (row, result))
        graph = helper.make_graph(body, f"{name}.rows", *ends)
        return self.node("Scan", f"{name}.context", query, body=graph, num_scan_inputs=1)

    def heads(self, x: str, name: str, part: str, axes: list[int]) -> str:
        """A map as (N, H, W, heads, C / heads), or (N, L, heads, C / heads), its axes then put in
        another order."""
        layer = self.layers[name]
        size = self.state[f"{name}.q.bias"].size // layer.num_heads
        places = [0] * (len(axes) - 2) if len(axes) > 4 else [0, -1]
        shape = self.constant(f"{name}.heads.{part}", [*places, layer.num_heads, size])
        x = self.node("Reshape", f"{name}.{part}", x, shape)
        return self.node("Transpose", f"{name}.{part}", x, perm=axes)

    def mix_ffn(self, x: str, name: str) -> str:
        first = f"{name}.dense_h_to_4h"
        x = self.node("Transpose", first, x, perm=CHANNELS_FIRST)
        matrix, bias = self.parameters(first)
        x = self.conv(x, first, matrix.T[:, :, None, None], bias)
        depthwise = f"{name}.dwconv.dwconv"
        x = self.conv(x, depthwise, *self.parameters(depthwise), group=len(bias), pads=[1] * 4)
        x = self.node("Transpose", depthwise, x, perm=CHANNELS_LAST)
        return self.linear(self.gelu(x, name), f"{name}.dense_4h_to_h")

    def decode_head(self, features: list[str]) -> str:
        """Maps, finest first -> logits (N, num_classes, H_0, W_0)."""
        with flow.no_grad():
            matrices, bias = self.model.head.folded()
        finest = features[0]
        batch = self.node("Shape", "head.batch", finest, start=0, end=1)
        size = self.node("Shape", "head.size", finest, start=1, end=3)
        channels = self.constant("head.channels", [len(bias)])
        sizes = self.node("Concat", "head.sizes", batch, size, channels, axis=0)
        parts = []
        for scale, (feature, matrix) in enumerate(zip(features, matrices)):
            name = f"head.scale.{scale}"
            matrix = self.constant(f"{name}.weight", whole(matrix).numpy())
            part = self.node("MatMul", name, feature, matrix)
            if feature == features[-1]:  # the smallest; interpolation keeps what is the same in all
                part = self.node("Add", name, part, self.constant("head.bias", whole(bias).numpy()))
            if feature != finest:
                part = self.node("Resize", name, part, "", "", sizes, **BILINEAR)
            parts.append(part)
        x = self.node("Relu", "head", self.node("Sum", "head", *parts))
        return self.classifier(x, "head.linear_pred", batch, size)

    def classifier(self, x: str, name: str, batch: str, size: str) -> str:
        """A 1x1 convolution, as the product that gives channels first from channels last."""
        weight, bias = self.parameters(name)
        classes, channels, _, _ = weight.shape
        weight, bias = self.affine(name, weight[:, :, 0, 0], bias[:, None])
        rows = self.constant(f"{name}.rows", [0, -1, channels])
        x = self.node("Reshape", f"{name}.in", x, rows)  # (N, L, C)
        x = self.node("Transpose", name, x, perm=[0, 2, 1])
        x = self.node("Add", name, self.node("MatMul", name, weight, x), bias)
        count = self.constant(f"{name}.classes", [classes])
        shape = self.node("Concat", name, batch, count, size, axis=0)
        return self.node("Reshape", name, x, shape)

    def layer_norm(self, x: str, name: str) -> str:
        affine = self.affine(name, *self.parameters(name))
        epsilon = self.layers[name].eps
        return self.node("LayerNormalization", name, x, *affine, axis=-1, epsilon=epsilon)

    def linear(self, x: str, name: str) -> str:
        return self.product(x, name, *self.parameters(name))

    def product(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        """A map times a matrix (in, out), plus a bias (out,)."""
        weight, bias = self.affine(name, weight, bias)
        return self.node("Add", name, self.node("MatMul", name, x, weight), bias)

    def strided_conv(self, x: str, name: str) -> str:
        """Of a map with channels first, one with channels last."""
        layer = self.layers[name]
        strides, pads = [layer.stride] * 2, [layer.padding] * 4
        x = self.conv(x, name, *self.parameters(name), strides=strides, pads=pads)
        return self.node("Transpose", name, x, perm=CHANNELS_LAST)

    def conv(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray, **attributes) -> str:
        """Channels first, before and after."""
        return self.node("Conv", name, x, *self.affine(name, weight, bias), **attributes)

    def gelu(self, x: str, name: str) -> str:
        """x / 2 * (1 + erf(x / sqrt(2))), in the order in which ONNX Runtime knows it for GELU."""
        root, one, half = (
            self.constant(f"gelu.{part}", np.float32(value))
            for part, value in (("root", 2**0.5), ("one", 1), ("half", 0.5))
        )
        y = self.node("Erf", name, self.node("Div", name, x, root))
        y = self.node("Mul", f"{name}.erf", x, self.node("Add", f"{name}.erf", y, one))
        return self.node("Mul", f"{name}.gelu", y, half)
