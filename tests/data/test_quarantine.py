"""Broken samples: none becomes training data, each is named once, and too many end the run with a reason."""

import io
import json
import multiprocessing
import zlib

import av
import numpy as np
import pytest
from clip_factory import DISTINCT, FRAMES, SIZE, facts, make_loader, make_split, mp4, sample, seen, take

from data.quarantine import MINIMUM, Broken, Quarantine
from vdm.errors import DataError
from vdm.video import decode, encode_mp4


def with_json(key, number, content):
    return {"mp4": mp4(number % DISTINCT), "json": content}


def with_video(key, video, **lies):
    return {"mp4": video, "json": json.dumps(facts(key, video, **lies)).encode()}


def no_frames():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv444p"
        container.start_encoding()
    return buffer.getvalue()


def only_sound():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def flipped(video):
    """One changed byte in the pixels, with the checksum of the true clip beside it."""
    at = video.index(b"mdat") + len(video) // 2
    return video[:at] + bytes([video[at] ^ 0x40]) + video[at + 1 :]


def without(mapping, name):
    return {key: value for key, value in mapping.items() if key != name}


TRUE = mp4(0)
NOISE = np.random.default_rng(5).bytes(3000)
KINDS = {
    "truncated video": lambda key, n: with_video(key, TRUE[: len(TRUE) // 2]),
    "truncated by little": lambda key, n: {"mp4": TRUE[:-40], "json": json.dumps(facts(key, TRUE)).encode()},
    "empty video": lambda key, n: with_video(key, b""),
    "video of NUL bytes": lambda key, n: with_video(key, bytes(len(TRUE))),
    "NUL bytes within": lambda key, n: with_video(key, TRUE[:200] + bytes(400) + TRUE[600:]),
    "video of noise": lambda key, n: with_video(key, NOISE),
    "noise after a true header": lambda key, n: with_video(key, TRUE[:48] + NOISE),
    "flipped bits": lambda key, n: {"mp4": flipped(TRUE), "json": json.dumps(facts(key, TRUE)).encode()},
    "zero frames": lambda key, n: with_video(key, no_frames()),
    "only sound": lambda key, n: with_video(key, only_sound()),
    "fewer frames than told": lambda key, n: with_video(key, mp4(0, 3)),
    "other size than told": lambda key, n: with_video(key, mp4(0, FRAMES, 32)),
    "told to be huge": lambda key, n: with_video(key, TRUE, height=10**9),
    "told to be too short": lambda key, n: with_video(key, TRUE, frames=2),
    "told to be too small": lambda key, n: with_video(key, TRUE, width=8),
    "text instead of numbers": lambda key, n: with_video(key, TRUE, frames="many"),
    "no time": lambda key, n: with_video(key, TRUE, fps=0),
    "endless time": lambda key, n: with_json(key, n, json.dumps(facts(key, TRUE, fps=float("inf"))).encode()),
    "no video": lambda key, n: without(sample(key, n), "mp4"),
    "no json": lambda key, n: without(sample(key, n), "json"),
    "neither": lambda key, n: {"txt": b"hello"},
    "half a json": lambda key, n: with_json(key, n, sample(key, n)["json"][:80]),
    "deep json": lambda key, n: with_json(key, n, b"[" * 100_000),
    "json is a list": lambda key, n: with_json(key, n, b"[1, 2]"),
    "bad UTF-8": lambda key, n: with_json(key, n, sample(key, n)["json"].replace(b"first", b"\xff\xfe")),
    "half a character": lambda key, n: with_video(key, TRUE, captions=["\ud83d"]),
    "json of another": lambda key, n: with_json(key, n, sample("train-99999", n)["json"]),
    "no caption": lambda key, n: with_json(key, n, json.dumps(without(facts(key, TRUE), "captions")).encode()),
    "empty caption": lambda key, n: with_video(key, TRUE, captions=["fine", "  "]),
    "no captions": lambda key, n: with_video(key, TRUE, captions=[]),
    "caption is a number": lambda key, n: with_video(key, TRUE, captions=[3]),
    "NUL in the caption": lambda key, n: with_video(key, TRUE, captions=["a\0b"]),
    "a picture": lambda key, n: with_video(key, encode_mp4(np.zeros((1, SIZE, SIZE, 3), np.uint8), 8.0)),
}
PER_SHARD, SHARDS, DAMAGED = 40, 50, (3, 17)


def is_broken(number):
    return number // PER_SHARD in DAMAGED or (number % 2 == 0 and number // PER_SHARD not in (5, 6))


def mixed(key, number):
    if number % 2 or number // PER_SHARD in (5, 6):
        return sample(key, number)
    return list(KINDS.values())[number // 2 % len(KINDS)](key, number)


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory):
    """2,000 samples, half of them broken: by every kind above, and by garbage within two shards."""
    root = tmp_path_factory.mktemp("corrupted")
    index = make_split(root, PER_SHARD * SHARDS, per_shard=PER_SHARD, members=mixed)
    for shard in DAMAGED:
        path = root / "train" / index.shards[shard].file
        content = bytearray(path.read_bytes())
        header = content.index(b"train-", len(content) // 2)
        content[header : header + 4000] = np.random.default_rng(shard).bytes(4000)
        path.write_bytes(content)
    return index


@pytest.mark.parametrize("workers", [0, 2])
def test_a_thousand_corrupted_samples(corrupted, workers, tmp_path):
    broken = [number for number in range(PER_SHARD * SHARDS) if is_broken(number)]
    assert len(broken) == 1000
    assert len(KINDS) >= 12
    path = tmp_path / "quarantine.jsonl"
    loader = make_loader(corrupted, workers=workers, batch=50, frames=FRAMES, path=path, window=4096)
    pixels = [zlib.crc32(decode(mp4(number))) for number in range(DISTINCT)]
    stream, met = iter(loader), set()
    for _ in range(PER_SHARD * SHARDS // 50):  # one epoch
        batch = next(stream)
        assert len(batch["key"]) == 50
        for key, caption, _, checksum in seen(batch):
            number = int(key[-5:])
            assert not is_broken(number)
            assert caption.endswith(key)
            assert checksum == pixels[number % DISTINCT]
            met.add(number)
    stream.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    places = [(line["shard"], line["index"]) for line in lines]
    assert len(lines) == len(set(places)) == len(loader.quarantine.met) == 1000
    assert {int(shard[6:12]) * PER_SHARD + position for shard, position in places} == set(broken)
    assert {line["key"] for line in lines if int(line["shard"][6:12]) not in DAMAGED} == {
        f"train-{number:05d}" for number in broken if number // PER_SHARD not in DAMAGED
    }
    assert met == set(range(PER_SHARD * SHARDS)) - set(broken), "every good sample of the epoch was seen"
    assert all(line["kind"] and len(line["detail"]) < 400 for line in lines)


def test_substitutes_do_not_depend_on_workers(corrupted):
    rows = [take(make_loader(corrupted, workers=workers, batch=7), 15) for workers in (0, 1, 2)]
    assert rows[0] == rows[1] == rows[2]


def test_other_positions_keep_their_samples(tmp_path):
    """A broken sample costs its own place in the order and no other."""
    whole = make_split(tmp_path / "whole", 40)
    holed = make_split(tmp_path / "holed", 40, members=lambda key, n: sample(key, n) if n % 9 else {"mp4": b""})
    expected, found = take(make_loader(whole), 16), take(make_loader(holed), 16)
    for before, after in zip(expected, found, strict=True):
        assert (before == after) == bool(int(before[0][-5:]) % 9)


def test_too_many_broken_samples_end_the_run_with_a_table(corrupted, tmp_path):
    loader = make_loader(corrupted, batch=50, max_broken=0.01, path=tmp_path / "q.jsonl")
    with pytest.raises(DataError) as caught:
        take(loader, 40)
    message = str(caught.value)
    assert "samples are broken" in message
    assert "data.max_broken" in message
    assert "invalid json" in message
    assert "in shard-0000" in message
    assert str(tmp_path / "q.jsonl") in message
    assert loader.consumed == 0, "said at once"


def test_nothing_but_broken_samples(tmp_path):
    index = make_split(tmp_path, 8, members=lambda key, n: {"mp4": b"", "json": b""})
    with pytest.raises(DataError, match="(?s)100 broken samples in a row.*train-0000.*empty member"):
        take(make_loader(index), 1)


def broken(number, kind="bad"):
    return Broken("shard-000000.tar", number, f"k{number}", kind, "why")


def test_rate_counts_distinct_samples_from_a_minimum_on():
    quarantine = Quarantine(path=None, fingerprint="f", max_broken=0.1)
    quarantine.add([broken(0)] * 50)
    quarantine.check(1)
    quarantine.add([broken(number) for number in range(MINIMUM)])
    assert len(quarantine.met) == MINIMUM
    quarantine.check(10 * MINIMUM)
    with pytest.raises(DataError, match="10 of 99"):
        quarantine.check(10 * MINIMUM - 1)


def test_table_shows_kinds_by_frequency():
    quarantine = Quarantine(path=None, fingerprint="f", max_broken=1.0)
    quarantine.add([broken(0, "rare"), broken(1, "often"), broken(2, "often")])
    first, second = quarantine.table().splitlines()
    assert first.split() == ["2", "often", "k1", "in", "shard-000000.tar:", "why"]
    assert second.split()[:2] == ["1", "rare"]


def test_file_survives_restarts_kills_and_other_data(tmp_path):
    path = tmp_path / "q.jsonl"
    Quarantine(path=path, fingerprint="a", max_broken=1.0).add([broken(1), broken(2)])
    with open(path, "a") as file:
        file.write('{"shard": "half a li')
    again = Quarantine(path=path, fingerprint="a", max_broken=1.0)
    assert set(again.known) == {("shard-000000.tar", 1), ("shard-000000.tar", 2)}
    assert not again.met
    again.add([broken(2), broken(3)])
    assert set(again.met) == {("shard-000000.tar", 2), ("shard-000000.tar", 3)}
    assert not Quarantine(path=path, fingerprint="b", max_broken=1.0).known, "of other data"
    assert len(Quarantine(path=path, fingerprint="a", max_broken=1.0).known) == 3
    assert path.read_text().count('"index": 2') == 1


def add_all(path):
    quarantine = Quarantine(path=path, fingerprint="a", max_broken=1.0)
    for number in range(30):
        quarantine.add([broken(number)])


def test_ranks_share_one_file(tmp_path):
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=add_all, args=(tmp_path / "q.jsonl",)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    lines = (tmp_path / "q.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["index"] for line in lines) == list(range(30))


def test_ranks_of_a_corrupted_epoch_name_each_sample_once(corrupted, tmp_path):
    path = tmp_path / "q.jsonl"
    for rank in range(2):
        take(make_loader(corrupted, batch=100, frames=FRAMES, rank=rank, world=2, path=path), 10)
    assert len(path.read_text().splitlines()) == 1000
