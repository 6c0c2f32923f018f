"""What the layers compute on a CPU, as functions of NumPy arrays: `operator`s of `arrays`.

Loops over pixels and channels are compiled by Numba, which takes a third of a second to load: that
happens with the first use.
"""

from importlib import import_module

_PLACES = {
    "activations": ("gelu", "relu", "scaled"),
    "attention": ("attend",),
    "compiled": ("arg_max",),
    "convolutions": ("conv2d", "depthwise_conv2d"),
    "interpolation": ("upsample", "upsampled_sum"),
    "losses": ("cross_entropy", "dice_loss", "over_pixels"),
    "norms": ("batch_norm", "layer_norm"),
    "products": ("linear", "pointwise_conv2d"),
    "threads": ("in_parallel",),
}


def __getattr__(name: str):
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
