"""Drawn street scenes of 128x256 in the layout of Cityscapes, with its 19 classes."""

from libai.config import LazyCall

from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.cityscapes import Cityscapes
from projects.SegFormer.dataset.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    Pad,
    RandomCrop,
    RandomFlip,
    Resize,
)

# scale: (height, width) that the images get, which is their own; crop: of that, all.
data = dict(
    root="output/quickstart/data",
    scale=(128, 256),
    crop=(128, 256),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

# What both splits are told; of the model, what their images and labels must fit.
shared = dict(
    root="${data.root}",
    num_channels="${model.cfg.num_channels}",
    ignore_index="${model.cfg.ignore_index}",
)
dataloader = dict(
    train=LazyCall(build_train_loader)(
        dataset=LazyCall(Cityscapes)(
            **shared,
            split="train",
            transforms=[
                LazyCall(Resize)(size="${data.scale}"),
                LazyCall(RandomCrop)(size="${data.crop}"),
                LazyCall(RandomFlip)(prob=0.5),
                LazyCall(Normalize)(mean="${data.mean}", std="${data.std}"),
                LazyCall(Pad)(size="${data.crop}"),
            ],
        ),
        num_workers=1,
    ),
    test=[
        LazyCall(build_test_loader)(
            dataset=LazyCall(Cityscapes)(
                **shared,
                split="val",
                transforms=[LazyCall(Normalize)(mean="${data.mean}", std="${data.std}")],
            ),
            num_workers=1,
        )
    ],
)
