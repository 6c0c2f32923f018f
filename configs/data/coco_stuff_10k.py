"""COCO-Stuff 10k, 171 classes with the augmentation of ADE20K."""

from libai.config import LazyCall

from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.coco_stuff import COCOStuff10k
from projects.SegFormer.dataset.transforms import IMAGENET_MEAN, IMAGENET_STD

from .ade20k import test_transforms, train_transforms

# Holds images, annotations and imageLists. `data.root=PATH` sets it for both splits.
data = dict(
    root="data/coco_stuff_10k",
    scale=(512, 2048),
    crop=(512, 512),
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
        dataset=LazyCall(COCOStuff10k)(**shared, split="train", transforms=train_transforms),
        num_workers=4,
    ),
    test=[
        LazyCall(build_test_loader)(
            dataset=LazyCall(COCOStuff10k)(**shared, split="test", transforms=test_transforms),
            num_workers=4,
        )
    ],
)
