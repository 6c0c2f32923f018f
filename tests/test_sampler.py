"""The stream of samples: the same whatever the ranks, the accumulation and the interruptions."""

from itertools import islice

import pytest

from projects.SegFormer.dataset.sampler import Draw, EvaluationSampler, InfiniteSampler


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
    assert sorted(draw.position for draw in draws) == list(range(expected * step))
    assert all(draw.index == 0 for draw in draws if not draw.valid)


def test_evaluation_order_of_two_ranks():
    first, second = (list(EvaluationSampler(5, 2, rank, 2)) for rank in (0, 1))
    assert first == [[Draw(0, 0), Draw(1, 1)], [Draw(4, 4), Draw(0, 5, False)]]
    assert second == [[Draw(2, 2), Draw(3, 3)], [Draw(0, 6, False), Draw(0, 7, False)]]
