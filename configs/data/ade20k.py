"""ADE20K, 150 classes: crops of 512x512 from images that fit in 512x2048."""

from libai.config import LazyCall

from projects.SegFormer.dataset.ade20k import ADE20K
from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    Pad,
    PhotometricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
)

# root: the folder ADEChallengeData2016. scale: (height, width) that images fit in, times a random
# factor; evaluation uses it too. mean, std: a value a channel, of values from 0 to 255.
# `data.root=PATH` on the command line sets it for both splits; so it is with the others.
data = dict(
    root="data/ade20k",
    scale=(512, 2048),
    crop=(512, 512),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

train_transforms = [
    LazyCall(RandomResize)(size="${data.scale}", ratio_range=(0.5, 2.0)),
    LazyCall(RandomCrop)(size="${data.crop}", cat_max_ratio=0.75),
    LazyCall(RandomFlip)(prob=0.5),
    LazyCall(PhotometricDistortion)(),
    LazyCall(Normalize)(mean="${data.mean}", std="${data.std}"),
    LazyCall(Pad)(size="${data.crop}"),
]
test_transforms = [LazyCall(Normalize)(mean="${data.mean}", std="${data.std}")]

# What both splits are told; of the model, what their images and labels must fit.
shared = dict(
    root="${data.root}",
    num_channels="${model.cfg.num_channels}",
    ignore_index="${model.cfg.ignore_index}",
)
dataloader = dict(
    train=LazyCall(build_train_loader)(
        dataset=LazyCall(ADE20K)(**shared, split="training", transforms=train_transforms),
        num_workers=4,
    ),
    test=[
        LazyCall(build_test_loader)(
            dataset=LazyCall(ADE20K)(**shared, split="validation", transforms=test_transforms),
            num_workers=4,
        )
    ],
)
