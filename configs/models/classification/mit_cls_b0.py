"""MiT-B0 with the ImageNet classifier, 3.7 M parameters."""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification

from ..mit_b0 import cfg as _segmentation

_SEGMENTATION_ONLY = (
    "decoder_hidden_size",
    "decoder_dropout",
    "ignore_index",
    "loss",
    "pretrained_model_path",
)
cfg = {
    **{name: value for name, value in _segmentation.items() if name not in _SEGMENTATION_ONLY},
    "num_classes": 1000,
    "label_smoothing": 0.1,
}

model = LazyCall(SegformerForImageClassification)(cfg=cfg)
