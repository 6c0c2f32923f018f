"""AdamW with the paper's parameter groups."""

import oneflow as flow
from libai.config import LazyCall

from projects.SegFormer.engine.optim import param_groups

optim = LazyCall(flow.optim.AdamW)(
    params=LazyCall(param_groups)(lr=6e-5, weight_decay=0.01, head_lr_multiplier=10.0),
    betas=(0.9, 0.999),
    eps=1e-8,
)
