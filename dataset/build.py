"""Data sets to loaders, as LiBai's trainer asks for them in `cfg.dataloader`."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import oneflow as flow
from libai.data.structures import DistTensorData, Instance
from libai.utils import distributed as dist

from projects.SegFormer.dataset.classification import ClassificationFolder
from projects.SegFormer.dataset.mixing import Mixing
from projects.SegFormer.dataset.sampler import Draw, EvaluationSampler, InfiniteSampler
from projects.SegFormer.dataset.segmentation import SegmentationDataset
from projects.SegFormer.dataset.transforms import IGNORE_INDEX
from projects.SegFormer.modeling.errors import InputError

Dataset = SegmentationDataset | ClassificationFolder
Sample = tuple[np.ndarray, np.ndarray | int]  # image (C, H, W), label map (H, W) or class index


class Loader:
    """The batches of a sampler, read ahead by `num_workers` threads; by none if that is 0.

    A batch of LiBai's holds `images`, float32 (N, C, H, W), and `labels`: int64 (N, H, W) of label
    maps, the data set's `ignore_index` where a pixel counts nowhere, int64 (N,) of class indices,
    float32 (N, classes) after `mixing`. Images go to the first
    stage of a pipeline, labels to the last.

    Threads, and not the worker processes of OneFlow's DataLoader: Pillow, OpenCV and NumPy run
    beside each other and beside OneFlow's computation, nothing is copied from process to process,
    and an error arrives as it was raised. Besides, OneFlow 0.9.0 crashes if a tensor that came from
    a worker process is freed while a Python exception is on its way.

    LiBai's trainer looks for the attributes `dataset` and `mixup_func`; the latter does not know
    which samples it is given, so that `mixing`, which has to, comes before.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: InfiniteSampler | EvaluationSampler,
        num_workers: int,
        mixup_func: Callable | None = None,
        mixing: Mixing | None = None,
    ):
        self.dataset = dataset
        self.sampler = sampler
        self.num_workers = num_workers
        self.mixup_func = mixup_func
        self.mixing = mixing

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Instance]:
        if self.num_workers == 0:
            for draws in self.sampler:
                yield _to_instance(*self._batch(draws, [self.dataset[draw] for draw in draws]))
            return
        cv2.setNumThreads(0)  # the workers are the parallelism; OpenCV's threads would compete
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="loader")
        # A thread of its own puts batches together: it waits for samples, which takes no core.
        finisher = ThreadPoolExecutor(1, thread_name_prefix="batches")
        try:
            ahead = deque()
            for draws in self.sampler:
                futures = [pool.submit(self.dataset.__getitem__, draw) for draw in draws]
                ahead.append(finisher.submit(self._finish, draws, futures))
                if len(ahead) > self.num_workers:
                    yield _to_instance(*ahead.popleft().result())
            while ahead:
                yield _to_instance(*ahead.popleft().result())
        finally:
            for executor in (pool, finisher):
                executor.shutdown(wait=False, cancel_futures=True)

    def _finish(self, draws: list[Draw], futures: list[Future]) -> tuple[np.ndarray, np.ndarray]:
        return self._batch(draws, [future.result() for future in futures])

    def _batch(self, draws: list[Draw], samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = collate(samples)
        ignore_index = getattr(self.dataset, "ignore_index", IGNORE_INDEX)
        if ignore_index != IGNORE_INDEX:  # which padding and samples that fill up are, too
            labels[labels == IGNORE_INDEX] = ignore_index
        if self.mixing is None:
            return images, labels
        return self.mixing(images, labels, [draw.position for draw in draws])


def build_train_loader(
    dataset: Dataset | Sequence[Dataset],
    train_batch_size: int,
    test_batch_size: int | None = None,
    num_accumulation_steps: int = 1,
    num_workers: int = 2,
    seed: int = 0,
    consumed_samples: int = 0,
    mixup_func: Callable | None = None,
    mixing: Mixing | None = None,
    repeated_augmentation: int = 1,
) -> tuple[Loader, None, None]:
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
        mixing: of class labels, see `Mixing`.
        repeated_augmentation: how often an epoch holds each sample in it, see `InfiniteSampler`.

    Raises:
        InputError: the batch does not divide into its micro-batches, or a number below 1.
    """
    dataset = _single(dataset)
    micro_batch_size, rest = divmod(train_batch_size, num_accumulation_steps)
    if micro_batch_size == 0 or rest:
        raise InputError(
            f"train_batch_size {train_batch_size} does not divide into {num_accumulation_steps} "
            "equal micro-batches (num_accumulation_steps)"
        )
    if repeated_augmentation < 1:
        raise InputError(
            f"dataloader.train.repeated_augmentation={repeated_augmentation}: expected a whole "
            "number, 1 for every sample once an epoch, 3 as in DeiT"
        )
    rank, size = data_parallel_place()
    sampler = InfiniteSampler(
        len(dataset),
        micro_batch_size,
        num_accumulation_steps,
        rank,
        size,
        seed,
        consumed_samples,
        repeated_augmentation,
    )
    return Loader(dataset, sampler, num_workers, mixup_func, mixing), None, None


def build_test_loader(
    dataset: Dataset | Sequence[Dataset],
    test_batch_size: int,
    num_workers: int = 2,
    seed: int = 0,
) -> Loader:
    """A loader of this rank's share of the data set, in order, each sample once over all ranks.

    Args:
        dataset: the data set, or a list that holds only it.
        test_batch_size: samples of a batch on each rank.
        seed: not used, nothing is random here; the trainer passes it.
    """
    dataset = _single(dataset)
    sampler = EvaluationSampler(len(dataset), test_batch_size, *data_parallel_place())
    return Loader(dataset, sampler, num_workers)


def data_parallel_place() -> tuple[int, int]:
    """Data-parallel rank and number of such ranks."""
    return dist.get_data_parallel_rank(), dist.get_data_parallel_size()


def collate(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, C, H, W) and labels, int64 (N, H, W) or (N,); the two may differ in size.

    Raises:
        InputError: the samples differ in size.
    """
    images, labels = (_stack([*map(np.asarray, arrays)]) for arrays in zip(*samples, strict=True))
    return images, labels.astype(np.int64)


def _to_instance(images: np.ndarray, labels: np.ndarray) -> Instance:
    return Instance(
        images=DistTensorData(flow.from_numpy(images)),
        labels=DistTensorData(flow.from_numpy(labels), placement_idx=-1),
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


def _single(dataset: Dataset | Sequence[Dataset]) -> Dataset:
    # LiBai's own builders take a list, and a config may hold one as OmegaConf's ListConfig.
    if not isinstance(dataset, Sequence):
        return dataset
    if len(dataset) != 1:
        raise InputError(f"dataloader: {len(dataset)} data sets in a list; expected exactly one")
    return dataset[0]
