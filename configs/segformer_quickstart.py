"""SegFormer-B0 on the street scenes of tools/draw_street_scenes.py: minutes on a CPU.

    bash tools/quickstart.sh

It trains from scratch, so encoder and head learn at one rate, higher than the paper's, and without
drop path. README.md shows the result.
"""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

from .common.graph import graph
from .common.inference import inference
from .common.optim import optim
from .common.train import train
from .data.street_scenes import data, dataloader
from .models.mit_b0 import cfg

cfg.num_classes = 19
cfg.drop_path_rate = 0.0

optim.params.lr = 1e-3
optim.params.head_lr_multiplier = 1.0

train.output_dir = "output/quickstart"
train.global_batch_size = 2
train.train_iter = 720
train.warmup_ratio = 0.05
train.checkpointer.period = 360
train.evaluation.eval_period = 180
train.log_period = 20

inference.resize = "${data.scale}"

model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=cfg)
