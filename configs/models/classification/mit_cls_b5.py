"""MiT-B5 with the ImageNet classifier, 82.0 M parameters."""

from .by_size import classification

cfg, model = classification("b5")
