"""A model.onnx in the place of a model of this project."""

import os

import oneflow as flow
from oneflow import nn

from projects.SegFormer.model_utils.onnx_graph import IMAGES, LABELS, LOGITS
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.segformer_model import to_input


class OnnxModel(nn.Module):
    """A graph that tools/export.py wrote, run by ONNX Runtime on the CPU.

    Args:
        source: the file, or what is in it.
        ignore_index: the label that counts nowhere, for an evaluation.
    Shape: images (N, C, H, W) -> {"prediction_scores": (N, num_classes, H / 4, W / 4)}.

    Raises:
        InputError: ONNX Runtime is missing or cannot read the graph, or the graph gives no logits.
    """

    def __init__(self, source: str | bytes, ignore_index: int = 255):
        super().__init__()
        self.session = open_session(source)
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
        self.num_classes = outputs[LOGITS].shape[1]

    def forward(self, images: flow.Tensor) -> dict[str, flow.Tensor]:
        (logits,) = self.session.run([LOGITS], {IMAGES: images.numpy()})
        return {"prediction_scores": to_input(flow.from_numpy(logits))}


def open_session(source: str | bytes):
    """An onnxruntime.InferenceSession for a file or for what is in it. Errors as of OnnxModel."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"ONNX Runtime cannot be imported ({error}): run bash tools/setup.sh, or leave out "
            "--engine onnx"
        ) from error
    if isinstance(source, str) and not os.path.isfile(source):
        raise InputError(f"no file {source}: expected a model.onnx that tools/export.py wrote")
    try:
        return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's have no common class
        raise InputError(
            f"ONNX Runtime cannot read {_name(source)}: {str(error).splitlines()[0]}"
        ) from error


def _name(source: str | bytes) -> str:
    return source if isinstance(source, str) else "the graph"
