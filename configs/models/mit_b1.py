"""SegFormer-B1 for segmentation, 13.1 + 0.6 M parameters."""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

from .mit_b0 import cfg as _b0

cfg = {
    **_b0,
    "hidden_sizes": [64, 128, 320, 512],
}

model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=cfg)
