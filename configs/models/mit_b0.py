"""SegFormer-B0 for segmentation, 3.4 + 0.4 M parameters."""

from .by_size import segmentation

cfg, model = segmentation("b0")
