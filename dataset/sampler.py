"""Which sample goes to which rank, and when.

Training reads one endless stream of samples, numbered from 0: seeded permutations of the data set,
one after the other. A rank picks its share by position, so that neither the number of ranks nor an
interruption changes what a training step sees.
"""

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """One sample to load.

    index: in the data set. position: in the stream of samples; decides the augmentation.
    valid: False for a sample that only fills up the last batch of an evaluation.
    """

    index: int
    position: int
    valid: bool = True


class InfiniteSampler:
    """Endless batches of `Draw`s for training. Drops nothing at the end of an epoch.

    A loader batch holds `num_accumulation_steps` micro-batches, as LiBai's graph mode takes them,
    and one in eager mode. With n ranks, micro-batch k of all of them together is the positions
    k * n * micro_batch_size to (k + 1) * n * micro_batch_size of the stream, in rank order.

    Args:
        micro_batch_size: samples per rank and forward pass.
        consumed_samples: the position to start at: samples that all ranks together have trained on.
        repeats: how often an epoch, as long as ever, holds each sample that is in it: repeated
            augmentation (Berman et al. 2019). Two samples take turns, a b a b a b, so that they are
            near each other and neighbours differ.
    """

    def __init__(
        self,
        dataset_size: int,
        micro_batch_size: int,
        num_accumulation_steps: int = 1,
        data_parallel_rank: int = 0,
        data_parallel_size: int = 1,
        seed: int = 0,
        consumed_samples: int = 0,
        repeats: int = 1,
    ):
        self.dataset_size = dataset_size
        self.micro_batch_size = micro_batch_size
        self.num_accumulation_steps = num_accumulation_steps
        self.data_parallel_rank = data_parallel_rank
        self.data_parallel_size = data_parallel_size
        self.seed = seed
        self.consumed_samples = consumed_samples
        self.repeats = repeats

    def __iter__(self) -> Iterator[list[Draw]]:
        step = self.micro_batch_size * self.data_parallel_size
        start = self.consumed_samples + self.data_parallel_rank * self.micro_batch_size
        while True:
            yield [
                self._draw(start + k * step + j)
                for k in range(self.num_accumulation_steps)
                for j in range(self.micro_batch_size)
            ]
            start += self.num_accumulation_steps * step

    def _draw(self, position: int) -> Draw:
        epoch, place = divmod(position, self.dataset_size)
        order = _permutation(self.dataset_size, self.seed, epoch)
        place = place // (2 * self.repeats) * 2 + place % 2
        return Draw(int(order[place]), position)


class EvaluationSampler:
    """Batches of `Draw`s that hold every sample of the data set once, over all ranks.

    Every rank gets the same number of batches of `micro_batch_size`; what is missing at the end are
    `Draw`s that are not `valid`. All ranks compute one batch together, so after `group` their
    samples of one batch are of one group, and what is missing at a group's end is filled up.
    """

    def __init__(
        self,
        dataset_size: int,
        micro_batch_size: int,
        data_parallel_rank: int = 0,
        data_parallel_size: int = 1,
    ):
        self.dataset_size = dataset_size
        self.micro_batch_size = micro_batch_size
        self.data_parallel_rank = data_parallel_rank
        self.data_parallel_size = data_parallel_size
        self.group([0] * dataset_size)

    def group(self, keys: Sequence[Hashable]) -> None:
        """Batch together only samples of equal key; one key a sample, in order."""
        members = {}
        for index, key in enumerate(keys):
            members.setdefault(key, []).append(index)
        step = self.micro_batch_size * self.data_parallel_size
        self._draws = []
        for indices in members.values():
            self._draws += [Draw(index, index) for index in indices]
            filler = Draw(indices[0], indices[0], valid=False)
            self._draws += [filler] * (-len(indices) % step)

    def __len__(self) -> int:
        return len(self._draws) // (self.micro_batch_size * self.data_parallel_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in range(len(self)):
            block = batch * self.data_parallel_size + self.data_parallel_rank
            start = block * self.micro_batch_size
            yield self._draws[start : start + self.micro_batch_size]


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)
