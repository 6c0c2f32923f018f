"""Data sets to loaders, as LiBai's trainer asks for them in `cfg.dataloader`."""

import signal
from collections.abc import Callable, Iterator, Sequence

import cv2
from libai.data.structures import Instance
from libai.utils import distributed as dist
from oneflow.utils.data import DataLoader, Dataset

from projects.SegFormer.dataset.sampler import EvaluationSampler, InfiniteSampler
from projects.SegFormer.modeling.errors import InputError


class SegmentationLoader(DataLoader):
    """A DataLoader from whose worker processes an InputError comes back as the line it was.

    OneFlow wraps the traceback of the worker round it.
    """

    def __iter__(self) -> Iterator[Instance]:
        try:
            yield from super().__iter__()
        except InputError as error:
            raise InputError(str(error).strip().rpartition("InputError: ")[2]) from None


def build_train_loader(
    dataset: Dataset | Sequence[Dataset],
    train_batch_size: int,
    test_batch_size: int | None = None,
    num_accumulation_steps: int = 1,
    num_workers: int = 2,
    seed: int = 0,
    consumed_samples: int = 0,
    mixup_func: Callable | None = None,
) -> tuple[SegmentationLoader, None, None]:
    """An endless loader of this rank's share; the three loaders of LiBai's contract.

    Args:
        dataset: the data set, or a list that holds only it.
        train_batch_size: samples of a loader batch on each rank.
        test_batch_size: not used; the trainer passes it.
        num_accumulation_steps: micro-batches that a loader batch is made of: the number of
            accumulation steps in graph mode, 1 in eager mode.
        seed: of the order of the samples.
        consumed_samples: samples that all ranks together have trained on so far.
        mixup_func: the trainer looks for it on the loader.

    Raises:
        InputError: the batch does not divide into its micro-batches.
    """
    dataset = _single(dataset)
    micro_batch_size, rest = divmod(train_batch_size, num_accumulation_steps)
    if micro_batch_size == 0 or rest:
        raise InputError(
            f"train_batch_size {train_batch_size} does not divide into {num_accumulation_steps} "
            "equal micro-batches (num_accumulation_steps)"
        )
    rank, size = data_parallel_place()
    sampler = InfiniteSampler(
        len(dataset), micro_batch_size, num_accumulation_steps, rank, size, seed, consumed_samples
    )
    loader = _loader(dataset, sampler, num_workers)
    loader.mixup_func = mixup_func
    return loader, None, None


def build_test_loader(
    dataset: Dataset | Sequence[Dataset],
    test_batch_size: int,
    num_workers: int = 2,
    seed: int = 0,
) -> SegmentationLoader:
    """A loader of this rank's share of the data set, in order, each sample once over all ranks.

    Args:
        dataset: the data set, or a list that holds only it.
        test_batch_size: samples of a batch on each rank.
        seed: not used, nothing is random here; the trainer passes it.
    """
    dataset = _single(dataset)
    sampler = EvaluationSampler(len(dataset), test_batch_size, *data_parallel_place())
    return _loader(dataset, sampler, num_workers)


def data_parallel_place() -> tuple[int, int]:
    """Data-parallel rank and number of such ranks."""
    return dist.get_data_parallel_rank(), dist.get_data_parallel_size()


def collate(batch: list[Instance]) -> Instance:
    """Samples to a batch.

    Raises:
        InputError: the samples differ in size.
    """
    for name in batch[0].get_fields():
        sizes = {tuple(sample.get(name).tensor.shape[-2:]) for sample in batch}
        if len(sizes) > 1:
            found = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
            raise InputError(
                f"{name} of different sizes in one batch of {len(batch)}: {found}; use a batch "
                "size of 1, or transforms that end in one size (RandomCrop and Pad)"
            )
    return Instance.stack(batch)


def _loader(
    dataset: Dataset, sampler: InfiniteSampler | EvaluationSampler, num_workers: int
) -> SegmentationLoader:
    return SegmentationLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=_set_up_worker,
    )


def _set_up_worker(worker_id: int) -> None:
    # The workers themselves are the parallelism; OpenCV's threads would only compete.
    cv2.setNumThreads(0)
    # Ctrl-C reaches all processes of a terminal; the main process decides what to make of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _single(dataset: Dataset | Sequence[Dataset]) -> Dataset:
    # LiBai's own builders take a list, and a config may hold one as OmegaConf's ListConfig.
    if not isinstance(dataset, Sequence):
        return dataset
    if len(dataset) != 1:
        raise InputError(f"dataloader: {len(dataset)} data sets in a list; expected exactly one")
    return dataset[0]
