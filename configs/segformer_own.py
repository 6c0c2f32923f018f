"""SegFormer on your own data, which tools/prepare_dataset.py has written.

    python tools/prepare_dataset.py SOURCE data/mine
    bash tools/train.sh configs/segformer_own.py 1 data.root=data/mine

What is None here is chosen for the data, and the log says why; what you set counts. With
`cfg.pretrained_model_path` the encoder starts from ImageNet-1K weights.
"""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

from .common.graph import graph
from .common.inference import inference
from .common.optim import optim
from .common.train import train
from .data.own import data, dataloader
from .models.by_size import cfg, model_size

cfg.num_classes = None
cfg.pretrained_model_path = None

optim.params.lr = None
optim.params.head_lr_multiplier = None

train.output_dir = "output/segformer_own"
train.global_batch_size = None
train.train_iter = None
train.warmup_ratio = 0.05
train.checkpointer.period = None
train.evaluation.eval_period = None

model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=cfg)
