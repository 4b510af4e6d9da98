"""The order of samples: exact, shuffled, the same everywhere, and cheap for ten million clips."""

import time
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.plan import SequentialPlan, ShardPlan, default_lanes, rank_positions
from vdm.errors import ConfigError, DataError


def plan(counts, *, seed=0, window=5, lanes=None):
    return ShardPlan(counts=counts, seed=seed, shuffle_window=window, lanes=lanes)


def order(a_plan, positions):
    return [(place.shard, place.index) for place in map(a_plan.locate, positions)]


def everything(counts):
    return [(shard, index) for shard, count in enumerate(counts) for index in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any), st.integers(1, 7), st.data())
def test_each_epoch_has_each_sample_once(counts, window, data):
    lanes = data.draw(st.one_of(st.none(), st.integers(1, sum(counts))))
    a_plan = plan(counts, window=window, lanes=lanes)
    for epoch in range(3):
        positions = range(epoch * sum(counts), (epoch + 1) * sum(counts))
        places = [a_plan.locate(position) for position in positions]
        assert {place.epoch for place in places} == {epoch}
        assert sorted(place[1:] for place in places) == everything(counts)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_ranks_share_an_epoch_exactly(world_size, batch_size):
    counts = [7, 1, 12, 9, 12]
    a_plan, found, start = plan(counts, lanes=4), [], 0
    while len(found) < sum(counts):
        for rank in range(world_size):
            found += rank_positions(start, batch_size=batch_size, rank=rank, world_size=world_size)
        start += batch_size * world_size
    assert sorted(found) == list(range(start)), "no position is left out, read twice, or of another step"
    assert sorted(order(a_plan, sorted(found)[: sum(counts)])) == everything(counts)


def test_order_is_frozen():
    """A changed order would make every resumed run read other samples than it promises."""
    a_plan = plan([4, 3, 5, 2], seed=7, window=3, lanes=2)
    assert order(a_plan, range(14)) == GOLDEN
    assert order(a_plan, range(14 * 10**9, 14 * 10**9 + 3)) == GOLDEN_LATE


GOLDEN = [
    (1, 2),
    (2, 3),
    (1, 1),
    (2, 4),
    (1, 0),
    (2, 2),
    (3, 0),
    (0, 1),
    (2, 0),
    (0, 0),
    (3, 1),
    (0, 2),
    (2, 1),
    (0, 3),
]
GOLDEN_LATE = [(1, 2), (0, 1), (1, 0)]


def test_seed_and_epoch_change_the_order():
    counts = [50] * 4
    first = order(plan(counts), range(200))
    assert first != order(plan(counts, seed=1), range(200))
    assert first != order(plan(counts), range(200, 400))
    assert first == order(plan(counts), range(200))


def test_shuffling_reaches_as_far_as_its_window():
    a_plan = plan([100] * 10, window=1000, lanes=1)
    distance = np.abs(np.diff([shard * 100 + index for shard, index in order(a_plan, range(1000))]))
    assert distance.mean() > 250, "a uniform shuffle of 1000 has mean distance 333"


@pytest.mark.parametrize(("lanes", "world_size"), [(16, 1), (16, 2), (16, 4), (16, 16), (48, 3), (48, 6), (48, 24)])
def test_a_rank_reads_one_run_of_shards(lanes, world_size):
    counts = [10] * 96
    a_plan = plan(counts, lanes=lanes)
    shards, _ = a_plan._epoch(0)
    for rank in range(world_size):
        touched = {shards.index(shard) for shard, _ in order(a_plan, range(rank, 960, world_size))}
        assert len(touched) == 96 // world_size
        assert max(touched) - min(touched) == len(touched) - 1


def test_ten_million_clips_over_1024_ranks_of_8_workers():
    begun = time.perf_counter()
    a_plan = plan([1000] * 10_000, window=4096)
    a_plan.locate(0)
    assert time.perf_counter() - begun < 2
    assert a_plan.lanes == 8192
    assert a_plan._lengths.max() - a_plan._lengths.min() == 1, "each of 8 lanes of a rank, one for a worker"
    per_rank = a_plan._lengths.reshape(8, 1024).sum(axis=0)
    assert per_rank.max() - per_rank.min() <= 1
    touched = []
    for rank in (0, 1, 511, 1023):
        touched.append(len({shard for shard, _ in order(a_plan, range(rank, 10_000_000, 1024))}))
    assert max(touched) - min(touched) <= 1, "balanced within one shard"
    assert max(touched) <= 11, "9,766 samples lie in 10 or 11 shards of 1,000"


def test_a_substitute_is_of_the_same_rank_and_not_of_the_same_batch():
    a_plan = plan([100] * 10, lanes=8)
    substitutes = [a_plan.substitute(13, attempt) for attempt in range(1, 5)]
    assert {position % 8 for position in substitutes} == {13 % 8}
    assert min(substitutes) - 13 >= 512
    assert len(set(substitutes)) == 4


def test_lanes():
    assert [default_lanes(count) for count in (1, 2, 3, 1000, 8192, 20000)] == [1, 2, 2, 512, 8192, 8192]
    assert plan([1, 0, 0, 0]).lanes == 1
    with pytest.raises(ConfigError, match="data.lanes"):
        plan([3, 3], lanes=7)
    with pytest.raises(DataError, match="no samples"):
        plan([0, 0])


def test_stored_order_for_validation():
    a_plan = SequentialPlan(counts=[3, 0, 2], limit=4)
    assert a_plan.num_samples == 4
    assert order(a_plan, range(5)) == everything([3, 0, 2])
    assert list(islice((a_plan.substitute(1, attempt) for attempt in range(1, 3)), 2)) == [5, 9]
    assert a_plan.locate(4).shard == 2, "a substitute comes from beyond the limit"
    assert SequentialPlan(counts=[3], limit=10).num_samples == 3
