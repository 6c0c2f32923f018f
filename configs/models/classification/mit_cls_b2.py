"""MiT-B2 with the ImageNet classifier, 25.4 M parameters."""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification

from ..mit_b2 import cfg as _segmentation
from .mit_cls_b0 import cfg as _b0

cfg = {**_b0, **{name: _segmentation[name] for name in ("depths", "hidden_sizes")}}

model = LazyCall(SegformerForImageClassification)(cfg=cfg)
