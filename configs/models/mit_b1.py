"""SegFormer-B1 for segmentation, 13.1 + 0.6 M parameters."""

from .by_size import segmentation

cfg, model = segmentation("b1")
