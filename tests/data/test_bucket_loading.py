"""Buckets: every batch of one shape, the same for all ranks, and of the samples none lost, repeated or out of order."""

import json
from collections import Counter

import numpy as np
import pytest
from clip_factory import DISTINCT, FRAMES, SIZE, facts, make_loader, make_split, mp4, sample, seen
from hypothesis import given, settings
from hypothesis import strategies as st

from data.buckets import Bucket, bucket_at, buckets_of, largest
from data.check import checked_index
from data.samples import ClipSettings
from vdm.errors import ConfigError
from vdm.video import decode

COUNT = 43  # in shards of 10; 43 is prime, so nothing divides an epoch
BUCKETS = buckets_of(
    [
        {"frames": 4, "height": 16, "width": 16, "weight": 2, "batch_size": 3},
        {"frames": 1, "height": 16, "width": 16, "weight": 1, "batch_size": 7},
        {"frames": 8, "height": 8, "width": 12, "weight": 1.5, "batch_size": 2},
    ]
)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_split(tmp_path_factory.mktemp("tiny"), COUNT)


def bucketed(index, **options):
    loader = make_loader(index, frames=FRAMES, **options)  # the largest in every direction
    loader.buckets = BUCKETS
    return loader


def steps(loader, count):
    """That many batches, each as its shape and its rows."""
    stream, found = iter(loader), []
    for _ in range(count):
        batch = next(stream)
        found.append((tuple(batch["video"].shape), seen(batch)))
    stream.close()
    return found


@pytest.fixture(scope="module")
def truth(index):
    return steps(bucketed(index), 40)


def test_each_batch_is_one_bucket(truth):
    shapes = Counter(shape for shape, _ in truth)
    assert set(shapes) == {(3, 3, 4, 16, 16), (7, 3, 1, 16, 16), (2, 3, 8, 8, 12)}
    assert min(shapes.values()) > 4


def test_order_of_samples_is_that_without_buckets(index, truth):
    plan = bucketed(index).plan
    keys = [row[0] for _, rows in truth for row in rows]
    places = [plan.locate(position) for position in range(len(keys))]
    assert keys == [f"train-{10 * place.shard + place.index:05d}" for place in places]
    for epoch in range(len(keys) // COUNT):
        assert len(set(keys[epoch * COUNT : (epoch + 1) * COUNT])) == COUNT, "each clip once an epoch"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(index, truth, workers):
    assert steps(bucketed(index, workers=workers), 40) == truth


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_agree_at_every_step(index, world_size):
    ranks = [steps(bucketed(index, rank=rank, world=world_size), 30) for rank in range(world_size)]
    keys = []
    for step in zip(*ranks, strict=True):
        assert len({shape for shape, _ in step}) == 1, "ranks that do unequal work wait for each other"
        keys += [rows[i][0] for i in range(len(step[0][1])) for _, rows in step]
    plan = bucketed(index).plan
    places = [plan.locate(position) for position in range(len(keys))]
    assert keys == [f"train-{10 * place.shard + place.index:05d}" for place in places]


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_anywhere_goes_on_alike(index, truth, workers):
    loader = bucketed(index, workers=workers)
    stream, states = iter(loader), []
    for _ in range(20):
        next(stream)
        states.append(json.dumps(loader.state_dict()))
    stream.close()
    for done in range(1, 20, 1 if not workers else 6):
        resumed = bucketed(index, workers=workers)
        resumed.load_state_dict(json.loads(states[done - 1]))
        assert steps(resumed, 4) == truth[done : done + 4]


def test_buckets_are_drawn_by_weight_and_frozen():
    drawn = Counter(bucket_at(BUCKETS, seed=0, position=position) for position in range(9000))
    expected = [4000, 2000, 3000]
    assert all(abs(drawn[bucket] - wanted) < 200 for bucket, wanted in zip(BUCKETS, expected, strict=True))
    order = [BUCKETS.index(bucket_at(BUCKETS, seed=7, position=position)) for position in range(24)]
    assert order == GOLDEN, "a changed draw would make every resumed run train on other shapes than it promises"


GOLDEN = [2, 0, 0, 2, 2, 1, 1, 2, 2, 0, 0, 0, 2, 2, 0, 2, 0, 1, 1, 2, 1, 0, 0, 1]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), st.integers(0, 2**32 - 1), st.integers(0, 2**60))
@settings(max_examples=50, deadline=None)
def test_a_draw_is_one_of_the_buckets(weights, seed, position):
    buckets = [Bucket(frames=1, height=8, width=8, weight=weight, batch_size=1) for weight in weights]
    drawn = bucket_at(buckets, seed=seed, position=position)
    assert any(drawn is bucket for bucket in buckets)


