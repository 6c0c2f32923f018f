"""MiT-B3 with the ImageNet classifier, 45.2 M parameters."""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification

from ..mit_b3 import cfg as _segmentation
from .mit_cls_b0 import cfg as _b0

cfg = {**_b0, **{name: _segmentation[name] for name in ("depths", "hidden_sizes")}}

model = LazyCall(SegformerForImageClassification)(cfg=cfg)
