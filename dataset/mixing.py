"""Mixup and CutMix: training on blends of two images, with the blend of their labels."""

from collections.abc import Sequence

import numpy as np

from projects.SegFormer.modeling.errors import InputError

_STREAM = 1  # sets these random numbers apart from those of a sample, which have the same seed


class Mixing:
    """Mixes neighbours in the stream of samples: positions 0 and 1, 2 and 3, and so on.

    Each pair has a blend of its own: its first image keeps a share lambda of itself and takes the
    rest from the second, and the other way round; the labels likewise. Mixup (Zhang et al. 2018)
    blends all pixels, CutMix (Yun et al. 2019) exchanges a box. What is drawn depends on the seed
    and the pair alone, so neither the split of the ranks nor a resume changes a step.

    Args:
        num_classes: number of classes.
        mixup_alpha, cutmix_alpha: lambda is Beta(alpha, alpha).
        prob: of a pair being mixed at all.
        switch_prob: of a mixed pair being cut rather than blended.
        seed: of all random choices.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        seed: int = 0,
    ):
        self.num_classes = num_classes
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.prob = prob
        self.switch_prob = switch_prob
        self.seed = seed

    def __call__(
        self, images: np.ndarray, labels: np.ndarray, positions: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mixed images, and the probability of each class, float32 (N, num_classes).

        Args:
            images: float32 (N, 3, H, W); it is written to.
            labels: integers (N,).
            positions: of the samples in the stream.

        Raises:
            InputError: half of a pair is missing.
        """
        if len(positions) % 2 or any(
            first % 2 or second != first + 1
            for first, second in zip(positions[::2], positions[1::2], strict=True)
        ):
            raise InputError(
                f"a batch of {len(positions)} samples cannot be mixed in whole pairs: choose an "
                "even train.train_micro_batch_size, or switch it off with dataloader.train.mixing="
                "null"
            )
        targets = np.zeros((len(labels), self.num_classes), np.float32)
        targets[np.arange(len(labels)), labels] = 1
        for place in range(0, len(positions), 2):
            rng = np.random.default_rng((self.seed, positions[place] // 2, _STREAM))
            share = self._mix(images[place : place + 2], rng)
            _blend(targets[place : place + 2], share)
        return images, targets

    def _mix(self, pair: np.ndarray, rng: np.random.Generator) -> float:
        """Mix the images of a pair, (2, 3, H, W), in place; returns the share that each keeps."""
        if rng.random() >= self.prob:
            return 1.0
        if rng.random() >= self.switch_prob:
            share = rng.beta(self.mixup_alpha, self.mixup_alpha)
            _blend(pair, share)
            return share
        rows, columns = _box(*pair.shape[2:], rng.beta(self.cutmix_alpha, self.cutmix_alpha), rng)
        box = pair[:, :, rows, columns]
        box[:] = box[::-1].copy()
        # The share of what is left, since a box over the border is smaller than was drawn.
        return 1 - box[0, 0].size / pair[0, 0].size


def _blend(pair: np.ndarray, share: float) -> None:
    """Each of the two, (2, ...) float32, keeps `share` and takes the rest from the other."""
    moved = np.float32(1 - share) * (pair[1] - pair[0])
    pair[0] += moved
    pair[1] -= moved


def _box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a box with 1 - `share` of the area; where it leaves the image, less."""
    side = np.sqrt(1 - share)
    return _span(height, side, rng), _span(width, side, rng)


def _span(length: int, share: float, rng: np.random.Generator) -> slice:
    centre, half = int(rng.integers(length)), int(length * share) // 2
    return slice(max(centre - half, 0), min(centre + half, length))
