"""MiT-B1 with the ImageNet classifier, 13.7 M parameters."""

from .by_size import classification

cfg, model = classification("b1")
