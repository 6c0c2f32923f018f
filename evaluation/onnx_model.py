"""A model.onnx in the place of a model of this project."""

import os
from collections.abc import Iterator
from math import prod

import numpy as np
import oneflow as flow
import onnx
from oneflow import nn

from projects.SegFormer.model_utils.onnx_graph import IMAGES, LABELS, LOGITS, OPERATORS, SCANNED
from projects.SegFormer.modeling.bounds import ONNX_BYTES, image_pixels
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import read_bytes, reason
from projects.SegFormer.modeling.segformer_model import MIN_SIDE, to_input


class OnnxModel(nn.Module):
    """A graph that tools/export.py wrote, run by ONNX Runtime on the CPU.

    Args:
        source: the file, or what is in it.
        ignore_index: the label that counts nowhere, for an evaluation.
    Attributes:
        size: the (height, width) that alone it takes; None for a graph that takes any.
        metadata: of the file.
    Shape: images (N, C, H, W) -> {"prediction_scores": (N, num_classes, H / 4, W / 4)}.

    Raises:
        InputError: ONNX Runtime is missing or cannot read the graph, or the graph gives no logits.
    """

    def __init__(self, source: str | bytes, ignore_index: int = 255):
        super().__init__()
        self.session, self.name = open_session(source), _name(source)
        self.ignore_index = ignore_index
        outputs = {output.name: output for output in self.session.get_outputs()}
        if LABELS in outputs:
            raise InputError(
                f"{_name(source)} was exported with --arg-max and gives labels; windows, scales "
                "and sizes are put together of logits: export it without --arg-max"
            )
        if LOGITS not in outputs or [i.name for i in self.session.get_inputs()] != [IMAGES]:
            raise InputError(
                f"{_name(source)} is not a model of tools/export.py: expected a graph from "
                f"{IMAGES!r} to {LOGITS!r}"
            )
        shapes = {IMAGES: self.session.get_inputs()[0].shape, LOGITS: outputs[LOGITS].shape}
        for axes, shape in shapes.items():
            if len(shape) != 4 or not isinstance(shape[1], int):
                raise InputError(
                    f"{_name(source)} has {axes} of {len(shape)} axes, {shape}: expected four, "
                    "and a number of channels"
                )
        self.num_channels, self.num_classes = shapes[IMAGES][1], shapes[LOGITS][1]
        is_fixed = isinstance(shapes[IMAGES][2], int)
        self.size: tuple[int, int] | None = tuple(shapes[IMAGES][2:]) if is_fixed else None
        self.metadata = self.session.get_modelmeta().custom_metadata_map

    def forward(self, images: flow.Tensor) -> dict[str, flow.Tensor]:
        height, width = images.shape[2:]
        if self.size not in (None, (height, width)):
            raise InputError(
                f"{self.name} was exported with --size {self.size[0]} {self.size[1]} and takes no "
                f"image of {height}x{width}: leave inference.scales and inference.resize as they "
                "are, take windows of that size of larger images alone, or export it without --size"
            )
        batches = np.split(images.numpy(), len(images)) if self.size else [images.numpy()]
        try:
            logits = [self.session.run([LOGITS], {IMAGES: batch})[0] for batch in batches]
        except Exception as error:  # ONNX Runtime's have no common class
            raise InputError(f"{self.name}: ONNX Runtime cannot run it: {reason(error)}") from error
        return {"prediction_scores": to_input(flow.from_numpy(np.concatenate(logits)))}


def open_session(source: str | bytes):
    """An onnxruntime.InferenceSession for a file or for what is in it. Errors as of OnnxModel."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"ONNX Runtime cannot be imported ({error}): run bash tools/setup.sh, or leave out "
            "--engine onnx"
        ) from error
    name = _name(source)
    if isinstance(source, str):
        if not os.path.isfile(source):
            raise InputError(f"no file {source}: expected a model.onnx that tools/export.py wrote")
        source = read_bytes(source, ONNX_BYTES)
    if source[4:8] == b"ORTM":
        raise InputError(f"{name} is in ONNX Runtime's own format: expected one of tools/export.py")
    try:
        _check_graph(onnx.ModelProto.FromString(source), name)
        return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    except InputError:
        raise
    except Exception as error:  # ONNX Runtime's have no common class
        raise InputError(f"ONNX Runtime cannot read {name}: {reason(error)}") from error


def _check_graph(proto: onnx.ModelProto, name: str) -> None:
    """Raises InputError for what tools/export.py does not write: ONNX Runtime would read other
    files that a graph names, and take the memory that an operator on constants asks for.
    """
    constant = {""}  # an input that is left out
    for value in proto.graph.input:
        axes = value.type.tensor_type.shape.dim
        fixed = [axes[axis] for axis in (0, 2, 3) if axis < len(axes)]
        count, *sides = [axis.dim_value for axis in fixed] or [0]
        is_one = count == 1 and min(sides, default=0) >= MIN_SIDE and prod(sides) <= image_pixels()
        if any(axis.HasField("dim_value") for axis in fixed) and not is_one:
            raise InputError(
                f"{name} is not a model of tools/export.py: {value.name} has fixed sizes that are "
                "not of one image"
            )
    for tensor in proto.graph.initializer:
        constant.add(tensor.name)
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise InputError(f"{name} is refused: the values of {tensor.name} are in another file")
    sizes, of_no_map = set(constant), set(constant)
    for node in _nodes(proto.graph, name):
        if node.op_type == "Shape":
            sizes.update(node.output)
            of_no_map.update(node.output)
        # Sizes are made of those of images and maps: others could be of any number.
        if node.op_type == "Concat" and not sizes.issuperset(node.input):
            raise InputError(f"{name} is not a model of tools/export.py: {node.name} joins maps")
        if node.op_type == "Resize" and (len(node.input) < 4 or node.input[3] in constant):
            raise InputError(f"{name} is not a model of tools/export.py: {node.name} has a scale")
        is_known = node.op_type in OPERATORS and not node.domain
        # What is of no map could be computed before there is an image, and be of any size.
        is_of_map = not of_no_map.issuperset(node.input)
        is_allowed = is_of_map or node.op_type in ("Concat", "DequantizeLinear")
        if not is_of_map:
            of_no_map.update(node.output)
        if constant.issuperset(node.input):
            is_allowed = node.op_type == "DequantizeLinear"
            constant.update(node.output)
        if not is_known or not is_allowed or proto.functions or proto.graph.sparse_initializer:
            raise InputError(
                f"{name} is not a model of tools/export.py: it has {node.domain}{node.op_type} "
                f"{node.name} in it"
            )


def _nodes(graph: onnx.GraphProto, name: str) -> Iterator[onnx.NodeProto]:
    """All nodes, and those of the bodies in which attention goes over rows; errors as above."""
    for node in graph.node:
        yield node
        for body in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
            is_row = node.op_type == "Scan" and all(it.op_type in SCANNED for it in body.node)
            if not is_row or body.initializer or body.sparse_initializer:
                raise InputError(
                    f"{name} is not a model of tools/export.py: {node.name} does more than "
                    "attention"
                )
            yield from body.node


def _name(source: str | bytes) -> str:
    return source if isinstance(source, str) else "the graph"
