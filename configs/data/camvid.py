"""CamVid in the 11-class form that SegNet uses: an example of a folder data set.

For data of your own copy this file and change root, classes and palette.
"""

from libai.config import LazyCall

from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.folder import SegmentationFolder
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

# Holds images/{train,val}/*.jpg and annotations/{train,val}/*.png, class indices, 255 for no class.
# `data.root=PATH` on the command line sets it for both splits.
data = dict(root="data/camvid", mean=IMAGENET_MEAN, std=IMAGENET_STD)
crop = (256, 256)
classes = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
folder = dict(
    root="${data.root}",
    classes=list(classes),
    palette=list(classes.values()),
    num_channels="${model.cfg.num_channels}",
    ignore_index="${model.cfg.ignore_index}",
)

dataloader = dict(
    train=LazyCall(build_train_loader)(
        dataset=LazyCall(SegmentationFolder)(
            **folder,
            split="train",
            transforms=[
                LazyCall(RandomResize)(size=(360, 480), ratio_range=(0.5, 2.0)),
                LazyCall(RandomCrop)(size=crop, cat_max_ratio=0.75),
                LazyCall(RandomFlip)(prob=0.5),
                LazyCall(PhotometricDistortion)(),
                LazyCall(Normalize)(mean="${data.mean}", std="${data.std}"),
                LazyCall(Pad)(size=crop),
            ],
        ),
        num_workers=2,
    ),
    test=[
        LazyCall(build_test_loader)(
            dataset=LazyCall(SegmentationFolder)(
                **folder,
                split="val",
                transforms=[LazyCall(Normalize)(mean="${data.mean}", std="${data.std}")],
            ),
            num_workers=2,
        )
    ],
)
