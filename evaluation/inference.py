"""From images to label maps: whole or in windows, at one scale or several.

All modes end in the class of every pixel at a size that is asked for. Between the network's logits
and that size everything but a softmax is linear and separable: upsampling to the image, putting
windows together, undoing a flip, and resizing to the label. So each window keeps its logits at
their own size, and a matrix for its rows and one for its columns do all of it, tile by tile. What
is in memory beside the logits is one tile of the result, however large the image is.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import oneflow as flow
from libai.config import instantiate

from projects.SegFormer.dataset.transforms import Resize
from projects.SegFormer.modeling import cpu_kernels as kernels
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.modeling.layers import interpolation_weights
from projects.SegFormer.modeling.segformer_model import MIN_SIDE

TILE_VALUES = 2**18  # of a tile of the result: rows x columns x classes x images


class Inference:
    """How the images of an evaluation or a prediction go through the model.

    Whole by default. With `crop_size` in windows of that size (slide inference): logits are summed
    where windows overlap and divided by the number of windows; the last window of a row or column
    is shifted back inside. With several scales, or `flip`, the softmax is averaged over all views
    (test-time augmentation). Logits are interpolated to the network's input and from there to the
    result, bilinearly, as in the paper's code (mmsegmentation's EncoderDecoder).

    Args:
        crop_size: (height, width) of the windows; None for whole images. An image that is smaller
            is one window.
        stride: (height, width) from window to window; at most crop_size.
        resize: two sides, in either order, that the image is scaled to fit in first, its longer one
            in the longer, ratio kept; None to leave it. Scales are relative to it.
        divisor: scaled sides are rounded up to a multiple of it.
        scales: of test-time augmentation.
        flip: whether each scale is also seen mirrored.

    Raises:
        InputError: values that do not go together.
    """

    def __init__(
        self,
        crop_size: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        resize: Sequence[int] | None = None,
        divisor: int = 1,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ):
        self.crop_size = None if crop_size is None else _pair("crop_size", crop_size)
        self.stride = self.crop_size if stride is None else _pair("stride", stride)
        self.resize = None if resize is None else _pair("resize", resize)
        self.divisor, self.scales, self.flip = divisor, tuple(scales), flip
        if self.crop_size is None and stride is not None:
            raise InputError(f"inference.stride={stride} without inference.crop_size: set both")
        if self.crop_size and any(s > c for s, c in zip(self.stride, self.crop_size, strict=True)):
            raise InputError(
                f"inference.stride={self.stride} is larger than inference.crop_size="
                f"{self.crop_size}: pixels between the windows would be seen by none"
            )
        if self.crop_size and min(self.crop_size) < MIN_SIDE:
            raise InputError(
                f"inference.crop_size={self.crop_size}: both sides must be {MIN_SIDE} or more"
            )
        if not self.scales or min(self.scales) <= 0:
            raise InputError(f"inference.scales={list(self.scales)}: expected positive numbers")
        if not isinstance(divisor, int) or divisor < 1:
            raise InputError(f"inference.divisor={divisor}: expected a whole number, 1 or up")

    def __call__(self, model, images: np.ndarray, size: Sequence[int]) -> np.ndarray | None:
        """The class of every pixel.

        Args:
            images: float32 (N, 3, H, W), normalised, of one size; the same on all ranks that share
                the model.
            size: (height, width) of the result.
        Returns:
            int64 (N, *size); None on ranks of other stages than the last.
        """
        views = self.views(model, images, size)
        return None if views is None else labels_of(views, size)

    def views(self, model, images: np.ndarray, size: Sequence[int]) -> "Views | None":
        """What the model says of the images, before it is brought to `size`: see `labels_of`,
        `probabilities_of` and `confidence_of`. Arguments and None as for a call.
        """
        views = [
            self._view(model, images, scale, mirrored, tuple(size))
            for scale in self.scales
            for mirrored in ((False, True) if self.flip else (False,))
        ]
        return None if any(view is None for view in views) else views

    def passes(self, size: Sequence[int]) -> int:
        """How often the network runs for an image of this (height, width)."""
        count = 0
        for scale in self.scales:
            sides = self.input_size(size, scale)
            crop, stride = self.crop_size or sides, self.stride or (1, 1)
            count += math.prod(len(_spans(*side)) for side in zip(sides, crop, stride))
        return count * (2 if self.flip else 1)

    def _view(self, model, images, scale: float, mirrored: bool, size) -> list["_Window"] | None:
        images = self._scaled(images, scale)
        height, width = images.shape[-2:]
        if mirrored:
            images = images[..., ::-1]
        rows, columns = (
            _spans(side, crop, step)
            for side, crop, step in zip(
                (height, width), self.crop_size or (height, width), self.stride or (1, 1)
            )
        )
        counts = _counts(height, rows), _counts(width, columns)
        windows = []
        for top, bottom in rows:
            for left, right in columns:
                logits = _local_logits(model, images[..., top:bottom, left:right])
                if logits is None:
                    continue
                to_rows = _placed(logits.shape[1], (top, bottom), counts[0], size[0])
                to_columns = _placed(logits.shape[2], (left, right), counts[1], size[1])
                if mirrored:  # interpolation is symmetric, so the result is turned round
                    to_columns = to_columns[::-1]
                windows.append(_Window(logits, to_rows, to_columns))
        return windows or None

    def input_size(self, size: Sequence[int], scale: float) -> tuple[int, int]:
        """(height, width) in which an image of this size goes through the network at a scale."""
        return self._resize(size, scale).target_size(*size)

    def _resize(self, size: Sequence[int], scale: float) -> Resize:
        target = tuple(int(side * scale + 0.5) for side in self.resize or size)
        return Resize(target, keep_ratio=self.resize is not None, divisor=self.divisor)

    def _scaled(self, images: np.ndarray, scale: float) -> np.ndarray:
        resize = self._resize(images.shape[-2:], scale)
        scaled = [resize(image.transpose(1, 2, 0), None, None)[0] for image in images]
        return np.stack(scaled).transpose(0, 3, 1, 2)


def build_inference(cfg) -> Inference:
    """The `inference` of a config; whole images where it has none."""
    return instantiate(cfg.inference) if "inference" in cfg else Inference()


class _Window(NamedTuple):
    """Logits (N, h, w, C), and where they go: matrices (height, h) and (width, w) of the result."""

    logits: np.ndarray | flow.Tensor  # an array on a CPU
    rows: np.ndarray
    columns: np.ndarray


Views = list[list[_Window]]


def labels_of(views: Views, size: Sequence[int]) -> np.ndarray:
    """The class of every pixel: int64 (N, *size)."""
    n = len(views[0][0].logits)
    return _by_tiles(
        views, size, np.empty((n, *size), np.int64), lambda *tile: _best(_scores(*tile))
    )


def probabilities_of(views: Views, size: Sequence[int]) -> np.ndarray:
    """The probability of every class at every pixel: float32 (N, *size, C)."""
    n, *_, classes = views[0][0].logits.shape
    return _by_tiles(views, size, np.empty((n, *size, classes), np.float32), _probabilities)


def confidence_of(views: Views, size: Sequence[int]) -> np.ndarray:
    """The probability of the class that `labels_of` gives: float32 (N, *size)."""
    result = np.empty((len(views[0][0].logits), *size), np.float32)
    return _by_tiles(views, size, result, lambda *tile: _probabilities(*tile).max(-1))


def _by_tiles(views: Views, size: Sequence[int], result: np.ndarray, function) -> np.ndarray:
    """`result`, filled with function(views, rows, columns) tile by tile."""
    n, *_, classes = views[0][0].logits.shape
    side = max(1, math.isqrt(TILE_VALUES // (n * classes)))

    def fill(tile):
        result[:, tile[0], tile[1]] = function(views, *tile)

    tiles = product(*(_slices(length, side) for length in size))
    if isinstance(views[0][0].logits, np.ndarray):
        kernels.in_parallel(fill, tiles)
    else:
        for tile in tiles:
            fill(tile)
    return result


def _spans(side: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """Where windows of `crop` begin and end on a side."""
    crop = min(crop, side)
    count = -(-(side - crop) // stride) + 1
    starts = [min(i * stride, side - crop) for i in range(count)]
    return [(start, start + crop) for start in starts]


def _counts(side: int, spans: list[tuple[int, int]]) -> np.ndarray:
    """(side,): how many of the spans hold each pixel."""
    counts = np.zeros(side)
    for start, end in spans:
        counts[start:end] += 1
    return counts


def _placed(length: int, span: tuple[int, int], counts: np.ndarray, result: int) -> np.ndarray:
    """(result, length): logits up to their window, it into the image, that to the result.

    A window that was padded to MIN_SIDE has logits beyond its end, which no pixel reads.
    """
    start, end = span
    within = interpolation_weights(length, max(end - start, MIN_SIDE))[: end - start]
    within /= counts[start:end, None]
    if len(counts) != result:
        return interpolation_weights(len(counts), result)[:, start:end] @ within
    placed = np.zeros((result, length))
    placed[start:end] = within
    return placed


def _local_logits(model, images: np.ndarray) -> np.ndarray | flow.Tensor | None:
    """(N, h, w, C) on the last stage's ranks, else None. Sides below MIN_SIDE are padded with 0."""
    missing = [max(MIN_SIDE - side, 0) for side in images.shape[-2:]]
    images = np.pad(images, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])))
    logits = model(images=flow.from_numpy(np.ascontiguousarray(images)))["prediction_scores"]
    logits = local_part(logits)
    if logits is None:
        return None
    if logits.device.type == "cpu":
        return logits.numpy().transpose(0, 2, 3, 1)
    return logits.permute(0, 2, 3, 1).contiguous()


