"""SegFormer-B0 for segmentation, 3.4 + 0.4 M parameters. B1 to B5 are the difference to this."""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

cfg = dict(
    num_channels=3,
    # A value a stage.
    depths=[2, 2, 2, 2],
    hidden_sizes=[32, 64, 160, 256],
    num_attention_heads=[1, 2, 5, 8],
    sr_ratios=[8, 4, 2, 1],
    mlp_ratios=[4, 4, 4, 4],
    patch_sizes=[7, 3, 3, 3],
    strides=[4, 2, 2, 2],
    drop_path_rate=0.1,
    # As the paper's code has them. Weights from Hugging Face want 1e-5 in both.
    layer_norm_eps=1e-6,
    embed_norm_eps=1e-5,
    decoder_hidden_size=256,
    decoder_dropout=0.1,
    num_classes=150,
    ignore_index=255,
    loss=dict(
        class_weights=None,  # a weight a class
        label_smoothing=0.0,
        # Only pixels whose own class has less than this probability, but so many an image at least.
        ohem_threshold=None,
        ohem_min_kept=100_000,
        dice_weight=0.0,  # of a Dice loss beside the cross entropy
    ),
    # ImageNet-1K weights to start from: a file (mit_bX.pth) or a folder with pytorch_model.bin.
    pretrained_model_path=None,
)

model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=cfg)
