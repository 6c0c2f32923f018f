"""Parameter groups, gradient clipping and learning rate schedules."""

import difflib

import oneflow as flow
from oneflow import nn
from oneflow.optim import lr_scheduler

from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.layers import LayerNorm

# ---- Parameter groups ---------------------------------------------------------------------------


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    head_lr_multiplier: float,
    lr_multipliers: dict[str, float] | None = None,
    clip_grad_norm: float | None = None,
) -> list[dict]:
    """Parameter groups as in the paper's configs.

    The encoder's layer norms are not decayed; biases are. All of the head, its batch norm included,
    learns `head_lr_multiplier` times as fast and is decayed. LiBai's own grouping leaves out biases
    and knows parameters by the last part of their name only.

    Args:
        lr_multipliers: by a module's or parameter's name, as {"segformer.blocks.0": 0.5}, what the
            rate of all in it is multiplied with, the head's after `head_lr_multiplier`. Of several
            that hold a parameter the longest name counts.
        clip_grad_norm: what `clip_gradients` limits the norm of all gradients to; None for none.
    Raises InputError for a multiplier of nothing and for a limit that is not above 0.
    """
    kinds = {
        "encoder": dict(lr=lr, weight_decay=weight_decay),
        "norm": dict(lr=lr, weight_decay=0.0),
        "head": dict(lr=lr * head_lr_multiplier, weight_decay=weight_decay),
    }
    multipliers = dict(lr_multipliers or {})
    _check_names(model, multipliers)
    members = {(kind, 1.0): [] for kind in kinds}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            if module_name.split(".")[0] == "head":
                kind = "head"
            else:
                kind = "norm" if isinstance(module, LayerNorm) else "encoder"
            multiplier = _multiplier(name, multipliers)
            members.setdefault((kind, multiplier), []).append(parameter)
    groups = [
        kinds[kind] | dict(params=parameters, lr=kinds[kind]["lr"] * multiplier)
        for (kind, multiplier), parameters in members.items()
        if parameters
    ]
    return _with_limit(groups, clip_grad_norm)


def classification_param_groups(
    model: nn.Module, lr: float, weight_decay: float, clip_grad_norm: float | None = None
) -> list[dict]:
    """Parameter groups as DeiT's and timm's: vectors, so biases and norms, are not decayed.

    `clip_grad_norm` as in `param_groups`.
    """
    parameters = list(model.parameters())
    groups = [
        dict(params=[p for p in parameters if p.ndim > 1], lr=lr, weight_decay=weight_decay),
        dict(params=[p for p in parameters if p.ndim <= 1], lr=lr, weight_decay=0.0),
    ]
    return _with_limit(groups, clip_grad_norm)


def _multiplier(name: str, multipliers: dict[str, float]) -> float:
    """That of the longest name that `name` is, or is in; 1 where there is none."""
    around = [prefix for prefix in multipliers if f"{name}.".startswith(f"{prefix}.")]
    return multipliers[max(around, key=len)] if around else 1.0


def _check_names(model: nn.Module, multipliers: dict[str, float]) -> None:
    known = {name for name, module in model.named_modules() if list(module.parameters())}
    known |= {name for name, _ in model.named_parameters()}
    for name in multipliers:
        if not name or name not in known:
            near = difflib.get_close_matches(name, sorted(known - {""}), n=3, cutoff=0.4)
            near = near or [child for child, _ in model.named_children()]
            raise InputError(
                f"optim.params.lr_multipliers: the model has no parameters in {name!r}; "
                f"did you mean {', '.join(near)}?"
            )


def _with_limit(groups: list[dict], clip_grad_norm: float | None) -> list[dict]:
    """`groups` with the limit in each; as they are where there is none."""
    if clip_grad_norm is None:
        return groups
    if not clip_grad_norm > 0:
        raise InputError(
            f"optim.params.clip_grad_norm={clip_grad_norm}: expected a number above 0, or null for "
            "no clipping"
        )
    # Not under OneFlow's own key, which would clip each group by itself.
    return [group | dict(clip_grad_norm=float(clip_grad_norm)) for group in groups]


# ---- Clipping -----------------------------------------------------------------------------------


def gradient_limit(optimizer: flow.optim.Optimizer) -> float | None:
    """The `clip_grad_norm` that the optimizer's groups were made with."""
    return optimizer.param_groups[0].options.get("clip_grad_norm")


def clip_gradients(optimizer: flow.optim.Optimizer, scale: float = 1.0) -> None:
    """Scale all gradients down together if the norm over all of them is above the limit.

    As torch.nn.utils.clip_grad_norm_ over all parameters; without `clip_grad_norm` in the groups
    nothing happens. OneFlow's `clip_grad` takes the norm of each group alone, which changes the
    gradient's direction. It works on the tensors of a graph under construction as well.

    Args:
        scale: how many times too large the gradients are at this point.
    """
    limit = gradient_limit(optimizer)
    if limit is None:
        return
    parameters = [
        parameter
        for group in optimizer.param_groups
        for parameter in group.parameters
        if parameter.grad is not None
    ]
    with flow.no_grad():
        # Gradients are parts of a sum over the data ranks: added up here once for all uses.
        gradients = [_placed(p.grad, p.placement, p.sbp) for p in parameters]
        place = parameters[0].placement
        squares = [_whole((gradient * gradient).sum(), place) for gradient in gradients]
        norm = flow.stack(squares).sum().sqrt() / scale
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient * _whole(factor, parameter.placement)


def _whole(number, placement):
    return _placed(number, placement, [flow.sbp.broadcast] * placement.ranks.ndim)


def _placed(tensor, placement, sbp):
    if tensor.placement == placement and tuple(tensor.sbp) == tuple(sbp):
        return tensor  # a graph would compile a copy of it
    return tensor.to_global(placement=placement, sbp=sbp)


# ---- Schedules ----------------------------------------------------------------------------------


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
    decay = lr_scheduler.PolynomialLR(
        optimizer, decay_batch=max_iter, end_learning_rate=0.0, power=power
    )
    return _warmed_up(optimizer, decay, warmup_iter, warmup_factor)


def warmup_cosine(
    optimizer: flow.optim.Optimizer,
    max_iter: int,
    warmup_iter: int,
    warmup_factor: float = 1e-3,
    min_factor: float = 1e-2,
):
    """Half a cosine from the base rate to base * min_factor, reached by a linear warm-up.

    At step t the rate is base * (min_factor + (1 - min_factor) * (1 + cos(pi t / max_iter)) / 2);
    during the first `warmup_iter` steps it is on the line from base * warmup_factor to the value of
    the cosine at step `warmup_iter`. The defaults are DeiT's 1e-6 and 1e-5 for a rate of 1e-3.
    """
    # CosineAnnealingLR's minimum is one rate for all groups, and would lift those of a low base.
    decay = lr_scheduler.CosineDecayLR(optimizer, decay_steps=max_iter, alpha=min_factor)
    return _warmed_up(optimizer, decay, warmup_iter, warmup_factor)


def _warmed_up(optimizer, decay, warmup_iter: int, warmup_factor: float):
    """`decay` with its first `warmup_iter` steps on a line from base * warmup_factor to it."""
    if warmup_iter == 0:
        return decay
    # OneFlow's WarmUpLR wants the same base rate in all groups.
    warmup = lr_scheduler.LinearLR(
        optimizer,
        start_factor=warmup_factor,
        end_factor=decay.get_lr(1.0, warmup_iter),
        total_iters=warmup_iter,
    )
    return lr_scheduler.SequentialLR(
        optimizer, schedulers=[warmup, decay], milestones=[warmup_iter]
    )
