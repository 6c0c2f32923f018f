"""Cityscapes, 19 classes: crops of 1024x1024, the augmentation of ADE20K."""

from libai.config import LazyCall

from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.cityscapes import Cityscapes
from projects.SegFormer.dataset.transforms import IMAGENET_MEAN, IMAGENET_STD

from .ade20k import test_transforms, train_transforms

# Holds leftImg8bit and gtFine. `data.root=PATH` on the command line sets it for all splits.
data = dict(
    root="data/cityscapes",
    scale=(1024, 2048),
    crop=(1024, 1024),
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
            split="train",  # or train_extra, with coarse labels
            transforms=train_transforms,
        ),
        num_workers=4,
    ),
    test=[
        LazyCall(build_test_loader)(
            dataset=LazyCall(Cityscapes)(**shared, split="val", transforms=test_transforms),
            num_workers=4,
        )
    ],
)
