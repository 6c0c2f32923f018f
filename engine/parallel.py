"""How the ranks share a training: their number, the pipeline's stages, what each rank holds."""

import logging
import math
import os
from itertools import accumulate

import oneflow as flow
from libai.utils import distributed as dist
from omegaconf import DictConfig, ListConfig
from oneflow import nn

from projects.SegFormer.dataset.transforms import both_sides
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.flops import block_flops, decode_head_flops

logger = logging.getLogger("libai." + __name__)

DEFAULT_SIZE = (512, 512)  # of images, where the training data has no fixed one
BYTES = 4  # of a float32
ZERO_MIN_ELEMENTS = 1024  # OneFlow's ZeRO leaves smaller shards whole


# ---- Before anything starts ---------------------------------------------------------------------


def plan_ranks(config: DictConfig, world_size: int) -> None:
    """Check `config.train.dist` against `world_size` processes, and fill in what it leaves open.

    The data-parallel size, where it is 1, becomes what is left of the processes. Pipeline stages,
    where `custom_pipeline_stage_id` (the stage of each block) does not name them, get blocks of
    nearly equal cost.

    Raises InputError for sizes, stages or a batch that the processes cannot share, and for fewer
    GPUs than processes.
    """
    _check_gpus(world_size)
    sizes = config.train.dist
    data, tensor, pipeline = (
        _size(sizes, name)
        for name in ("data_parallel_size", "tensor_parallel_size", "pipeline_parallel_size")
    )
    if world_size % (tensor * pipeline):
        raise InputError(
            f"{world_size} processes cannot be shared by tensor_parallel_size={tensor} x "
            f"pipeline_parallel_size={pipeline}: start a multiple of {tensor * pipeline}"
        )
    rest = world_size // (tensor * pipeline)
    if data not in (1, rest):
        raise InputError(
            f"data_parallel_size={data} x tensor_parallel_size={tensor} x "
            f"pipeline_parallel_size={pipeline} are {data * tensor * pipeline} processes, but "
            f"{world_size} were asked for"
        )
    sizes.data_parallel_size = rest
    _check_batch(config.train, rest)
    blocks = sum(config.model.cfg.depths)
    if pipeline > blocks:
        raise InputError(
            f"pipeline_parallel_size={pipeline} is more stages than the model has blocks, {blocks}"
        )
    sizes.pipeline_num_layers = blocks
    if sizes.get("custom_pipeline_stage_id") is None:
        sizes.custom_pipeline_stage_id = balanced_stages(_costs(config), pipeline)
    _check_stages(list(sizes.custom_pipeline_stage_id), blocks, pipeline)


