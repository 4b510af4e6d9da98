"""Shards behind a network that fails: the same batches as from the local disk, or one message; never other data unsaid."""

import importlib.util
import json
import logging
import os
import shutil
import threading
import time
from collections import Counter
from multiprocessing import forkserver

import pytest
from clip_factory import make_loader, make_split, shard_cache, take

from benchmarks.flaky_storage import FlakyStorage, now_and_then
from data import remote
from data.prefetch import Prefetcher
from data.quarantine import Broken, Quarantine
from data.remote import Patience, ShardLost, StorageFails, persistently
from data.shards import read_index
from vdm.errors import ConfigError, DataError

SHARDS, PER_SHARD = 6, 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("far") / "tiny"
    make_split(folder, SHARDS * PER_SHARD, per_shard=PER_SHARD)
    return folder


@pytest.fixture(scope="module")
def truth(root):
    return take(make_loader(read_index(root / "train")), 14)


def far_loader(url, cache, *, max_lost=0.0, **how):
    index = read_index(f"{url}/tiny/train", patience=cache.patience, max_lost=max_lost)
    loader = make_loader(index, **how)
    shards = loader.reader.shards
    shards.cache, shards.patience, shards.max_lost = cache, cache.patience, max_lost
    return loader


def of(kind, *, every=2, only=".tar"):
    """The same fault at every n-th request for a file."""
    return lambda path, nth: kind if path.endswith(only) and nth % every == 0 else None


@pytest.mark.parametrize("kind", ["503", "reset", "truncated", "wrong", "slow", "hangs", "gone"])
def test_faults_that_pass_change_nothing(root, truth, tmp_path, kind):
    cache = shard_cache(tmp_path / "cache", timeout=0.4 if kind == "hangs" else 20.0)
    with FlakyStorage(root.parent, faults=of(kind), delay=0.02) as storage:
        assert take(far_loader(storage.url, cache), 14) == truth
        assert storage.failed[kind] >= SHARDS
    assert len(list((tmp_path / "cache").glob("*.tar"))) == SHARDS
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_everything_at_once_with_workers_and_a_look_ahead(root, truth, tmp_path):
    """Also the index and the listing fail; each shard is fetched once for all processes."""
    kinds = ("503", "reset", "truncated", "wrong", "slow")
    cache = shard_cache(tmp_path / "cache", retries=12, ahead=30)
    with FlakyStorage(root.parent, faults=now_and_then(0.4, kinds, seed=3)) as storage:
        assert take(far_loader(storage.url, cache, workers=2), 14) == truth
        assert len(storage.failed) >= 3
    with FlakyStorage(root.parent) as storage:
        whole = shard_cache(tmp_path / "other", ahead=30)
        assert take(far_loader(storage.url, whole, workers=2), 14) == truth
        fetched = {path: count for path, count in storage.asked.items() if path.endswith(".tar")}
        assert fetched == {f"/tiny/train/shard-{n:06d}.tar": 1 for n in range(SHARDS)}


def test_resume_and_two_ranks_are_exact(root, truth, tmp_path):
    faults = now_and_then(0.3, ("503", "truncated", "reset"), seed=1)
    with FlakyStorage(root.parent, faults=faults) as storage:
        cache = shard_cache(tmp_path / "cache", retries=8)
        first = far_loader(storage.url, cache)
        stream = iter(first)
        for _ in range(5):
            next(stream)
        stream.close()
        again = far_loader(storage.url, shard_cache(tmp_path / "another machine", retries=8), workers=1)
        again.load_state_dict(first.state_dict())
        assert take(again, 9) == truth[25:]
        ranks = [take(far_loader(storage.url, cache, rank=r, world=2), 7) for r in (0, 1)]
    assert [row for pair in zip(*ranks, strict=True) for row in pair] == truth


@pytest.mark.parametrize("kind", ["gone", "wrong", "shorter"])
def test_a_lost_shard(root, truth, tmp_path, caplog, kind):
    """For ever: up to the share that may be broken others take its place, and it is said once; above it the run stops."""
    name = "shard-000002.tar"
    copy = tmp_path / "copy"
    shutil.copytree(root, copy / "tiny")
    if kind == "shorter":
        with open(copy / "tiny" / "train" / name, "r+b") as file:
            file.truncate(1000)
    with FlakyStorage(copy, faults=of(kind, every=1, only=name)) as storage:
        cache = shard_cache(tmp_path / "cache", retries=1)
        with pytest.raises(DataError, match="data.max_broken"):
            take(far_loader(storage.url, cache), 14)
        path = tmp_path / "quarantine.jsonl"
        loader = far_loader(storage.url, cache, max_lost=1 / SHARDS, max_broken=1 / SHARDS, path=path)
        rows = take(loader, 14)
    lost = [f"train-{number:05d}" for number in range(20, 30)]
    assert not {row[0] for row in rows} & set(lost)
    kept = [(ours, theirs) for ours, theirs in zip(rows, truth, strict=True) if theirs[0] not in lost]
    assert all(ours == theirs for ours, theirs in kept), "the places of all others stay"
    said = [record for record in caplog.records if f"going on without {name}" in record.getMessage()]
    assert len(said) == 1
    assert loader.quarantine.lost[name] > 1
    assert not path.exists(), "a run that goes on asks for it again"


