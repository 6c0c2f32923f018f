"""The paper's ImageNet-1K weights into the encoder of a segmentation model."""

from projects.SegFormer.model_utils.key_rules import OFFICIAL_IMAGENET
from projects.SegFormer.model_utils.segf_loader import SegFLoader
from projects.SegFormer.model_utils.weight_files import load_state


class SegFLoaderImageNet1kPretrain(SegFLoader):
    """Loads `mit_bX.pth` of the paper's authors, or a folder that holds it as pytorch_model.bin.

    `load` fills the whole of a classification model; `load_encoder` fills only the encoder of any
    model, whose head stays as it is.
    """

    key_format = OFFICIAL_IMAGENET
    file_names = ("pytorch_model.bin", *(f"mit_b{size}.pth" for size in range(6)))

    def load_encoder(self, model) -> None:
        """Fill the encoder of `model`. Raises InputError like `load`."""
        load_state(model, self.read(), self.path, only="segformer.", strict=self.strict)
