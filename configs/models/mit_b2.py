"""SegFormer-B2 for segmentation, 24.2 + 3.3 M parameters."""

from .by_size import segmentation

cfg, model = segmentation("b2")
