"""The stream of samples: the same whatever the ranks, the accumulation and the interruptions.

First as numbers from the samplers, then as tensors from the loaders.
"""

import threading
from itertools import islice, pairwise

import numpy as np
import oneflow as flow
import pytest
from PIL import Image

from projects.SegFormer.dataset import build
from projects.SegFormer.dataset.build import build_test_loader, build_train_loader
from projects.SegFormer.dataset.sampler import Draw, EvaluationSampler, InfiniteSampler
from projects.SegFormer.dataset.segmentation import SegmentationDataset
from projects.SegFormer.dataset.transforms import (
    Normalize,
    Pad,
    PhotometricDistortion,
    RandomCrop,
    RandomFlip,
    RandomResize,
    Resize,
)
from projects.SegFormer.modeling.errors import InputError


def batches(count, **kwargs):
    return list(islice(InfiniteSampler(**kwargs), count))


def stream(count, **kwargs):
    """The first `count` samples of a single rank, one by one."""
    return [draw for batch in batches(count, micro_batch_size=1, **kwargs) for draw in batch]


def test_stream_is_one_permutation_after_the_other():
    draws = stream(30, dataset_size=10, seed=3)
    assert [draw.position for draw in draws] == list(range(30))
    assert all(draw.valid for draw in draws)
    epochs = [[draw.index for draw in draws[i : i + 10]] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(10)]}) == 4  # all shuffled differently


def test_seed_decides_the_order():
    assert stream(30, dataset_size=10, seed=3) == stream(30, dataset_size=10, seed=3)
    assert stream(30, dataset_size=10, seed=3) != stream(30, dataset_size=10, seed=4)


