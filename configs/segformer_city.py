"""SegFormer-B0 on Cityscapes, the paper's recipe: 160k iterations at a batch of 8.

    bash tools/train.sh configs/segformer_city.py 4

It expects data/cityscapes, and fine-tunes from ImageNet-1K weights when `pretrained_model_path`
names them. The paper's mIoU at a single scale is 76.2 for B0. For another size import its `cfg`.
"""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

from .common.graph import graph
from .common.optim import optim
from .common.train import train
from .data.cityscapes import data, dataloader
from .models.mit_b0 import cfg

cfg.num_classes = 19
cfg.pretrained_model_path = None  # "pretrained/mit_b0.pth" for the paper's result

train.output_dir = "output/segformer_city"
train.global_batch_size = 8

model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=cfg)