def triangle_filter(size, out):
    """Weights (out, size) of a linear filter that widens with the reduction, so that every pixel has its say."""
    scale = size / out
    centres = (np.arange(out)[:, None] + 0.5) * scale - 0.5
    weights = np.clip(1 - np.abs(np.arange(size)[None] - centres) / scale, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def test_pixels_are_resized_and_cut_as_a_plain_reference(index):
    """16x16 covers 8x12 at 12x12, whose middle 8 rows stay; an image is one frame of its clip."""
    loader, checked = bucketed(index), Counter()
    stream = iter(loader)
    for _ in range(20):
        batch = next(stream)
        for key, video in zip(batch["key"], batch["video"], strict=True):
            frames = decode(mp4(int(key[-5:]) % DISTINCT))  # T H W 3
            clip = video.permute(1, 2, 3, 0).numpy()
            if clip.shape[1:3] == (SIZE, SIZE):
                starts = [s for s in range(FRAMES - len(clip) + 1) if np.array_equal(frames[s : s + len(clip)], clip)]
                assert len(starts) == 1
                checked[len(clip), starts[0]] += 1
                continue
            weights = triangle_filter(SIZE, 12)
            small = np.einsum("yi,tijc,xj->tyxc", weights, frames.astype(float), weights)[:, 2:10]
            assert np.abs(clip - small).max() <= 1.5
            checked[len(clip), 0] += 1
    assert {start for frames, start in checked if frames == 1} == set(range(FRAMES)), "images are frames from anywhere"
    assert {frames for frames, _ in checked} == {1, 4, 8}


def test_what_is_broken_does_not_depend_on_the_bucket(tmp_path):
    """A short clip would do for an image; were it broken as a video only, who met it first would decide the order."""

    def members(key, number):
        return short(key, number) if number % 4 == 1 else sample(key, number)

    def short(key, number):
        video = mp4(number % DISTINCT, frames=4)
        return {"mp4": video, "json": json.dumps(facts(key, video, frames=4)).encode()}

    index = make_split(tmp_path, 30, members=members)
    loaders = [bucketed(index, workers=workers) for workers in (0, 2)]
    first, second = (steps(loader, 20) for loader in loaders)
    assert first == second
    expected = {f"train-{number:05d}" for number in range(1, 30, 4)}
    for loader in loaders:
        assert {(broken.key, broken.kind) for broken in loader.quarantine.met.values()} == {
            (key, "too short") for key in expected
        }
    assert not expected & {row[0] for _, rows in first for row in rows}


def test_largest():
    clip = ClipSettings(frames=2, frame_stride=3, height=16, width=10)
    assert largest(clip, BUCKETS) == ClipSettings(frames=8, frame_stride=3, height=16, width=16)
    assert largest(clip, ()) == clip


@pytest.mark.parametrize(
    ("change", "key"), [({"frames": 9}, "frames"), ({"height": 24}, "height"), ({"width": 17}, "width")]
)
def test_buckets_larger_than_what_is_stored_are_refused(index, change, key):
    root, clip = str(index.folder).removesuffix("/train"), {"frames": 4, "frame_stride": 1, "height": 16, "width": 16}
    one = {"frames": 4, "height": 16, "width": 16, "weight": 1, "batch_size": 1}
    checked_index("tiny", root, "train", clip=clip, is_optional=False, buckets=buckets_of([one]))
    with pytest.raises(ConfigError, match=rf"data\.buckets\[1\]\.{key}"):
        checked_index("tiny", root, "train", clip=clip, is_optional=False, buckets=buckets_of([one, one | change]))


WRONG = {
    "a list of buckets without a bucket": [],
    r"data\.buckets\[0\].*frame\b.*did you mean 'frames'": [{"frame": 3}],
    r"needs its weight.*data\.buckets\[0\]": [{"frames": 1, "height": 8, "width": 8, "batch_size": 1}],
    r"data\.buckets\[0\]\.frames.*an integer >= 1": [
        {"frames": 0, "height": 8, "width": 8, "weight": 1, "batch_size": 1}
    ],
    r"data\.buckets\[0\]\.weight.*> 0": [{"frames": 1, "height": 8, "width": 8, "weight": 0, "batch_size": 1}],
    r"data\.buckets\[0\]\.weight.*inf": [
        {"frames": 1, "height": 8, "width": 8, "weight": float("inf"), "batch_size": 1}
    ],
    r"data\.buckets\[0\]\.batch_size.*True": [{"frames": 1, "height": 8, "width": 8, "weight": 1, "batch_size": True}],
    r"group of settings.*data\.buckets\[0\]": ["16x256x256"],
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_buckets_are_named(words):
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        buckets_of(WRONG[words])
