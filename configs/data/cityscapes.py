"""Cityscapes, 19 classes: crops of 1024x1024 in training, whole images in evaluation."""

from libai.config import LazyCall

from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.cityscapes import Cityscapes
from projects.SegFormer.dataset.transforms import (
    Normalize,
    Pad,
    PhotometricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
)

# Holds leftImg8bit and gtFine. `data.root=PATH` on the command line sets it for all splits.
data = dict(root="data/cityscapes")
crop = (1024, 1024)

dataloader = dict(
    train=LazyCall(build_train_loader)(
        dataset=LazyCall(Cityscapes)(
            root="${data.root}",
            split="train",
            transforms=[
                LazyCall(RandomResize)(size=(1024, 2048), ratio_range=(0.5, 2.0)),
                LazyCall(RandomCrop)(size=crop, cat_max_ratio=0.75),
                LazyCall(RandomFlip)(prob=0.5),
                LazyCall(PhotometricDistortion)(),
                LazyCall(Normalize)(),
                LazyCall(Pad)(size=crop),
            ],
        ),
        num_workers=4,
    ),
    test=[
        LazyCall(build_test_loader)(
            dataset=LazyCall(Cityscapes)(
                root="${data.root}", split="val", transforms=[LazyCall(Normalize)()]
            ),
            num_workers=4,
        )
    ],
)
