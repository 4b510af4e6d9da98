"""Small shards with real mp4s for the tests of loading. Few distinct clips are encoded; samples share their bytes."""

import json
import zlib
from functools import cache, partial

import numpy as np

from data.batches import BatchReader
from data.loader import VideoLoader
from data.plain_mp4 import decode_stored
from data.plan import ShardPlan
from data.quarantine import Quarantine
from data.reader import ShardReader
from data.samples import ClipReader, ClipSettings
from data.shard_cache import ShardCache
from data.shards import ShardWriter, shard_name, write_index
from vdm.video import encode_mp4

SIZE, FRAMES, DISTINCT = 16, 8, 6


@cache
def mp4(number, frames=FRAMES, size=SIZE):
    """A clip whose every frame is another pattern, so that a wrong frame or a wrong clip is seen."""
    blocks = np.random.default_rng(number).integers(0, 256, (frames, 4, 4, 3), dtype=np.uint8)
    pixels = blocks.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return encode_mp4(pixels, 8.0, gop=4, crf=0, pixel_format="yuv444p")


def facts(key, video, **other):
    found = {"key": key, "captions": [f"first of {key}", f"second of {key}"], "fps": 8.0, "frames": FRAMES,
             "height": SIZE, "width": SIZE, "crc32": zlib.crc32(video), "source": {}, "extras": {}}  # fmt: skip
    return found | other


def sample(key, number, **other):
    video = mp4(number % DISTINCT)
    return {"mp4": video, "json": json.dumps(facts(key, video, **other)).encode()}


def make_split(root, count, *, split="train", per_shard=10, name="tiny", members=sample, store=None):
    """Shards and index in <root>/<split>; `members(key, number)` gives the files of each sample."""
    folder, infos = root / split, []
    for nth, first in enumerate(range(0, count, per_shard)):
        writer = ShardWriter(folder / shard_name(nth))
        for number in range(first, min(count, first + per_shard)):
            key = f"{split}-{number:05d}"
            writer.add(key, members(key, number))
        infos.append(writer.close())
    return write_index(folder, name=name, split=split, settings={"store": store or stored()}, shards=infos)


def stored():
    return {"frames": FRAMES, "height": SIZE, "width": SIZE, "min_frames": FRAMES}


def shard_cache(folder, gigabytes=1.0, *, retries=3, pause=0.01, timeout=20.0, ahead=0):
    return ShardCache(
        folder=str(folder), gigabytes=gigabytes, retries=retries, pause=pause, timeout=timeout, ahead=ahead
    )


def make_reader(
    index, *, frames=4, stride=1, size=SIZE, seed=0, lanes=None, window=7, decoder=None, extras=(), timeout=20.0
):
    plan = ShardPlan(counts=[info.samples for info in index.shards], seed=seed, shuffle_window=window, lanes=lanes)
    clip = ClipSettings(frames=frames, frame_stride=stride, height=size, width=size)
    clips = ClipReader(clip=clip, seed=seed, extras=extras, decoder=decoder or partial(decode_stored, backend="pyav"))
    shards = ShardReader(index=index, cache=None, max_open=3, max_tables=3)
    return BatchReader(plan=plan, shards=shards, clips=clips, sample_timeout=timeout)


def make_loader(
    index, *, workers=0, batch=5, rank=0, world=1, path=None, max_broken=1.0, restart=False, prefetch=2, **reader
):
    quarantine = Quarantine(path=path, fingerprint=index.fingerprint, max_broken=max_broken)
    return VideoLoader(
        reader=make_reader(index, **reader), quarantine=quarantine, batch_size=batch, rank=rank, world_size=world,
        num_workers=workers, prefetch=prefetch, resume_with_other_data=restart,
    )  # fmt: skip


def take(loader, batches):
    """That many batches, as rows of what training would see."""
    rows, stream = [], iter(loader)
    for _ in range(batches):
        rows += seen(next(stream))
    stream.close()
    return rows


def seen(batch):
    pixels = [zlib.crc32(video.permute(1, 2, 3, 0).contiguous().numpy()) for video in batch["video"]]
    return list(zip(batch["key"], batch["caption"], batch["fps"].tolist(), pixels, strict=True))
