"""The segmentation model that starts from ImageNet-1K weights: what fine-tuning uses."""

from libai.config import configurable

from projects.SegFormer.model_utils.load_pretrained_imagenet1k import (
    SegFLoaderImageNet1kPretrain,
)
from projects.SegFormer.modeling.segformer_model import SegformerForSemanticSegmentation


class SegformerSegmentationLoadImageNetPretrain(SegformerForSemanticSegmentation):
    """SegformerForSemanticSegmentation whose encoder is loaded from `pretrained_model_path`.

    Args:
        pretrained_model_path: a file of the paper's authors (mit_bX.pth), or a folder with it or
            with pytorch_model.bin, or weights in another format; None for the initial weights of
            the paper's code. The eps of the weights goes over the defaults of `layer_norm_eps` and
            `embed_norm_eps`; another value of the config stays.
        segmentation: see SegformerForSemanticSegmentation.
    Raises InputError when the weights are missing or do not fit.
    """

    @configurable
    def __init__(self, *, pretrained_model_path=None, **segmentation):
        super().__init__(**segmentation)
        if pretrained_model_path:
            loader = SegFLoaderImageNet1kPretrain(type(self), segmentation, pretrained_model_path)
            loader.load_encoder(self)
