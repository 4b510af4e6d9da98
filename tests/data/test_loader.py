"""What training gets: the same clips in the same order whatever reads them, and a cursor that loses and repeats nothing."""

import ctypes
import io
import json
import os
import signal
import time
from collections import Counter
from functools import partial

import numpy as np
import pytest
from clip_factory import DISTINCT, FRAMES, SIZE, facts, make_loader, make_split, mp4, sample, take

from data.decode import decode_clip
from data.loader import ENDLESS
from data.samples import resize_and_crop
from vdm.errors import ConfigError, DataError, RunError
from vdm.video import decode

COUNT = 43  # in shards of 10; 43 is prime, so nothing divides an epoch


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return make_split(tmp_path_factory.mktemp("tiny"), COUNT)


@pytest.fixture(scope="module")
def truth(index):
    return take(make_loader(index), 20)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_order_does_not_depend_on_workers(index, truth, workers):
    assert take(make_loader(index, workers=workers), 20) == truth


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 5])
def test_global_order_does_not_depend_on_ranks(index, truth, world_size, batch):
    rows = [take(make_loader(index, rank=rank, world=world_size, batch=batch), 99 // batch // world_size)
            for rank in range(world_size)]  # fmt: skip
    merged = [row for step in zip(*rows, strict=True) for row in step]
    assert merged == truth[: len(merged)]
    assert sorted(row[0] for row in merged[:COUNT]) == [f"train-{number:05d}" for number in range(COUNT)]


@pytest.mark.parametrize("consumed", [1, 8, 9, 12])
@pytest.mark.parametrize(("world_size", "batch", "workers"), [(1, 5, 0), (1, 3, 2), (2, 5, 0), (3, 2, 0)])
def test_resume_with_another_shape_loses_and_repeats_nothing(index, truth, consumed, world_size, batch, workers):
    first = make_loader(index, workers=workers)
    stream = iter(first)
    for _ in range(consumed):
        next(stream)
    state = json.loads(json.dumps(first.state_dict()))
    stream.close()
    rows = []
    for rank in range(world_size):
        loader = make_loader(index, rank=rank, world=world_size, batch=batch, workers=workers)
        iter(loader)  # Lightning does so before it restores the state
        loader.load_state_dict(state)
        rows.append(take(loader, 36 // batch // world_size))
    merged = [row for step in zip(*rows, strict=True) for row in step]
    assert merged == truth[consumed * 5 : consumed * 5 + len(merged)]


def test_state_counts_what_was_handed_out_and_is_small(index):
    loader = make_loader(index, workers=2, world=3, rank=1)
    stream = iter(loader)
    next(stream)
    time.sleep(0.2)  # more is read ahead now
    assert loader.state_dict()["consumed"] == 15
    assert len(json.dumps(loader.state_dict())) < 4096
    assert len(loader) == ENDLESS
    assert loader.last_wait > 0


def test_state_of_other_data_is_refused_or_reset(index, truth, tmp_path, caplog):
    state = make_loader(index).state_dict() | {"consumed": 10}
    other = make_split(tmp_path, 12)
    with pytest.raises(DataError, match="(?s)fingerprint was .*resume_with_other_data"):
        make_loader(other).load_state_dict(state)
    for change in ({"seed": 1}, {"window": 5}, {"lanes": 2}):
        with pytest.raises(DataError, match="another order"):
            make_loader(index, **change).load_state_dict(state)
    loader = make_loader(index, restart=True)
    loader.load_state_dict(state | {"fingerprint": "other"})
    assert "beginning of epoch 0" in caplog.text
    assert take(loader, 2) == truth[:10]


def test_batches_are_what_the_stage_expects(index):
    batch = next(iter(make_loader(index, stride=2)))
    assert batch["video"].shape == (5, 3, 4, SIZE, SIZE)
    assert str(batch["video"].dtype) == "torch.uint8"
    assert batch["fps"].tolist() == [4.0] * 5
    assert set(batch) == {"video", "caption", "fps", "key"}


def test_windows_and_captions_vary_and_are_true(index):
    rows, starts, captions = [], Counter(), Counter()
    loader = make_loader(index, batch=COUNT)
    stream = iter(loader)
    for _ in range(4):
        batch = next(stream)
        for key, caption, video in zip(batch["key"], batch["caption"], batch["video"], strict=True):
            frames = decode(mp4(int(key[-5:]) % DISTINCT))
            clip = video.permute(1, 2, 3, 0).numpy()
            [start] = [s for s in range(FRAMES - 3) if np.array_equal(frames[s : s + 4], clip)]
            starts[start] += 1
            captions[caption.split()[0]] += 1
            rows.append((key, start, caption))
    assert set(starts) == set(range(5))
    assert min(starts.values()) > 15, "172 draws over 5 starts"
    assert min(captions["first"], captions["second"]) > 60
    assert len(set(rows)) > 100, "epochs differ"


def test_extras(tmp_path):
    def members(key, number):
        arrays = io.BytesIO()
        frames = np.arange(FRAMES)[:, None, None].repeat(SIZE, 1).repeat(SIZE, 2)
        flow = np.stack([frames[:-1]] * 2, axis=-1)
        rare = {} if number % 2 else {"rare": np.ones(2)}
        np.savez(arrays, order=frames, matrix=np.eye(3), flow=flow, whole=np.stack([frames] * 2), **rare)
        extras = {"plan": [["circle", "grow", None, [0, 3]]] * (number % 3), "unread": 1}
        return sample(key, number, extras=extras) | {"npz": arrays.getvalue()}

    index = make_split(tmp_path, 12, members=members)
    batch = next(iter(make_loader(index, extras=["plan", "order", "matrix"], stride=2)))
    extras = batch["extras"]
    assert set(extras) == {"plan", "order", "matrix", "window"}
    assert isinstance(extras["plan"], list), "of varying length: one entry a clip"
    assert extras["matrix"].shape == (5, 3, 3)
    for (start, stride), order in zip(extras["window"].tolist(), extras["order"], strict=True):
        assert stride == 2
        assert order[:, 0, 0].tolist() == [start, start + 2, start + 4, start + 6]
    with pytest.raises(ConfigError, match="arrays of pixels are not resized"):
        next(iter(make_loader(index, extras=["order"], size=8)))
    with pytest.raises(ConfigError, match="cannot be joined"):
        next(iter(make_loader(index, extras=["flow"], stride=2)))
    batch = next(iter(make_loader(index, extras=["flow", "whole", "matrix", "rare"])))
    assert batch["extras"]["flow"].shape == (5, 3, SIZE, SIZE, 2)
    assert batch["extras"]["whole"].shape == (5, 2, 4, SIZE, SIZE)
    for (start, _), flow, whole in zip(*(batch["extras"][name] for name in ("window", "flow", "whole")), strict=True):
        assert flow[:, 0, 0, 0].tolist() == list(range(start, start + 3))
        assert whole[1, :, 0, 0].tolist() == list(range(start, start + 4))
    assert [value is None for value in batch["extras"]["rare"]] == [int(key[-5:]) % 2 == 1 for key in batch["key"]]


def test_larger_clips_are_resized_and_cut(index):
    assert next(iter(make_loader(index, size=8)))["video"].shape == (5, 3, 4, 8, 8)
    wide = np.zeros((2, 8, 24, 3), np.uint8)
    wide[:, :, 8:16] = 200
    assert (resize_and_crop(wide, 8, 8) == 200).all(), "the middle third is left"
    assert resize_and_crop(wide, 4, 4).mean() > 185
    assert resize_and_crop(np.zeros((1, 9, 31, 3), np.uint8), 7, 5).shape == (1, 7, 5, 3)


def slow(video, indices):
    if video == mp4(1):
        time.sleep(60)
    return decode_clip(video, indices)


def slow_with_the_lock(video, indices):
    if video == mp4(1):
        ctypes.PyDLL(None).sleep(60)  # unlike CDLL, keeps every other thread of the process waiting
    return decode_clip(video, indices)


def deadly(video, indices):
    if video == mp4(1):
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_clip(video, indices)


def test_deaths_hangs_and_threads_that_keep_the_lock(tmp_path, caplog):
    """Whatever a decoder does, the samples it does it on are named, and the others come in the order that was planned."""

    def members(key, number):
        return sample(key, 1 if number in (11, 17) else 6 * number)

    index = make_split(tmp_path / "data", 40, members=members)
    good = make_loader(index, decoder=refuse)
    expected = take(good, 12)
    bad = {"train-00011", "train-00017"}
    assert {broken.key for broken in good.quarantine.met.values()} == bad
    for decoder, workers, timeout in ((slow, 0, 0.3), (slow, 2, 0.3), (slow_with_the_lock, 2, 0.3), (deadly, 2, 20)):
        path = tmp_path / f"{decoder.__name__}-{workers}.jsonl"
        loader = make_loader(index, decoder=decoder, workers=workers, timeout=timeout, path=path)
        begun = time.monotonic()
        assert take(loader, 12) == expected, decoder.__name__
        assert time.monotonic() - begun < 60, "it does not wait for them for ever"
        assert {json.loads(line)["key"] for line in path.read_text().splitlines()} == bad
        kind = {json.loads(line)["kind"] for line in path.read_text().splitlines()}
        assert kind == {"decoder killed its process" if decoder is deadly else "decoder hung"}
        marker = tmp_path / f"{decoder.__name__}-{workers}.tried"
        again = make_loader(index, decoder=partial(noted, str(marker)), workers=workers, path=path)
        assert take(again, 12) == expected
        assert not marker.exists(), "known broken samples are not tried again"
    assert "it is tried once more" in caplog.text


def refuse(video, indices):
    if video == mp4(1):
        raise ValueError("no")
    return decode_clip(video, indices)


def noted(marker, video, indices):
    """A decoder that would read anything, and tells when it was asked for what is known to be broken."""
    if video == mp4(1):
        open(marker, "w").close()
        video = mp4(6)
    return decode_clip(video, indices)


def once_killed(marker, video, indices):
    if video == mp4(1) and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_clip(video, indices)


def test_a_worker_killed_by_accident_changes_nothing(index, truth, tmp_path):
    loader = make_loader(index, decoder=partial(once_killed, str(tmp_path / "marker")), workers=2)
    assert take(loader, 20) == truth
    assert not loader.quarantine.met


class DiesWhenUnpacked:
    def __reduce__(self):
        return os._exit, (3,)


def test_workers_that_cannot_start_end_the_run(index):
    with pytest.raises(RunError, match="exit code 3"):
        take(make_loader(index, decoder=DiesWhenUnpacked(), workers=1), 1)


def wrong_setting(video, indices):
    raise ConfigError("unknown decoder", key="data.backend")


@pytest.mark.parametrize("workers", [0, 1])
def test_user_errors_come_through(index, workers):
    with pytest.raises(ConfigError, match="data.backend"):
        take(make_loader(index, decoder=wrong_setting, workers=workers), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_shard_is_not_a_broken_sample(tmp_path, workers):
    index = make_split(tmp_path, 40)
    (tmp_path / "train" / "shard-000002.tar").unlink()
    loader = make_loader(index, workers=workers)
    with pytest.raises(DataError, match="cannot open a shard"):
        take(loader, 8)
    assert not loader.quarantine.met


def test_facts_are_those_of_prepare():
    assert facts("a", b"x")["crc32"] == 0x8CDC1683