def test_batch_larger_than_the_data_set():
    (batch,) = batches(1, dataset_size=3, micro_batch_size=8)
    assert batch == stream(8, dataset_size=3)
    assert sorted(draw.index for draw in batch[:6]) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "ranks, micro_batch_size, accumulation",
    [(1, 12, 1), (2, 6, 1), (4, 3, 1), (1, 4, 3), (2, 2, 3)],
)
def test_any_split_of_a_step_sees_the_same_samples(ranks, micro_batch_size, accumulation):
    per_rank = [
        batches(
            4,
            dataset_size=10,
            micro_batch_size=micro_batch_size,
            num_accumulation_steps=accumulation,
            data_parallel_rank=rank,
            data_parallel_size=ranks,
            seed=7,
        )
        for rank in range(ranks)
    ]
    assert all(len(batch) == 12 // ranks for rank in per_rank for batch in rank)
    # A step takes micro-batch after micro-batch, and of each the ranks' parts in rank order.
    seen = [
        draw
        for step in range(4)
        for k in range(accumulation)
        for rank in per_rank
        for draw in rank[step][k * micro_batch_size : (k + 1) * micro_batch_size]
    ]
    assert seen == stream(48, dataset_size=10, seed=7)


@pytest.mark.parametrize("rank", [0, 1])
def test_eager_accumulation_is_graph_accumulation(rank):
    shared = {
        "dataset_size": 10,
        "micro_batch_size": 2,
        "data_parallel_rank": rank,
        "data_parallel_size": 2,
    }
    eager = batches(6, **shared)
    graph = batches(2, num_accumulation_steps=3, **shared)
    assert graph == [eager[0] + eager[1] + eager[2], eager[3] + eager[4] + eager[5]]


@pytest.mark.parametrize("done", [1, 2, 5])
def test_resume_continues_where_it_stopped(done):
    shared = {
        "dataset_size": 7,
        "micro_batch_size": 2,
        "num_accumulation_steps": 2,
        "data_parallel_rank": 1,
        "data_parallel_size": 2,
    }
    through = batches(8, **shared)
    resumed = batches(8 - done, consumed_samples=done * 8, **shared)
    assert resumed == through[done:]


def test_iterating_again_starts_again():
    sampler = InfiniteSampler(dataset_size=7, micro_batch_size=2)
    assert list(islice(sampler, 5)) == list(islice(sampler, 5))


# ---- repeated augmentation ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [12, 18, 25, 7])
@pytest.mark.parametrize("repeats", [2, 3, 5])
def test_two_samples_take_turns(size, repeats):
    """An epoch is as long as ever, and holds the first samples of its permutation."""
    draws = stream(3 * size, dataset_size=size, seed=3, repeats=repeats)
    order = stream(3 * size, dataset_size=size, seed=3)
    assert [draw.position for draw in draws] == list(range(3 * size))
    for start in range(0, 3 * size, size):
        epoch = [draw.index for draw in order[start : start + size]]
        expected = []
        for first, second in zip(epoch[::2], [*epoch[1::2], None], strict=False):
            expected += [first, second] * repeats
        assert [draw.index for draw in draws[start : start + size]] == expected[:size]


def test_neighbours_in_an_epoch_differ():
    draws = stream(4 * 25, dataset_size=25, repeats=3)
    epochs = [draws[start : start + 25] for start in range(0, 100, 25)]
    assert all(a.index != b.index for epoch in epochs for a, b in pairwise(epoch))


def test_one_repeat_is_none():
    assert stream(30, dataset_size=7, repeats=1) == stream(30, dataset_size=7)


def test_repeats_are_the_same_on_any_split():
    shared = {"dataset_size": 11, "repeats": 3, "seed": 2}
    whole = batches(6, micro_batch_size=4, **shared)
    ranks = [
        batches(6, micro_batch_size=2, data_parallel_rank=rank, data_parallel_size=2, **shared)
        for rank in (0, 1)
    ]
    assert [first + second for first, second in zip(*ranks, strict=True)] == whole
    assert batches(4, micro_batch_size=4, consumed_samples=8, **shared) == whole[2:]


# ---- evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 12, 13])
@pytest.mark.parametrize("ranks, micro_batch_size", [(1, 1), (1, 4), (2, 1), (3, 2)])
def test_evaluation_holds_every_sample_once(size, ranks, micro_batch_size):
    samplers = [EvaluationSampler(size, micro_batch_size, rank, ranks) for rank in range(ranks)]
    drawn = [list(sampler) for sampler in samplers]
    step = ranks * micro_batch_size
    expected = (size + step - 1) // step
    assert [len(sampler) for sampler in samplers] == [expected] * ranks
    assert [len(batches) for batches in drawn] == [expected] * ranks
    draws = [draw for batches in drawn for batch in batches for draw in batch]
    assert all(len(batch) == micro_batch_size for batches in drawn for batch in batches)
    assert sorted(draw.index for draw in draws if draw.valid) == list(range(size))
    assert all(draw.index == draw.position for draw in draws if draw.valid)
    assert all(draw.index == 0 for draw in draws if not draw.valid)


def test_evaluation_order_of_two_ranks():
    first, second = (list(EvaluationSampler(5, 2, rank, 2)) for rank in (0, 1))
    filler = Draw(0, 0, False)
    assert first == [[Draw(0, 0), Draw(1, 1)], [Draw(4, 4), filler]]
    assert second == [[Draw(2, 2), Draw(3, 3)], [filler, filler]]


def test_evaluation_in_groups():
    """Ranks that compute a batch together get samples of one group; none is lost or comes twice."""
    keys = ["wide", "high", "wide", "wide", "square", "high", "wide", "wide"]
    samplers = [EvaluationSampler(8, 2, rank, 2) for rank in (0, 1)]
    for sampler in samplers:
        sampler.group(keys)
    first, second = map(list, samplers)
    assert len(first) == len(second) == len(samplers[0]) == 4
    together = [a + b for a, b in zip(first, second, strict=True)]
    assert [{keys[draw.index] for draw in batch} for batch in together] == [
        {"wide"}, {"wide"}, {"high"}, {"square"}
    ]  # fmt: skip
    assert sorted(draw.index for batch in together for draw in batch if draw.valid) == [*range(8)]


# ---- loaders ------------------------------------------------------------------------------------


def image(seed, height=24):
    return np.random.default_rng(seed).integers(0, 256, (height, 32, 3), dtype=np.uint8)


def label_map(seed, height=24):
    return np.random.default_rng(seed).choice([0, 1, 2, 3, 255], (height, 32)).astype(np.uint8)


def make_dataset(folder, transforms=(), heights=(24,) * 5):
    for seed, height in enumerate(heights):
        Image.fromarray(image(seed, height)).save(folder / f"image{seed}.png")
        Image.fromarray(label_map(seed, height)).save(folder / f"label{seed}.png")
    images, labels = (sorted(folder.glob(f"{kind}*.png")) for kind in ("image", "label"))
    palette = [(0, 0, 0)] * 4
    return SegmentationDataset(images, labels, ["a", "b", "c", "d"], palette, transforms, seed=4)


def augmentation():
    return [
        RandomResize((24, 32)),
        RandomCrop((16, 16)),
        RandomFlip(),
        PhotometricDistortion(),
        Normalize(),
        Pad((16, 16)),
    ]


def test_batch_is_what_libai_expects(tmp_path):
    dataset = make_dataset(tmp_path, [Resize((48, 64), resize_label=False)])
    batch = next(iter(build_test_loader(dataset, 2)))
    images, labels = batch.get("images"), batch.get("labels")
    assert images.tensor.dtype == flow.float32 and labels.tensor.dtype == flow.int64
    assert images.tensor.shape == (2, 3, 48, 64) and labels.tensor.shape == (2, 24, 32)
    assert (images.placement_idx, labels.placement_idx) == (0, -1)
    assert images.sbp_list == labels.sbp_list == ["split_0", "broadcast"]


def arrays(batches):
    return [(b.get("images").tensor.numpy(), b.get("labels").tensor.numpy()) for b in batches]


def train_batches(folder, count, **kwargs):
    dataset = make_dataset(folder, augmentation())
    loader, valid, test = build_train_loader([dataset], seed=5, **kwargs)
    assert valid is None and test is None
    assert len(loader.dataset) == 5 and loader.mixup_func is None
    return arrays(islice(loader, count))


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


def test_train_batches(tmp_path):
    batches = train_batches(tmp_path, 4, train_batch_size=4, num_workers=0)
    assert all(images.shape == (4, 3, 16, 16) for images, _ in batches)
    assert all(labels.shape == (4, 16, 16) for _, labels in batches)
    assert all((a[0] != b[0]).any() for a, b in pairwise(batches))


def test_workers_change_nothing(tmp_path):
    expected = train_batches(tmp_path, 6, train_batch_size=3, num_workers=0)
    assert_same(train_batches(tmp_path, 6, train_batch_size=3, num_workers=2), expected)


def test_resume_changes_nothing(tmp_path):
    expected = train_batches(tmp_path, 6, train_batch_size=3, num_workers=0)
    resumed = train_batches(tmp_path, 4, train_batch_size=3, num_workers=0, consumed_samples=6)
    assert_same(resumed, expected[2:])


def test_ranks_change_nothing(tmp_path, monkeypatch):
    whole = train_batches(tmp_path, 3, train_batch_size=4, num_workers=0)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(build, "data_parallel_place", lambda rank=rank: (rank, 2))
        parts.append(train_batches(tmp_path, 3, train_batch_size=2, num_workers=0))
    together = [
        tuple(np.concatenate(pair) for pair in zip(*batches, strict=True))
        for batches in zip(*parts, strict=True)
    ]
    assert_same(together, whole)


def test_accumulation_in_graph_mode_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "data_parallel_place", lambda: (1, 2))
    eager = train_batches(tmp_path, 4, train_batch_size=2, num_workers=0)
    graph = train_batches(tmp_path, 2, train_batch_size=4, num_accumulation_steps=2, num_workers=0)
    together = [
        tuple(np.concatenate(pair) for pair in zip(*eager[i : i + 2], strict=True)) for i in (0, 2)
    ]
    assert_same(graph, together)


