"""Pascal VOC 2012, 20 classes and background with the augmentation of ADE20K."""

from libai.config import LazyCall

from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.pascal_voc import PascalVOC
from projects.SegFormer.dataset.transforms import IMAGENET_MEAN, IMAGENET_STD

from .ade20k import test_transforms, train_transforms

# The folder VOCdevkit/VOC2012. `data.root=PATH` on the command line sets it for both splits.
data = dict(
    root="data/voc",
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
        dataset=LazyCall(PascalVOC)(**shared, split="trainaug", transforms=train_transforms),
        num_workers=4,
    ),
    test=[
        LazyCall(build_test_loader)(
            dataset=LazyCall(PascalVOC)(**shared, split="val", transforms=test_transforms),
            num_workers=4,
        )
    ],
)
