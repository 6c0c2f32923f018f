"""MiT with the ImageNet classifier, of any size: `model_size=b3`."""

from ..by_size import model_size, of_the_chosen
from .mit_cls_b0 import cfg as _b0

cfg = {**_b0, **{setting: of_the_chosen % setting for setting in ("depths", "hidden_sizes")}}
