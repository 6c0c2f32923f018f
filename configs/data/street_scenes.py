"""Drawn street scenes of 128x256 in the layout of Cityscapes, with its 19 classes."""

from libai.config import LazyCall

from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.cityscapes import Cityscapes
from projects.SegFormer.dataset.transforms import Normalize, RandomFlip

data = dict(root="output/quickstart/data")

dataloader = dict(
    train=LazyCall(build_train_loader)(
        dataset=LazyCall(Cityscapes)(
            root="${data.root}",
            split="train",
            transforms=[LazyCall(RandomFlip)(prob=0.5), LazyCall(Normalize)()],
        ),
        num_workers=1,
    ),
    test=[
        LazyCall(build_test_loader)(
            dataset=LazyCall(Cityscapes)(
                root="${data.root}", split="val", transforms=[LazyCall(Normalize)()]
            ),
            num_workers=1,
        )
    ],
)
