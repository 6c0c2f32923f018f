"""SegFormer on ADE20K, the paper's recipe: 160k iterations at a batch of 16, crops of 512x512.

    bash tools/train.sh configs/segformer_ade20k.py 8

It expects data/ade20k (ADEChallengeData2016), and ImageNet-1K weights in `pretrained_model_path`.
`model_size=b3` trains another size than B0; B5 has a config of its own. The paper's mIoU at a
single scale, B0 to B5: 37.4 42.2 46.5 49.4 50.3 51.0.
"""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

from .common.graph import graph
from .common.inference import inference
from .common.optim import optim
from .common.train import train
from .data.ade20k import data, dataloader
from .models.by_size import cfg, model_size

cfg.num_classes = 150
cfg.pretrained_model_path = None  # "pretrained/mit_b0.pth" for the paper's result

train.output_dir = "output/segformer_ade20k"
train.global_batch_size = 16
# With sides that are multiples of 32 no stage of the encoder cuts pixels off: worth 0.5 to 1 mIoU.
inference.resize = "${data.scale}"
inference.divisor = 32

model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=cfg)
