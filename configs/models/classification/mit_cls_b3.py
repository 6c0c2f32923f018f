"""MiT-B3 with the ImageNet classifier, 45.2 M parameters."""

from .by_size import classification

cfg, model = classification("b3")