def test_a_store_that_is_down_stops_the_run_and_loses_nothing(root, truth, tmp_path):
    faults = {"kind": None}
    with FlakyStorage(root.parent, faults=lambda path, nth: faults["kind"]) as storage:
        loader = far_loader(storage.url, shard_cache(tmp_path / "cache", retries=1), max_lost=1.0, max_broken=1.0)
        faults["kind"] = "503"
        with pytest.raises(StorageFails, match="(?s)cannot fetch a shard.*503.*it resumes"):
            take(loader, 3)
        assert not loader.quarantine.lost
        assert not loader.quarantine.met
        faults["kind"] = None
        assert take(far_loader(storage.url, shard_cache(tmp_path / "cache")), 14) == truth


def test_a_start_without_a_shard(root, tmp_path):
    """The same share decides at the start, so that a run which goes on without a shard can also be continued."""
    with FlakyStorage(root.parent) as storage:
        listed = storage.url + "/tiny/train"
        hidden = root / "train" / "shard-000004.tar"
        hidden.rename(tmp_path / "hidden")
        try:
            with pytest.raises(DataError, match="shard-000004.tar is missing"):
                read_index(listed, max_lost=0.1)
            assert read_index(listed, max_lost=0.17).num_samples == SHARDS * PER_SHARD
        finally:
            (tmp_path / "hidden").rename(hidden)


def test_the_cache_is_bounded_and_the_newest_stay(root, truth, tmp_path):
    index = read_index(root / "train")
    size = max(info.bytes for info in index.shards)
    with FlakyStorage(root.parent) as storage:
        cache = shard_cache(tmp_path, 2.5 * size / 1e9)
        assert take(far_loader(storage.url, cache), 14) == truth
        far = read_index(f"{storage.url}/tiny/train")
        assert sum(path.stat().st_size for path in tmp_path.glob("*.tar")) <= 2.5 * size
        for number in (0, 1, 0, 2):
            cache.path(far.path(number), far.shards[number])
            time.sleep(0.01)
        assert {path.name for path in tmp_path.glob("*.tar")} == {f"{far.shards[n].sha256[:32]}.tar" for n in (0, 2)}
        with pytest.raises(ConfigError, match="data.cache.gigabytes"):
            shard_cache(tmp_path / "small", 1e-9).path(far.path(0), far.shards[0])


def test_what_a_kill_or_a_rotting_disk_leaves_is_not_read(root, truth, tmp_path):
    with FlakyStorage(root.parent) as storage:
        far = read_index(f"{storage.url}/tiny/train")
        name = far.shards[0].sha256[:32]
        (tmp_path / f"{name}.99-1.partial").write_bytes(b"half of it")  # of a process that was killed
        (tmp_path / f"{name}.tar").write_bytes(b"too short")
        rotten = tmp_path / f"{far.shards[1].sha256[:32]}.tar"
        rotten.write_bytes(os.urandom(far.shards[1].bytes))
        assert take(far_loader(storage.url, shard_cache(tmp_path)), 14) == truth
        assert not list(tmp_path.glob("*.partial"))


def test_a_folder_that_cannot_be_written_is_said(root, tmp_path):
    (tmp_path / "file").write_text("")
    with FlakyStorage(root.parent) as storage, pytest.raises(DataError, match="data.cache.folder"):
        take(far_loader(storage.url, shard_cache(tmp_path / "file" / "cache")), 1)


def test_looking_ahead_fetches_what_comes_next_and_no_more(root, tmp_path):
    with FlakyStorage(root.parent) as storage:
        loader = far_loader(storage.url, shard_cache(tmp_path, ahead=6), lanes=1)
        shards = [loader.plan.locate(position).shard for position in range(SHARDS * PER_SHARD)]
        prefetcher = Prefetcher(index=loader.reader.shards.index, cache=loader.reader.shards.cache, plan=loader.plan,
                                rank=0, world_size=2, consumed=lambda: 0)  # fmt: skip
        prefetcher.start()
        wanted = {f"/tiny/train/shard-{shards[position]:06d}.tar" for position in range(0, 12, 2)}
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and {path for path in storage.asked if path.endswith(".tar")} != wanted:
            time.sleep(0.02)
        time.sleep(0.3)
        prefetcher.stop()
        assert {path for path in storage.asked if path.endswith(".tar")} == wanted