def local_part(tensor: flow.Tensor) -> flow.Tensor | None:
    """What this rank has of a global tensor; None where it is on other ranks, of another stage."""
    return tensor.to_local() if flow.env.get_rank() in tensor.placement.ranks else None


def _slices(length: int, side: int) -> list[slice]:
    return [slice(start, min(start + side, length)) for start in range(0, length, side)]


def _scores(views: Views, rows: slice, columns: slice):
    """A tile of the result, (N, rows, columns, C): logits of one view, else mean probabilities."""
    if len(views) == 1:
        return _joined(views[0], rows, columns)
    total = None
    for view in views:
        probabilities = _softmax(_joined(view, rows, columns))
        total = probabilities if total is None else total + probabilities
    return total / len(views)


def _probabilities(views: Views, rows: slice, columns: slice) -> np.ndarray:
    """The same of every class, also of one view."""
    scores = _scores(views, rows, columns)
    probabilities = _softmax(scores) if len(views) == 1 else scores
    return probabilities if isinstance(scores, np.ndarray) else probabilities.numpy()


def _joined(windows: list[_Window], rows: slice, columns: slice):
    """A tile of a view at the result's size: (N, rows, columns, C)."""
    total = None
    for logits, to_rows, to_columns in windows:
        to_rows, to_columns = to_rows[rows], to_columns[columns]
        top, bottom = _sources(to_rows)
        left, right = _sources(to_columns)
        if bottom == top or right == left:
            continue
        # The columns first: that is on the few rows that there are.
        part = _product(to_columns[:, left:right], logits[:, top:bottom, left:right])
        n, height, width, classes = part.shape
        part = _product(to_rows[:, top:bottom], part.reshape(n, height, width * classes))
        part = part.reshape(n, len(to_rows), width, classes)
        total = part if total is None else total + part
    return total


