"""A model over a data set to one set of figures."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import oneflow as flow
from libai.utils import distributed as dist
from oneflow import nn
from oneflow.framework.check_point_v2 import _broadcast_py_object
from tqdm import tqdm

from projects.SegFormer.dataset.sampler import Draw
from projects.SegFormer.evaluation.accuracy import AccuracyEvaluator
from projects.SegFormer.evaluation.boundary_iou import BoundaryIoUEvaluator
from projects.SegFormer.evaluation.inference import Inference, local_part
from projects.SegFormer.evaluation.mean_iou import MeanIoUEvaluator, mean_iou
from projects.SegFormer.evaluation.report.pictures import SHOWN, draw_picture
from projects.SegFormer.evaluation.report.record import Evaluated, write_record
from projects.SegFormer.evaluation.result_files import ResultFiles
from projects.SegFormer.evaluation.worst_images import Entry, LowestScores, draw_sheet
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.files import reason

logger = logging.getLogger("libai." + __name__)


class Sample(NamedTuple):
    """What came out for one image: its place in the data set, its prediction and its label."""

    index: int
    prediction: np.ndarray
    label: np.ndarray | int


def evaluate_segmentation(
    model: nn.Module,
    loader,
    inference: Inference,
    *,
    max_batches: int,
    boundary_iou: bool = False,
    worst_images: int = 0,
    output_dir: str = "",
    after_batch: Callable[[], None] = lambda: None,
) -> dict:
    """mIoU and its relatives of `model` over `loader`, the same result on every rank.

    Every rank counts its share; the counts are summed once at the end. LiBai's
    inference_on_dataset would send the logits of every batch to rank 0.

    Args:
        inference: how images go through the model.
        max_batches: stop after that many.
        boundary_iou: whether to count boundaries as well.
        worst_images: draw that many images of lowest mIoU to `output_dir`/worst_images.png.
        output_dir: gets what the report is made of (`write_record`); "" for nowhere. That something
            cannot be written there is logged.
        after_batch: is called after each batch, on all ranks alike.
    Returns:
        see evaluation.mean_iou.scores, and boundary_iou.
    Raises:
        InputError: images of different sizes in one batch of one rank, an image that was changed
            meanwhile, or values of no class.
    """
    dataset = loader.dataset
    evaluators = [MeanIoUEvaluator(dataset.classes, model.ignore_index, dataset.categories)]
    if boundary_iou:
        evaluators.append(BoundaryIoUEvaluator(dataset.classes, model.ignore_index))
    worst = LowestScores(max(worst_images, SHOWN))
    # The same images in every training on these data: their places in a shuffle are their scores.
    samples, places = LowestScores(SHOWN), np.random.default_rng(0).permutation(len(dataset))
    predict = partial(inference, model)
    for index, prediction, label in _samples(
        model, loader, predict, inference, max_batches, after_batch
    ):
        counts, *_ = [evaluator.update(prediction, label) for evaluator in evaluators]
        worst.update(mean_iou(counts), index, prediction)
        samples.update(int(places[index]), index, prediction)
    result = _summed(evaluators)
    found = {"samples": _of_all_ranks(samples), "worst": _of_all_ranks(worst)}
    if output_dir and dist.is_main_process():
        try:  # pictures are not worth a training
            _write_pictures(output_dir, dataset, evaluators[0].counts, found, worst_images)
        except Exception as error:
            logger.error(f"could not draw pictures in {output_dir}: {reason(error)}")
    return result


def write_results(
    model: nn.Module,
    loader,
    inference: Inference,
    *,
    max_batches: int,
    folder: str,
    after_batch: Callable[[], None] = lambda: None,
) -> None:
    """Write the prediction for each image as the benchmark's server takes it, without evaluating.

    Raises:
        InputError: see `ResultFiles`.
    """
    dataset = loader.dataset
    files = ResultFiles(folder, dataset.images, dataset.result_values)
    predict = partial(inference, model)
    for index, prediction, _ in _samples(
        model, loader, predict, inference, max_batches, after_batch
    ):
        files.write(index, prediction)
    dist.synchronize()
    logger.info(f"The predictions are in {folder}")


def evaluate_classification(
    model: nn.Module,
    loader,
    *,
    max_batches: int,
    after_batch: Callable[[], None] = lambda: None,
) -> dict:
    """Accuracies of `model` over `loader`, the same result on every rank.

    Returns:
        see evaluation.accuracy.scores.
    """
    evaluator = AccuracyEvaluator(loader.dataset.classes)

    def predict(images: np.ndarray, size: tuple) -> np.ndarray | None:
        logits = local_part(model(images=flow.from_numpy(images))["prediction_scores"])
        return None if logits is None else logits.numpy()

    for _, logits, label in _samples(model, loader, predict, None, max_batches, after_batch):
        evaluator.update(logits[None], np.array([label]))
    return _summed([evaluator])


def _samples(
    model: nn.Module,
    loader,
    predict: Callable[[np.ndarray, tuple], np.ndarray | None],
    inference: Inference | None,
    max_batches: int,
    after_batch: Callable[[], None],
) -> Iterator[Sample]:
    """The samples of this rank's share, on the first of the ranks that share it; on others none."""
    sizes = None
    if inference and dist.get_data_parallel_size() > 1:
        sizes = _image_sizes(loader.dataset)
        loader.sampler.group([_input_sizes(size, inference) for size in sizes])
    counts_here = flow.env.get_rank() % dist.get_tensor_parallel_size() == 0
    was_training = model.training
    model.eval()
    logger.info(f"Evaluating on {len(loader.dataset)} images")
    progress = tqdm(
        total=min(len(loader), max_batches),
        unit="batch",
        leave=False,
        disable=None if dist.is_main_process() else True,  # None: shown on a terminal only
        file=sys.stderr,
    )
    try:
        with flow.no_grad(), progress:
            for number, (draws, batch) in enumerate(zip(loader.sampler, loader)):
                if number == max_batches:
                    break
                images, labels = (batch.get(name).tensor.numpy() for name in ("images", "labels"))
                if sizes and _keep_sizes(loader.dataset):
                    _check_sizes(loader.dataset, draws, sizes, images.shape[2:], inference)
                predictions = predict(images, labels.shape[1:])
                if predictions is not None and counts_here:
                    yield from _valid(draws, predictions, labels)
                progress.update()
                after_batch()
    finally:
        model.train(was_training)