def test_batch_must_divide(tmp_path):
    with pytest.raises(InputError, match="train_batch_size 4 does not divide into 3 equal"):
        train_batches(tmp_path, 1, train_batch_size=4, num_accumulation_steps=3)


@pytest.mark.parametrize("repeats", [0, -1])
def test_repeats_below_one(tmp_path, repeats):
    message = f"dataloader.train.repeated_augmentation={repeats}: expected a whole number"
    with pytest.raises(InputError, match=message):
        train_batches(tmp_path, 1, train_batch_size=4, repeated_augmentation=repeats)


def test_exactly_one_data_set(tmp_path):
    dataset = make_dataset(tmp_path)
    with pytest.raises(InputError, match="dataloader: 2 data sets in a list; expected exactly one"):
        build_test_loader([dataset, dataset], 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches(tmp_path, workers):
    dataset = make_dataset(tmp_path, [Resize((48, 64), resize_label=False), Normalize()])
    loader = build_test_loader(dataset, 2, num_workers=workers)
    assert len(loader) == 3
    batches = arrays(loader)
    assert [images.shape for images, _ in batches] == [(2, 3, 48, 64)] * 3
    labels = np.concatenate([labels for _, labels in batches])
    expected = [label_map(seed) for seed in range(5)] + [np.full((24, 32), 255)]
    np.testing.assert_array_equal(labels, np.stack(expected))


def test_an_abandoned_loader_ends_its_threads(tmp_path):
    before = set(threading.enumerate())
    dataset = make_dataset(tmp_path, augmentation())
    batches = iter(build_train_loader(dataset, 2, num_workers=2)[0])
    next(batches)
    started = set(threading.enumerate()) - before
    assert len(started) == 3  # two that load samples, one that puts batches together
    batches.close()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_keep_their_line_through_the_loader(tmp_path, workers):
    loader = build_test_loader(make_dataset(tmp_path), 1, num_workers=workers)
    (tmp_path / "image1.png").write_bytes(b"?")
    with pytest.raises(InputError) as error:
        list(loader)
    assert str(error.value).startswith(f"{tmp_path}/image1.png: damaged")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_different_sizes(tmp_path, workers):
    dataset = make_dataset(tmp_path, heights=(24, 20))
    message = "2 samples of different sizes in one batch: 20x32, 24x32; use a batch size of 1"
    with pytest.raises(InputError, match=message):
        list(build_test_loader(dataset, 2, num_workers=workers))
    assert len(list(build_test_loader(dataset, 1, num_workers=workers))) == 2
