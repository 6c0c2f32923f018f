"""SegFormer-B3 for segmentation, 44.0 + 3.3 M parameters."""

from .by_size import segmentation

cfg, model = segmentation("b3")
