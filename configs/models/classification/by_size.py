"""MiT with the ImageNet classifier, of any size: `model_size=b3`."""

from libai.config import LazyCall
from omegaconf import OmegaConf

from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification

from ..by_size import model_size
from ..by_size import settings as _segmentation


def settings(size: str | None = None) -> dict:
    """Of a classifier; without a size, of that which is chosen when it is read."""
    found = _segmentation(size)
    for name in ("decoder_hidden_size", "decoder_dropout", "ignore_index", "loss"):
        del found[name]
    del found["pretrained_model_path"]
    return {**found, "num_classes": 1000, "label_smoothing": 0.1}


def classification(size: str) -> tuple[dict, dict]:
    """`cfg` and `model` of one size."""
    model = LazyCall(SegformerForImageClassification)(cfg=settings(size))
    return OmegaConf.to_container(model.cfg), model


cfg = settings()
