"""SegFormer-B3 for segmentation, 44.0 + 3.3 M parameters."""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

from .mit_b0 import cfg as _b0

cfg = {
    **_b0,
    "hidden_sizes": [64, 128, 320, 512],
    "depths": [3, 4, 18, 3],
    "decoder_hidden_size": 768,
}

model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=cfg)
