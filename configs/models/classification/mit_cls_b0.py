"""MiT-B0 with the ImageNet classifier, 3.7 M parameters."""

from .by_size import classification

cfg, model = classification("b0")
