"""SegFormer of any size: `model_size=b3` for a run, `model_size.name = "b3"` in a config.

mit_b0.py to mit_b5.py are those of one size; modeling/sizes.py has what they differ in.
"""

from libai.config import LazyCall
from omegaconf import OmegaConf

from projects.SegFormer.modeling import sizes
from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

model_size = dict(name="b0", choices=sizes.SIZES)


def settings(size: str | None = None) -> dict:
    """Of a model for segmentation; without a size, of that which is chosen when it is read."""
    of_the_chosen = "${model_size.choices.${model_size.name}.%s}"
    its = sizes.SIZES[size] if size else {name: of_the_chosen % name for name in sizes.SIZES["b0"]}
    return dict(
        num_channels=3,
        # A value a stage.
        depths=its["depths"],
        hidden_sizes=its["hidden_sizes"],
        num_attention_heads=[1, 2, 5, 8],
        sr_ratios=[8, 4, 2, 1],
        mlp_ratios=[4, 4, 4, 4],
        patch_sizes=[7, 3, 3, 3],
        strides=[4, 2, 2, 2],
        drop_path_rate=0.1,
        # As the paper's code has them. Weights from Hugging Face want 1e-5 in both.
        layer_norm_eps=1e-6,
        embed_norm_eps=1e-5,
        decoder_hidden_size=its["decoder_hidden_size"],
        decoder_dropout=0.1,
        num_classes=150,
        ignore_index=255,
        loss=dict(
            class_weights=None,  # a weight a class
            label_smoothing=0.0,
            # Only pixels whose own class has less than this probability, but so many an image at
            # least.
            ohem_threshold=None,
            ohem_min_kept=100_000,
            dice_weight=0.0,  # of a Dice loss beside the cross entropy
        ),
        # ImageNet-1K weights to start from: mit_bX.pth or a folder with pytorch_model.bin.
        pretrained_model_path=None,
    )


def segmentation(size: str) -> tuple[dict, dict]:
    """`cfg` and `model` of one size."""
    model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=settings(size))
    return OmegaConf.to_container(model.cfg), model


cfg = settings()
