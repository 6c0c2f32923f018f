"""MiT on ImageNet-1K, what the paper's fine-tuning starts from: 300 epochs at a batch of 1,024.

    bash tools/train.sh configs/segformer_imgnet1k_pretrain.py 8

It expects data/imagenet. `model_size=b3` trains another size than B0. DeiT's recipe, as PVT's code
has it. The paper's top-1 accuracy, B0 to B5: 70.5 78.7 81.6 83.1 83.6 83.8.
"""

from libai.config import LazyCall

from projects.SegFormer.engine.optim import classification_param_groups, warmup_cosine
from projects.SegFormer.modeling.segformer_model import SegformerForImageClassification

from .common.graph import graph
from .common.optim import optim
from .common.train import train
from .data.imagenet import data, dataloader
from .models.classification.by_size import cfg, model_size

# For 1,024 images a step; with another batch it goes up and down with it.
optim.params = LazyCall(classification_param_groups)(
    lr=1e-3, weight_decay=0.05, clip_grad_norm=None
)

train.output_dir = "output/segformer_imgnet1k_pretrain"
train.global_batch_size = 1024
train.test_micro_batch_size = 64
train.train_iter = 375_342  # 300 epochs * 1,281,167 images / 1,024
train.warmup_ratio = 5 / 300  # 5 epochs
# From 1e-6 up to 1e-3, and down to 1e-5.
train.scheduler = LazyCall(warmup_cosine)(
    warmup_factor=1e-3, min_factor=1e-2, max_iter=None, warmup_iter=None
)
train.checkpointer.period = 1_251  # an epoch
train.evaluation.eval_period = 1_251

model = LazyCall(SegformerForImageClassification)(cfg=cfg)
