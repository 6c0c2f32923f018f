"""Pascal VOC 2012, 20 classes and background with the augmentation of ADE20K."""

from libai.config import LazyCall

from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.pascal_voc import PascalVOC

from .ade20k import test_transforms, train_transforms

# The folder VOCdevkit/VOC2012. `data.root=PATH` on the command line sets it for both splits.
data = dict(root="data/voc", scale=(512, 2048), crop=(512, 512))

dataloader = dict(
    train=LazyCall(build_train_loader)(
        dataset=LazyCall(PascalVOC)(
            root="${data.root}", split="trainaug", transforms=train_transforms
        ),
        num_workers=4,
    ),
    test=[
        LazyCall(build_test_loader)(
            dataset=LazyCall(PascalVOC)(
                root="${data.root}", split="val", transforms=test_transforms
            ),
            num_workers=4,
        )
    ],
)
