"""SegFormer on Cityscapes, the paper's recipe: 160k iterations at a batch of 8, crops of 1024x1024.

    bash tools/train.sh configs/segformer_city.py 4

It expects data/cityscapes, and fine-tunes from ImageNet-1K weights when `pretrained_model_path`
names them. `model_size=b3` trains another size than B0. The paper's mIoU at a single scale, B0 to
B5: 76.2 78.5 81.0 81.7 82.3 82.4.
"""

from libai.config import LazyCall

from projects.SegFormer.modeling.segformer_loadmodel import (
    SegformerSegmentationLoadImageNetPretrain,
)

from .common.graph import graph
from .common.inference import inference
from .common.optim import optim
from .common.train import train
from .data.cityscapes import data, dataloader
from .models.by_size import cfg, model_size

cfg.num_classes = 19
cfg.pretrained_model_path = None  # "pretrained/mit_b0.pth" for the paper's result

train.output_dir = "output/segformer_city"
train.global_batch_size = 8
inference.resize = "${data.scale}"
inference.crop_size = "${data.crop}"
inference.stride = (768, 768)

model = LazyCall(SegformerSegmentationLoadImageNetPretrain)(cfg=cfg)
