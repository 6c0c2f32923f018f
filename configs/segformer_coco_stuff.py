"""SegFormer on COCO-Stuff 164k, the paper's recipe: 80k iterations at a batch of 16.

    bash tools/train.sh configs/segformer_coco_stuff.py 8

It expects data/coco_stuff, and ImageNet-1K weights in `pretrained_model_path`. `model_size=b3`
trains another size than B0. The paper's mIoU at a single scale, B0 to B5: 35.6 40.2 44.6 45.5 46.5
46.7.
"""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

from .common.graph import graph
from .common.inference import inference
from .common.optim import optim
from .common.train import train
from .data.coco_stuff import data, dataloader
from .models.by_size import cfg, model_size

cfg.num_classes = 171
cfg.pretrained_model_path = None  # "pretrained/mit_b0.pth" for the paper's result

train.output_dir = "output/segformer_coco_stuff"
train.global_batch_size = 16
train.train_iter = 80_000
train.warmup_ratio = 1_500 / 80_000
# With sides that are multiples of 32 no stage of the encoder cuts pixels off: worth 0.5 to 1 mIoU.
inference.resize = "${data.scale}"
inference.divisor = 32

model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=cfg)
