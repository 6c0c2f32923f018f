"""SegFormer-B5 on ADE20K at 640x640, as the paper has it.

    bash tools/train.sh configs/segformer_ade20k_640x640.py 8

Otherwise the recipe of segformer_ade20k.py. The paper's mIoU at a single scale is 51.0.
"""

from .segformer_ade20k import (
    cfg,
    data,
    dataloader,
    graph,
    inference,
    model,
    model_size,
    optim,
    train,
)

model_size.name = "b5"
data.scale = (640, 2048)
data.crop = (640, 640)

train.output_dir = "output/segformer_ade20k_640x640"
