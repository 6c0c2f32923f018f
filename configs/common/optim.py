"""AdamW with the paper's parameter groups."""

import oneflow as flow
from libai.config import LazyCall

from projects.SegFormer.engine.optim import param_groups

optim = LazyCall(flow.optim.AdamW)(
    params=LazyCall(param_groups)(
        lr=6e-5,
        weight_decay=0.01,
        head_lr_multiplier=10.0,
        # Rates of layers over that, as {segformer.patch_embeds: 0.1, segformer.blocks.0: 0.5}.
        lr_multipliers=None,
        # The largest norm of all gradients together; the paper does not clip.
        clip_grad_norm=None,
    ),
    betas=(0.9, 0.999),
    eps=1e-8,
)