def _valid(draws: list[Draw], predictions: np.ndarray, labels: np.ndarray) -> Iterator[Sample]:
    for draw, prediction, label in zip(draws, predictions, labels, strict=True):
        if draw.valid:
            yield Sample(draw.index, prediction, label)


def _image_sizes(dataset) -> list[tuple[int, int]]:
    """(height, width) of each image after its `Resize`, from the files' headers.

    The ranks compute a batch together, so that it holds images of one size only: the sampler must
    know them before, and on all ranks the same.
    """
    sizes = []
    if dist.is_main_process():
        for index in range(len(dataset)):
            size = dataset.image_size(index)
            for transform in dataset.transforms.transforms:
                if hasattr(transform, "target_size"):
                    size = transform.target_size(*size)
            sizes.append(size)
    return _broadcast_py_object(sizes, 0)


def _input_sizes(size: tuple[int, int], inference: Inference) -> tuple:
    """The sizes in which an image of this size goes through the network."""
    return tuple(inference.input_size(size, scale) for scale in inference.scales)


def _keep_sizes(dataset) -> bool:
    """Whether only `Resize` changes an image's size: after `Pad`, say, it is not known before."""
    transforms = dataset.transforms.transforms
    return all(hasattr(it, "target_size") or not hasattr(it, "size") for it in transforms)


def _check_sizes(dataset, draws: list[Draw], sizes: list, found: tuple, inference) -> None:
    """An image of another size than the other ranks expect would hang or abort all of them."""
    for draw in draws:
        if _input_sizes(found, inference) != _input_sizes(sizes[draw.index], inference):
            raise InputError(
                f"{dataset.images[draw.index]} is {found[0]}x{found[1]} (height x width) and was "
                f"{sizes[draw.index][0]}x{sizes[draw.index][1]} before: do not change data while "
                "it is read"
            )


def _write_pictures(
    folder: str, dataset, counts: np.ndarray, found: dict[str, list[Entry]], worst_images: int
) -> None:
    """The record for the report, and a sheet of the worst images."""
    pictures = {
        kind: [draw_picture(dataset, index, prediction) for _, index, prediction in entries[:SHOWN]]
        for kind, entries in found.items()
    }
    write_record(folder, Evaluated(dataset.classes, dataset.palette, counts, pictures))
    if worst_images and found["worst"]:
        path = os.path.join(folder, "worst_images.png")
        draw_sheet(path, dataset, found["worst"][:worst_images])
        logger.info(f"The images of lowest mIoU are in {path}")


def _summed(evaluators: list) -> dict:
    """The figures of evaluators whose counts are those of all ranks."""
    result = {}
    for evaluator in evaluators:
        if dist.get_world_size() > 1:
            everywhere = flow.env.all_device_placement("cpu")
            parts = flow.tensor(evaluator.counts)
            parts = parts.to_global(placement=everywhere, sbp=flow.sbp.partial_sum)
            evaluator.counts = parts.to_global(sbp=flow.sbp.broadcast).to_local().numpy()
        result |= evaluator.evaluate()
    return result


def _of_all_ranks(kept: LowestScores) -> list[Entry]:
    """The entries of lowest score of all ranks, on every rank; no other prediction travels."""
    mine = kept.entries()
    chosen = set(sorted(_from_all_ranks([entry[:2] for entry in mine]))[: kept.count])
    found = _from_all_ranks([entry for entry in mine if entry[:2] in chosen])
    return sorted(found, key=lambda entry: entry[:2])


def _from_all_ranks(entries: list) -> list:
    """The entries of all ranks, on every rank."""
    found = []
    for rank in range(dist.get_world_size()):
        found += _broadcast_py_object(entries, rank) if dist.get_world_size() > 1 else entries
    return found
