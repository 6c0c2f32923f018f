"""MiT-B4 with the ImageNet classifier, 62.6 M parameters."""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification

from ..mit_b4 import cfg as _segmentation
from .mit_cls_b0 import cfg as _b0

cfg = {**_b0, **{name: _segmentation[name] for name in ("depths", "hidden_sizes")}}

model = LazyCall(SegformerForImageClassification)(cfg=cfg)
