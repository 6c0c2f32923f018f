"""SegFormer of any size: `model_size=b3` for a run, `model_size.name = "b3"` in a config."""

from .mit_b0 import cfg as _b0
from .mit_b1 import cfg as _b1
from .mit_b2 import cfg as _b2
from .mit_b3 import cfg as _b3
from .mit_b4 import cfg as _b4
from .mit_b5 import cfg as _b5

_OF_A_SIZE = ("depths", "hidden_sizes", "decoder_hidden_size")

model_size = dict(
    name="b0",
    choices={
        name: {setting: cfg[setting] for setting in _OF_A_SIZE}
        for name, cfg in dict(b0=_b0, b1=_b1, b2=_b2, b3=_b3, b4=_b4, b5=_b5).items()
    },
)
# The value of a setting for the size that is chosen when the config is read.
of_the_chosen = "${model_size.choices.${model_size.name}.%s}"
cfg = {**_b0, **{setting: of_the_chosen % setting for setting in _OF_A_SIZE}}