def _check_gpus(processes: int) -> None:
    """OneFlow gives each process of a machine a GPU of its own; NODE, of train.sh, is the number of
    machines.
    """
    if not flow.cuda.is_available():
        return
    here, gpus = -(-processes // int(os.environ.get("NODE") or 1)), flow.cuda.device_count()
    if here > gpus:
        raise InputError(
            f"{here} processes on a machine with {gpus} GPUs: start at most {gpus}, or "
            "with CUDA_VISIBLE_DEVICES=-1 all on its CPU"
        )


def _size(sizes: DictConfig, name: str) -> int:
    if not isinstance(sizes[name], int) or sizes[name] < 1:
        raise InputError(f"train.dist.{name}={sizes[name]}: expected a number, 1 or up")
    return sizes[name]


def _check_batch(train: DictConfig, replicas: int) -> None:
    """The batch of a step is `replicas` times the accumulation steps times the micro-batch."""
    batch, micro, steps = (
        train.get(name)
        for name in ("global_batch_size", "train_micro_batch_size", "num_accumulation_steps")
    )
    if batch is None and micro is None:
        raise InputError(
            "train.global_batch_size and train.train_micro_batch_size are both null: give one"
        )
    whole = replicas * (micro or 1) * (steps or 1)
    if batch is not None and (batch % whole or micro and steps and batch != whole):
        factors = {
            "data-parallel processes": replicas,
            "train.train_micro_batch_size": micro,
            "train.num_accumulation_steps": steps,
        }
        shared = " x ".join(f"{value} ({name})" for name, value in factors.items() if value)
        raise InputError(
            f"train.global_batch_size={batch} cannot be shared by {shared}: "
            + (f"expected {whole}" if micro and steps else f"expected a multiple of {whole}")
        )


def _check_stages(stages: list, blocks: int, pipeline: int) -> None:
    steps = [after - before for before, after in zip(stages, stages[1:])]
    if len(stages) != blocks or stages[0] != 0 or stages[-1] != pipeline - 1 or {*steps} - {0, 1}:
        raise InputError(
            f"train.dist.custom_pipeline_stage_id={stages}: expected the stage of each of the "
            f"{blocks} blocks in order, from 0 to {pipeline - 1} (pipeline_parallel_size), or null "
            "to have them balanced"
        )


def balanced_stages(costs: list[float], stages: int) -> list[int]:
    """The stage of each block: runs of blocks, of which the most expensive is as cheap as can be.

    Args:
        costs: of each block; at least as many as stages.
    """
    before = [0, *accumulate(costs)]
    count = len(costs)
    # best[k][n]: the dearest stage when the first n blocks are in k stages, and where the last of
    # them begins.
    best = [{0: (0, 0)}]
    for stage in range(1, stages + 1):
        best.append(
            {
                end: min(
                    (max(best[-1][start][0], before[end] - before[start]), start)
                    for start in best[-1]
                    if start < end
                )
                for end in range(stage, count + 1)
            }
        )
    found, end = [], count
    for stage in range(stages, 0, -1):
        start = best[stage][end][1]
        found = [stage - 1] * (end - start) + found
        end = start
    return found


def _costs(config: DictConfig) -> list[int]:
    """Multiply-adds of each block at the training images' size, the decode head with the last."""
    size = _image_size(config)
    model = config.model.cfg
    costs = block_flops(*size, **model)
    if "decoder_hidden_size" in model:
        costs[-1] += decode_head_flops(*size, **model)
    return costs


def _image_size(config: DictConfig) -> tuple[int, int]:
    """The size that the training transforms end in."""
    dataset = config.dataloader.train.dataset
    dataset = dataset[0] if isinstance(dataset, ListConfig) else dataset
    for transform in reversed(dataset.get("transforms", [])):
        if "size" in transform:
            return both_sides(transform.size)
    return DEFAULT_SIZE


# ---- What each rank holds -----------------------------------------------------------------------


def log_shares(config: DictConfig, model: nn.Module, optimizer: flow.optim.Optimizer) -> None:
    """Log for each stage its ranks, blocks and cost, and the bytes that each of its ranks holds."""
    sizes = config.train.dist
    zero = config.train.zero_optimization
    zero_stage = zero.stage if zero.enabled else 0
    stages = list(sizes.custom_pipeline_stage_id)
    costs = _costs(config)
    height, width = _image_size(config)
    lines = [
        f"data {sizes.data_parallel_size} x tensor {sizes.tensor_parallel_size} x pipeline "
        f"{sizes.pipeline_parallel_size}; share of the multiply-adds at {height}x{width}, and MB "
        "that each rank holds:"
    ]
    for stage in range(sizes.pipeline_parallel_size):
        blocks = [block for block, its_stage in enumerate(stages) if its_stage == stage]
        share = sum(costs[block] for block in blocks) / sum(costs)
        ranks = dist.get_layer_placement(blocks[0]).ranks.flatten()
        held = rank_bytes(model, optimizer, ranks[0], zero_stage)
        lines.append(
            f"  stage {stage}, ranks {ranks[0]} to {ranks[-1]}, blocks {blocks[0]} to "
            f"{blocks[-1]}, {share:.0%}: "
            + ", ".join(f"{name} {count / 1e6:.1f}" for name, count in held.items())
        )
    logger.info("\n".join(lines))
    tensor = sizes.tensor_parallel_size
    whole = [
        f"{stage} ({heads})"
        for stage, heads in enumerate(config.model.cfg.num_attention_heads)
        if heads % tensor
    ]
    if whole:
        logger.info(
            f"attention is whole on each of {tensor} tensor-parallel ranks, which cannot share its "
            f"heads equally, in the encoder's stages (heads) {', '.join(whole)}"
        )


def rank_bytes(
    model: nn.Module, optimizer: flow.optim.Optimizer, rank: int, zero_stage: int = 0
) -> dict[str, int]:
    """Bytes of parameters, gradients and optimizer state that `rank` holds.

    From placements and sbp, so for any rank on every rank. ZeRO (Rajbhandari et al. 2020) shares
    out the optimizer state, from stage 2 the gradients and in stage 3 the parameters.
    """
    options = optimizer.param_groups[0].options
    moments = 2 if "betas" in options else int(bool(options.get("momentum")))
    bytes_of = dict.fromkeys(("parameters", "gradients", "optimizer state"), 0)
    for parameter in model.parameters():
        if rank not in parameter.placement.ranks.flatten():
            continue
        count = _elements_held(parameter) * BYTES
        shared = count // _zero_parts(parameter)
        bytes_of["parameters"] += shared if zero_stage >= 3 else count
        bytes_of["gradients"] += shared if zero_stage >= 2 else count
        bytes_of["optimizer state"] += moments * (shared if zero_stage >= 1 else count)
    return bytes_of


def _elements_held(parameter) -> int:
    parts = math.prod(
        size
        for size, sbp in zip(parameter.placement.ranks.shape, parameter.sbp)
        if sbp != flow.sbp.broadcast
    )
    return parameter.numel() // parts


def _zero_parts(parameter) -> int:
    """In how many parts ZeRO shares a tensor of this parameter's shape over the data ranks."""
    size = dist.get_data_parallel_size()
    fits = parameter.shape[0] % size == 0 and _elements_held(parameter) >= size * ZERO_MIN_ELEMENTS
    return size if fits else 1
