"""The paper's optimizer groups and learning rate schedule."""

import oneflow as flow
from oneflow import nn

from projects.SegFormer.modeling.layers import LayerNorm


def param_groups(
    model: nn.Module, lr: float, weight_decay: float, head_lr_multiplier: float
) -> list[dict]:
    """Parameter groups as in the paper's configs.

    The encoder's layer norms are not decayed; biases are. All of the head, its batch norm included,
    learns `head_lr_multiplier` times as fast and is decayed. LiBai's own grouping leaves out biases
    and knows parameters by the last part of their name only.
    """
    groups = {
        "encoder": dict(params=[], lr=lr, weight_decay=weight_decay),
        "norm": dict(params=[], lr=lr, weight_decay=0.0),
        "head": dict(params=[], lr=lr * head_lr_multiplier, weight_decay=weight_decay),
    }
    for module_name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if module_name.split(".")[0] == "head":
                group = "head"
            else:
                group = "norm" if isinstance(module, LayerNorm) else "encoder"
            groups[group]["params"].append(parameter)
    return list(groups.values())


def warmup_poly(
    optimizer: flow.optim.Optimizer,
    max_iter: int,
    warmup_iter: int,
    warmup_factor: float = 1e-6,
    power: float = 1.0,
):
    """Polynomial decay to 0 over `max_iter` steps, reached by a linear warm-up.

    At step t the rate is base * (1 - t / max_iter) ** power; during the first `warmup_iter` steps
    it is on the line from base * warmup_factor to the value of the decay at step `warmup_iter`.
    LiBai's WarmupPolynomialLR ends at 1e-4, above the paper's base rate, and fails on OneFlow 0.9.
    """
    decay = flow.optim.lr_scheduler.PolynomialLR(
        optimizer, decay_batch=max_iter, end_learning_rate=0.0, power=power
    )
    if warmup_iter == 0:
        return decay
    # OneFlow's WarmUpLR wants the same base rate in all groups.
    warmup = flow.optim.lr_scheduler.LinearLR(
        optimizer,
        start_factor=warmup_factor,
        end_factor=(1 - warmup_iter / max_iter) ** power,
        total_iters=warmup_iter,
    )
    return flow.optim.lr_scheduler.SequentialLR(
        optimizer, schedulers=[warmup, decay], milestones=[warmup_iter]
    )
