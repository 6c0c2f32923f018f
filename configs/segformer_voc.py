"""SegFormer on Pascal VOC 2012 with the augmented training set: 40k iterations at a batch of 16.

    bash tools/train.sh configs/segformer_voc.py 8

It expects data/voc (VOCdevkit/VOC2012), and ImageNet-1K weights in `pretrained_model_path`.
`model_size=b3` trains another size than B0. The paper has no result on VOC: the recipe is that of
ADE20K with a shorter schedule.
"""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

from .common.graph import graph
from .common.inference import inference
from .common.optim import optim
from .common.train import train
from .data.voc import data, dataloader
from .models.by_size import cfg, model_size

cfg.num_classes = 21
cfg.pretrained_model_path = None  # "pretrained/mit_b0.pth" for the paper's result

train.output_dir = "output/segformer_voc"
train.global_batch_size = 16
train.train_iter = 40_000
train.warmup_ratio = 1_500 / 40_000
# With sides that are multiples of 32 no stage of the encoder cuts pixels off: worth 0.5 to 1 mIoU.
inference.resize = "${data.scale}"
inference.divisor = 32

model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=cfg)
