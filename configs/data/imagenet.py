"""ImageNet-1K with the augmentation of DeiT, which the paper's pre-training follows."""

from libai.config import LazyCall

from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.classification import ImageNet
from projects.SegFormer.dataset.classification_transforms import (
    CenterCrop,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    ResizeShortSide,
)
from projects.SegFormer.dataset.mixing import Mixing
from projects.SegFormer.dataset.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    RandomFlip,
)

# Holds train/<WordNet id>/*.JPEG and val, in folders like these or as it is downloaded.
# `data.root=PATH` on the command line sets it for both splits.
# scale: short side of the images in evaluation. crop: (height, width), in training too.
data = dict(root="data/imagenet", scale=256, crop=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)

dataloader = dict(
    train=LazyCall(build_train_loader)(
        dataset=LazyCall(ImageNet)(
            root="${data.root}",
            num_channels="${model.cfg.num_channels}",
            split="train",
            transforms=[
                LazyCall(RandomResizedCrop)(
                    size="${data.crop}", scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
                ),
                LazyCall(RandomFlip)(prob=0.5),
                LazyCall(RandAugment)(magnitude=9.0, num_ops=2, magnitude_std=0.5),
                LazyCall(Normalize)(mean="${data.mean}", std="${data.std}"),
                LazyCall(RandomErasing)(prob=0.25),
            ],
        ),
        mixing=LazyCall(Mixing)(
            num_classes="${model.cfg.num_classes}",
            mixup_alpha=0.8,
            cutmix_alpha=1.0,
            prob=1.0,
            switch_prob=0.5,
            seed="${train.seed}",
        ),
        # 3 in the code of DeiT and PVT; the paper does not speak of it.
        repeated_augmentation=1,
        num_workers=8,
    ),
    test=[
        LazyCall(build_test_loader)(
            dataset=LazyCall(ImageNet)(
                root="${data.root}",
                num_channels="${model.cfg.num_channels}",
                split="val",
                transforms=[
                    LazyCall(ResizeShortSide)(size="${data.scale}"),
                    LazyCall(CenterCrop)(size="${data.crop}"),
                    LazyCall(Normalize)(mean="${data.mean}", std="${data.std}"),
                ],
            ),
            num_workers=8,
        )
    ],
)