def _sources(matrix: np.ndarray) -> tuple[int, int]:
    """The range of columns in which a matrix is not zero."""
    found = np.flatnonzero(matrix.any(axis=0))
    return (found[0], found[-1] + 1) if len(found) else (0, 0)


# ---- On a CPU with NumPy, on a GPU with OneFlow --------------------------------------------------


def _product(matrix: np.ndarray, x):
    """The matrix times the two last axes."""
    matrix = np.ascontiguousarray(matrix, np.float32)
    if isinstance(x, np.ndarray):
        return np.matmul(matrix, np.ascontiguousarray(x))
    return flow.matmul(flow.tensor(matrix, device=x.device), x)


def _softmax(x):
    """Over the last axis."""
    if not isinstance(x, np.ndarray):
        return flow.softmax(x, dim=-1)
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def _best(scores) -> np.ndarray:
    """The class of the highest score: (..., C) -> (...)."""
    if isinstance(scores, np.ndarray):
        return kernels.arg_max(scores)
    return flow.argmax(scores, dim=-1).numpy()


def _pair(name: str, values: Sequence[int]) -> tuple[int, int]:
    values = tuple(values) if isinstance(values, Sequence) else (values,)
    if len(values) != 2 or not all(isinstance(value, int) and value > 0 for value in values):
        raise InputError(f"inference.{name}={list(values)}: expected [height, width] in pixels")
    return values
