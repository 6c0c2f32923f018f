"""MiT-B2 with the ImageNet classifier, 25.4 M parameters."""

from .by_size import classification

cfg, model = classification("b2")
