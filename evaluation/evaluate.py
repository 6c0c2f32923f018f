"""A model over a data set to one set of figures."""

import logging
import sys
from collections.abc import Callable

import numpy as np
import oneflow as flow
from libai.utils import distributed as dist
from oneflow import nn
from tqdm import tqdm

from projects.SegFormer.evaluation.inference import predict_labels
from projects.SegFormer.evaluation.mean_iou import MeanIoUEvaluator
from projects.SegFormer.modeling.errors import InputError

logger = logging.getLogger("libai." + __name__)


def evaluate(
    model: nn.Module, loader, get_batch: Callable, max_batches: int, ignore_index: int = 255
) -> dict:
    """mIoU and its relatives of `model` over `loader`, the same result on every rank.

    Every rank fills a confusion matrix with its share; the matrices are summed once at the end.
    LiBai's inference_on_dataset would send the logits of every batch to rank 0.

    Args:
        get_batch: the trainer's, from a loader batch to global tensors.
        max_batches: stop after that many.
    Returns:
        see evaluation.mean_iou.scores.
    Raises:
        InputError: images of different sizes in one batch or on different ranks.
    """
    evaluator = MeanIoUEvaluator(loader.dataset.classes, ignore_index)
    was_training = model.training
    model.eval()
    logger.info(f"Evaluating on {len(loader.dataset)} images")
    with flow.no_grad():
        batches = tqdm(
            loader,
            total=min(len(loader), max_batches),
            unit="batch",
            leave=False,
            disable=None if dist.is_main_process() else True,  # None: shown on a terminal only
            file=sys.stderr,
        )
        for index, batch in enumerate(batches):
            if index == max_batches:
                break
            _check_same_size(batch.get("images").tensor.shape)
            data = get_batch(batch)
            labels = data["labels"]
            prediction = predict_labels(model, data["images"], tuple(labels.shape[1:]))
            if _counts_here(labels.placement):
                evaluator.update(prediction.to_local().numpy(), labels.to_local().numpy())
    model.train(was_training)
    evaluator.matrix = _sum_over_ranks(evaluator.matrix)
    return evaluator.evaluate()


def _check_same_size(shape) -> None:
    """Ranks compute one batch together, so their images must be of one size."""
    if dist.get_world_size() == 1:
        return
    mine = flow.tensor([list(shape[-2:])], dtype=flow.int64)
    everywhere = flow.env.all_device_placement("cpu")
    sizes = mine.to_global(placement=everywhere, sbp=flow.sbp.split(0))
    sizes = sizes.to_global(sbp=flow.sbp.broadcast).to_local().numpy()
    if (sizes != sizes[0]).any():
        found = ", ".join(sorted({f"{height}x{width}" for height, width in sizes}))
        raise InputError(
            f"images of different sizes on different ranks: {found}; evaluate on one process, or "
            "with a transform that gives all images one size"
        )


def _counts_here(placement: flow.placement) -> bool:
    """Whether this rank counts its share: the first of the tensor-parallel ranks that share it."""
    rank = flow.env.get_rank()
    return rank in placement.ranks and rank % dist.get_tensor_parallel_size() == 0


def _sum_over_ranks(matrix: np.ndarray) -> np.ndarray:
    if dist.get_world_size() == 1:
        return matrix
    everywhere = flow.env.all_device_placement("cpu")
    parts = flow.tensor(matrix).to_global(placement=everywhere, sbp=flow.sbp.partial_sum)
    return parts.to_global(sbp=flow.sbp.broadcast).to_local().numpy()
