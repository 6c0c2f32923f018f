"""SegFormer-B4 for segmentation, 60.8 + 3.3 M parameters."""

from .by_size import segmentation

cfg, model = segmentation("b4")
