"""SegFormer on COCO-Stuff 10k.

    bash tools/train.sh configs/segformer_coco_stuff_10k.py 8

The recipe of segformer_coco_stuff.py on the older, smaller set, with a shorter schedule; the paper
has no result on it.
"""

from .data.coco_stuff_10k import data, dataloader
from .segformer_coco_stuff import (
    cfg,
    graph,
    inference,
    model,
    model_size,
    optim,
    train,
)

train.train_iter = 40_000
train.warmup_ratio = 1_500 / 40_000
train.output_dir = "output/segformer_coco_stuff_10k"
