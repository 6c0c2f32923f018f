"""The paper's ImageNet-1K weights into the encoder of a segmentation model."""

from projects.SegFormer.model_utils.segf_loader import SegFLoader, fill_model


class SegFLoaderImageNet1kPretrain(SegFLoader):
    """Loads `mit_bX.pth` of the paper's authors: the file, or a folder that holds it under that
    name or as pytorch_model.bin.

    `load` fills the whole of a classification model; `load_encoder` fills only the encoder of any
    model, whose head stays as it is, from weights in any format, and their eps.
    """

    def load_encoder(self, model) -> None:
        """Fill the encoder of `model`. Raises InputError like `load`."""
        fill_model(model, self.path, only="segformer.", strict=self.strict)
