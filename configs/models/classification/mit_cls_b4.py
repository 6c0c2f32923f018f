"""MiT-B4 with the ImageNet classifier, 62.6 M parameters."""

from .by_size import classification

cfg, model = classification("b4")
