"""SegFormer-B5 for segmentation, 81.4 + 3.3 M parameters."""

from .by_size import segmentation

cfg, model = segmentation("b5")