def test_patience_waits_longer_each_time(monkeypatch):
    slept, failures = [], iter([OSError("a"), KeyError("b"), TimeoutError("c"), None])

    def action():
        error = next(failures)
        if error is not None:
            raise error
        return "done"

    monkeypatch.setattr(remote.time, "sleep", slept.append)
    patience = Patience(retries=3, pause=1.0, timeout=5.0)
    assert persistently(action, patience, "x") == "done"
    assert all(0.5 * 2**n <= pause <= 2**n for n, pause in enumerate(slept))
    assert len(slept) == 3
    assert all(pause <= 30 for pause in Patience(retries=12, pause=1.0, timeout=1.0).pauses())
    assert len({*Patience(retries=12, pause=1.0, timeout=1.0).pauses()}) > 6, "with jitter"


def test_patience_ends(monkeypatch):
    tried = Counter()

    def refuse(error):
        tried[type(error)] += 1
        raise error

    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    patience = Patience(retries=2, pause=1.0, timeout=5.0)
    for error, times in ((OSError("x"), 3), (ImportError("x"), 1), (ValueError("x"), 1), (ShardLost("x"), 1)):
        with pytest.raises(type(error)):
            persistently(lambda error=error: refuse(error), patience, "x")
        assert tried[type(error)] == times
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        persistently(lambda: threading.Event().wait(5), Patience(retries=1, pause=0.01, timeout=0.1), "x")
    assert time.monotonic() - began < 3


def test_a_local_shard_that_is_away_for_a_moment(root, truth, tmp_path):
    """As where a network drive is mounted anew."""
    index = read_index(root / "train")
    loader = make_loader(index)
    loader.reader.shards.patience = Patience(retries=5, pause=0.1, timeout=5.0)
    shard, away = root / "train" / "shard-000003.tar", tmp_path / "away"
    shard.rename(away)

    class Back(logging.Handler):
        def emit(self, record):
            if away.exists():
                away.rename(shard)

    handler = Back()
    remote.log.addHandler(handler)
    try:
        assert take(loader, 14) == truth
    finally:
        remote.log.removeHandler(handler)
    assert shard.exists()
    assert not loader.quarantine.lost


needs_s3 = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("s3fs", "moto", "flask", "flask_cors")),
    reason="needs the extra [s3] and moto with its server, as in [dev]",
)


@pytest.fixture(scope="module")
def bucket(root):
    """A real server that speaks S3, with the shards in it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anything", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="store")
        for path in (root / "train").iterdir():
            client.put_object(Bucket="store", Key=f"tiny/train/{path.name}", Body=path.read_bytes())
        yield f"{host}:{port}"
    server.stop()


def at(url, monkeypatch):
    """As in a process that begins with this setting: nothing is left that was made with another."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    s3fs.S3FileSystem.clear_instance_cache()
    forkserver._forkserver._stop()


@needs_s3
@pytest.mark.parametrize("workers", [0, 1])
def test_s3_with_faults_in_front_of_it(bucket, truth, tmp_path, monkeypatch, workers):
    faults = now_and_then(0.3, ("503", "reset", "truncated", "wrong"), seed=5)
    with FlakyStorage(bucket, faults=faults) as storage:
        at(storage.url, monkeypatch)
        cache = shard_cache(tmp_path, retries=8, ahead=20)
        assert take(far_loader("s3://store", cache, workers=workers), 14) == truth
        assert sum(storage.failed.values()) >= 3


@needs_s3
def test_s3_without_a_shard_and_without_a_bucket(bucket, tmp_path, monkeypatch):
    at(f"http://{bucket}", monkeypatch)
    with pytest.raises(DataError, match="there is no shard folder"):
        read_index("s3://store/elsewhere/train")
    with FlakyStorage(bucket, faults=of("gone", every=1, only="shard-000001.tar")) as storage:
        at(storage.url, monkeypatch)
        with pytest.raises(DataError, match="(?s)a shard is gone.*shard-000001.tar"):
            take(far_loader("s3://store", shard_cache(tmp_path, retries=1)), 14)


def test_lost_samples_are_counted_apart(tmp_path):
    path = tmp_path / "q.jsonl"
    quarantine = Quarantine(path=path, fingerprint="f", max_broken=0.5)
    quarantine.add([Broken("a.tar", n, None, "lost shard", "gone") for n in range(30)])
    quarantine.add([Broken("a.tar", 40, "k", "damaged video")])
    quarantine.check(31)
    assert quarantine.lost == {"a.tar": 30}
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [40]
