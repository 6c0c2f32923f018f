"""Data that tools/prepare_dataset.py has written; what is None comes from its dataset.json."""

from libai.config import LazyCall

from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.folder import SegmentationFolder
from projects.SegFormer.dataset.transforms import IMAGENET_MEAN, IMAGENET_STD

from .ade20k import test_transforms, train_transforms

# `data.root=PATH` on the command line sets it for both splits.
data = dict(root="data/own", scale=None, crop=None, mean=IMAGENET_MEAN, std=IMAGENET_STD)
folder = dict(
    root="${data.root}",
    classes=None,
    palette=None,
    num_channels="${model.cfg.num_channels}",
    ignore_index="${model.cfg.ignore_index}",
)

dataloader = dict(
    train=LazyCall(build_train_loader)(
        dataset=LazyCall(SegmentationFolder)(**folder, split="train", transforms=train_transforms),
        num_workers=2,
    ),
    test=[
        LazyCall(build_test_loader)(
            dataset=LazyCall(SegmentationFolder)(**folder, split="val", transforms=test_transforms),
            num_workers=2,
        )
    ],
)
