"""SegFormer-B0 on CamVid from scratch: a small training that a CPU can do, on a folder data set.

    bash tools/train.sh configs/segformer_camvid.py 1 data.root=PATH

The paper's learning rates are for fine-tuning; from scratch encoder and head learn at one higher
rate. README.md has the mIoU to expect.
"""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

from .common.graph import graph
from .common.inference import inference
from .common.optim import optim
from .common.train import train
from .data.camvid import data, dataloader
from .models.mit_b0 import cfg

cfg.num_classes = 11

optim.params.lr = 6e-4
optim.params.head_lr_multiplier = 1.0

train.output_dir = "output/segformer_camvid"
train.global_batch_size = 4
train.train_iter = 1_500
train.warmup_ratio = 0.05
train.checkpointer.period = 500
train.evaluation.eval_period = 500

model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=cfg)
