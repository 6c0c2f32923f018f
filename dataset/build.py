"""Data sets to loaders, as LiBai's trainer asks for them in `cfg.dataloader`."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import oneflow as flow
from libai.data.structures import DistTensorData, Instance
from libai.utils import distributed as dist

from projects.SegFormer.dataset.sampler import EvaluationSampler, InfiniteSampler
from projects.SegFormer.dataset.segmentation import SegmentationDataset
from projects.SegFormer.modeling.errors import InputError


class SegmentationLoader:
    """The batches of a sampler, read ahead by `num_workers` threads; by none if that is 0.

    Threads, and not the worker processes of OneFlow's DataLoader: Pillow, OpenCV and NumPy run
    beside each other and beside OneFlow's computation, nothing is copied from process to process,
    and an error arrives as it was raised. Besides, OneFlow 0.9.0 crashes if a tensor that came from
    a worker process is freed while a Python exception is on its way.

    LiBai's trainer looks for the attributes `dataset` and `mixup_func`.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        sampler: InfiniteSampler | EvaluationSampler,
        num_workers: int,
        mixup_func: Callable | None = None,
    ):
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self.mixup_func = mixup_func

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Instance]:
        if self.num_workers == 0:
            for draws in self.sampler:
                yield collate([self.dataset[draw] for draw in draws])
            return
        cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's threads would compete
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="loader")
        try:
            ahead = deque()
            for draws in self.sampler:
                ahead.append([pool.submit(self.dataset.__getitem__, draw) for draw in draws])
                if len(ahead) > self.num_workers:
                    yield collate([future.result() for future in ahead.popleft()])
            while ahead:
                yield collate([future.result() for future in ahead.popleft()])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def build_train_loader(
    dataset: SegmentationDataset | Sequence[SegmentationDataset],
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
    return SegmentationLoader(dataset, sampler, num_workers, mixup_func), None, None


def build_test_loader(
    dataset: SegmentationDataset | Sequence[SegmentationDataset],
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
    return SegmentationLoader(dataset, sampler, num_workers)


def data_parallel_place() -> tuple[int, int]:
    """Data-parallel rank and number of such ranks."""
    return dist.get_data_parallel_rank(), dist.get_data_parallel_size()


def collate(samples: list[tuple[np.ndarray, np.ndarray]]) -> Instance:
    """Samples to a batch of LiBai's: `images` float32 (N, 3, H, W), `labels` int64 (N, H, W).

    Images go to the first stage of a pipeline, labels to the last; they may differ in size.

    Raises:
        InputError: the samples differ in size.
    """
    images, labels = (_stack(list(arrays)) for arrays in zip(*samples))
    return Instance(
        images=DistTensorData(flow.from_numpy(images)),
        labels=DistTensorData(flow.from_numpy(labels.astype(np.int64)), placement_idx=-1),
    )


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    sizes = {array.shape[-2:] for array in arrays}
    if len(sizes) > 1:
        found = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise InputError(
            f"{len(arrays)} samples of different sizes in one batch: {found}; use a batch size of "
            "1, or transforms that end in one size (RandomCrop and Pad)"
        )
    return np.stack(arrays)


def _single(
    dataset: SegmentationDataset | Sequence[SegmentationDataset],
) -> SegmentationDataset:
    # LiBai's own builders take a list, and a config may hold one as OmegaConf's ListConfig.
    if not isinstance(dataset, Sequence):
        return dataset
    if len(dataset) != 1:
        raise InputError(f"dataloader: {len(dataset)} data sets in a list; expected exactly one")
    return dataset[0]
