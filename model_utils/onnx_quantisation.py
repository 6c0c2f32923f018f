"""An ONNX graph in fewer bits: static quantisation to int8, and float16."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from onnxruntime.transformers.float16 import convert_float_to_float16

from projects.SegFormer.model_utils.onnx_graph import IMAGES


def quantise(proto: onnx.ModelProto, batches: Iterable[np.ndarray]) -> onnx.ModelProto:
    """`proto` of onnx_graph.to_onnx with its encoder's linear layers and convolutions in int8.

    Weights are quantised per channel, activations by the range that they have over `batches`,
    images as the graph takes them. The rest stays float32: what is quantised in attention gains no
    time before the softmax is too, and that is four times as slow; in the decode head as much is
    lost between the formats as is gained by the products.
    """
    weights = {weight.name for weight in proto.graph.initializer}
    layers = [
        node.name
        for node in proto.graph.node
        if node.op_type in ("Conv", "MatMul")
        and node.name.startswith("segformer.")
        and node.input[1] in weights
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, target = (str(Path(folder) / f"{name}.onnx") for name in ("float32", "int8"))
        prepared = onnx.ModelProto.FromString(proto.SerializeToString())
        add_pre_process_metadata(prepared)  # there is nothing to prepare, and no need to warn of it
        onnx.save(prepared, source)
        quantize_static(
            source,
            target,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=layers,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        quantised = onnx.load(target)
    _put_in_order(quantised.graph)
    return quantised


def to_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` of onnx_graph.to_onnx with weights and computation in float16.

    Images and logits stay float32. The means and variances of LayerNormalization are float32 by its
    definition in ONNX, and softmax takes the largest score off first, so that neither overflows. On
    a CPU without float16 ONNX Runtime computes in float32, and rounds.
    """
    half = onnx.ModelProto.FromString(proto.SerializeToString())
    half = convert_float_to_float16(
        half, keep_io_types=True, disable_shape_infer=True, op_block_list=[]
    )
    _put_in_order(half.graph)
    return half


def _put_in_order(graph: onnx.GraphProto) -> None:
    """Each node after those that it reads. The quantiser's order leaves out what bodies read, the
    converter's has the changes of type at the end."""
    nodes = _in_order(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)


def _in_order(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    makers = {result: node for node in nodes for result in node.output}
    placed: dict[str, onnx.NodeProto] = {}

    def place(node: onnx.NodeProto) -> None:
        inner = [it for attribute in node.attribute for it in attribute.g.node]
        for name in [name for it in (node, *inner) for name in it.input]:
            if name in makers and makers[name].output[0] not in placed:
                place(makers[name])
        placed[node.output[0]] = node

    for node in nodes:
        if node.output[0] not in placed:
            place(node)
    return list(placed.values())


class _Reader(CalibrationDataReader):
    def __init__(self, batches: Iterable[np.ndarray]):
        self.batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self.batches, None)
        return None if images is None else {IMAGES: images}
