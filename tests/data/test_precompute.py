"""Caches of latents: the same plan as their source, refused when they are another's, whole however making them ended."""

import vdm.errors  # isort: skip  # noqa: F401 - before Lightning: lets it import torchvision on any torch

import functools
import json
import logging
import multiprocessing
import os
import signal
import zlib
from dataclasses import replace
from multiprocessing import forkserver

import numpy as np
import pytest
import torch
from clip_factory import FRAMES, SIZE, facts, make_split, mp4, sample
from test_module import CLIP, module

from data import cache_building
from data.cache_building import CacheBuilder
from data.plain_mp4 import decode_stored
from data.precomputed import CachedSplit, caches_in
from data.reader import ShardReader
from data.samples import ClipSettings
from data.shards import ShardWriter, read_index
from vdm.errors import ConfigError, DataError

WHOLE = ClipSettings(frames=FRAMES, frame_stride=1, height=SIZE, width=SIZE)
TEXT = {"encoder": "Fake", "weights": "t0"}


class Encoder:
    """What the networks do, as arithmetic: every frame and every letter leaves its trace."""

    def __init__(self, weights="w0", text=None, every_frame=False):
        self.weights, self.text, self.every_frame = weights, text, every_frame

    def made_by(self):
        return {"autoencoder": {"weights": self.weights}, "conditions": {"text": self.text} if self.text else {}}

    def arrays(self):
        return {"latent": "float32"} | ({"text": "bfloat16", "text_mask": "bool"} if self.text else {})

    def latent_shape(self, frames, height, width):
        return ()

    def encode(self, frames, captions):
        arrays = {"latent": latent_of(frames)}
        for number, caption in enumerate(captions if self.text else ()):
            arrays |= {f"text.{number}": text_of(caption).view(torch.int16).numpy()}
            arrays |= {f"text_mask.{number}": np.arange(FRAMES) < number + 2}
        return arrays


def latent_of(frames):
    return frames.astype(np.float32).mean((1, 2)).T[:, :, None, None] / 255  # 3 t 1 1


def text_of(caption):
    """As many tokens as stored frames: nothing may take them for time."""
    return torch.full((FRAMES, 2), float(zlib.crc32(caption.encode()) % 997)).bfloat16() + torch.arange(FRAMES)[:, None]


def broken_ones(key, number):
    """Every kind of trouble that prepare would not have let through."""
    found = sample(key, number)
    if number == 3:
        del found["mp4"]
    elif number == 8:
        found["mp4"] = found["mp4"][:-30] + b"x" * 30
    elif number == 12:
        found["json"] = json.dumps(facts(key, found["mp4"], captions=[" "])).encode()
    elif number == 15:
        video = mp4(1, frames=FRAMES - 3)
        found = {"mp4": video, "json": json.dumps(facts(key, video, frames=FRAMES - 3)).encode()}
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "tiny"
    make_split(folder, 23, members=broken_ones)
    make_split(folder, 6, split="val")
    return folder


def build(root, output=None, *, encoder=None, clip=WHOLE, splits=("train", "val"), rank=0, world=1, on_progress=None):
    builder = CacheBuilder(
        root=str(output or root / "cached"), clip=clip, decoder=functools.partial(decode_stored, backend="pyav"),
        encoder=encoder or Encoder(), num_workers=0, timeout=60.0, rank=rank, world_size=world,
    )  # fmt: skip
    outcome = None
    for split in splits:
        source = read_index(root / split)
        shards = ShardReader(index=source, cache=None, max_open=2, max_tables=2)
        outcome = builder.build(source, shards, on_progress=on_progress or (lambda *_: None))
    return outcome


@pytest.fixture(scope="module")
def cache(root, tmp_path_factory):
    output = tmp_path_factory.mktemp("caches")
    build(root, output, encoder=Encoder(text=TEXT))
    (folder,) = output.iterdir()
    return folder


def reading(root, cache=None, *, encoder=None, clip=WHOLE, path=None, **changes):
    """A data module, from a cache if one is named."""
    data = module(root, clip=clip, max_broken=1.0, quarantine=str(path or os.devnull), **changes)
    data.setup("fit")
    if cache is not None:
        data.use_cache(str(cache), (encoder or Encoder(text=TEXT)).made_by)
    return data


def batches(data, count):
    stream = iter(data.train_dataloader())
    return [data.on_after_batch_transfer(next(stream), 0) for _ in range(count)]


def bytes_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the same plan ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_the_videos(root, cache, tmp_path, workers):
    plain = reading(root, path=tmp_path / "plain.jsonl")
    cached = reading(root, cache, path=tmp_path / "cached.jsonl", num_workers=workers)
    for theirs, ours in zip(batches(plain, 14), batches(cached, 14), strict=True):  # two epochs and more
        assert ours["key"] == theirs["key"]
        assert ours["caption"] == theirs["caption"]
        assert torch.equal(ours["fps"], theirs["fps"])
        frames = ((theirs["video"] + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()
        assert torch.equal(ours["latent"], torch.from_numpy(np.stack([latent_of(clip) for clip in frames])))
        assert torch.equal(ours["extras"]["text"], torch.stack([text_of(caption) for caption in ours["caption"]]))
        assert {"first": 2, "second": 3}[ours["caption"][0].split()[0]] == ours["extras"]["text_mask"][0].sum()
        assert "video" not in ours
    named = [sorted(path.read_text().splitlines()) for path in (tmp_path / "plain.jsonl", tmp_path / "cached.jsonl")]
    assert named[0] == named[1]
    assert len(named[0]) == 4
    kinds = {json.loads(line)["kind"] for line in named[0]}
    assert kinds == {"missing member", "damaged video", "missing caption", "too short"}


def test_validation_previews_and_cursors_too(root, cache):
    plain, cached = reading(root), reading(root, cache)
    (ours,), (theirs,) = ([[clip["key"] for clip in data.val_dataloader()]] for data in (cached, plain))
    assert ours == theirs
    preview = cached.preview(3)
    assert preview["key"] == plain.preview(3)["key"]
    assert preview["latent"].shape == (3, 3, FRAMES, 1, 1)
    again = cached.on_after_batch_transfer(preview, 0)  # samples come through this twice
    assert again["latent"] is preview["latent"]
    loader, other = plain.train_dataloader(), cached.train_dataloader()
    next(iter(loader))
    other.load_state_dict(loader.state_dict())  # a run may go on with a cache
    assert other.consumed == 4
    assert cached.fingerprint == plain.fingerprint


def test_a_latent_of_single_frames_is_cut_like_the_video(root, tmp_path):
    """One cache for every window, length and stride; what is too short is for training to say."""
    encoder = Encoder(every_frame=True)
    build(root, tmp_path, encoder=encoder, clip=CLIP)
    (folder,) = tmp_path.iterdir()
    strided = ClipSettings(frames=2, frame_stride=3, height=SIZE, width=SIZE)
    for clip, short in ((CLIP, 0), (strided, 0), (WHOLE, 1)):
        plain, cached = reading(root, clip=clip), reading(root, folder, encoder=encoder, clip=clip)
        for theirs, ours in zip(batches(plain, 12), batches(cached, 12), strict=True):
            assert ours["key"] == theirs["key"]
            frames = ((theirs["video"] + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()
            assert torch.equal(ours["latent"], torch.from_numpy(np.stack([latent_of(clip) for clip in frames])))
        kinds = [broken.kind for broken in cached._quarantine("train").met.values()]
        assert kinds.count("too short") == short


def test_a_random_cut_of_an_autoencoder_that_looks_across_frames_is_refused(root, tmp_path):
    with pytest.raises(ConfigError, match="looks across frames") as error:
        build(root, tmp_path, clip=CLIP)
    assert f"{FRAMES} frames, training takes 4" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_cut_is_refused_where_only_the_samples_say_how_long_they_are(tmp_path):
    make_split(tmp_path / "tiny", 3, store={"height": SIZE})
    with pytest.raises(ConfigError, match="looks across frames"):
        build(tmp_path / "tiny", splits=["train"], clip=CLIP)
    assert not list((tmp_path / "tiny" / "cached").rglob("*.tar*"))


# ---- whose cache it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encoder": Encoder("w1", TEXT)}, "autoencoder: weights is w0 in the cache and w1 here"),
        ({"encoder": Encoder(text=TEXT | {"weights": "t1"})}, "condition text: weights is t0 in the cache and t1 here"),
        (
            {"clip": ClipSettings(frames=4, frame_stride=1, height=SIZE, width=SIZE)},
            "data.clip: frames is 8 in the cache",
        ),
        ({"clip": ClipSettings(frames=FRAMES, frame_stride=1, height=8, width=SIZE)}, "data.clip: height is 16"),
    ],
)
def test_a_named_cache_that_is_another_s_is_refused_with_the_reason(root, cache, change, reason):
    with pytest.raises(DataError, match="not what this run would make") as error:
        reading(root, cache, **change)
    assert reason in str(error.value)


def test_other_source_shards_are_refused(tmp_path, root, cache):
    other = tmp_path / "tiny"
    make_split(other, 23)
    make_split(other, 6, split="val")
    with pytest.raises(DataError) as error:
        reading(other, cache)
    assert "the source shards is" in str(error.value)


def test_auto_takes_what_fits_and_says_why_not(root, cache, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = tmp_path / "tiny"
    for split in ("train", "val"):
        (data / split).mkdir(parents=True)
        for path in (root / split).iterdir():
            os.link(path, data / split / path.name)
    assert "video" in batches(reading(data, "auto"), 1)[0]
    assert "cache" not in caplog.text
    build(data, encoder=Encoder("w1"))
    assert "video" in batches(reading(data, "auto"), 1)[0]
    assert "is not used: autoencoder: weights is w1 in the cache and w0 here" in caplog.text
    build(data, encoder=Encoder(), splits=["train"])
    found = reading(data, "auto")
    assert set(batches(found, 1)[0]) == {"latent", "caption", "fps", "key"}
    assert "video" in next(iter(found.val_dataloader()))
    assert "validation reads videos: there is no shard folder" in caplog.text
    build(data, encoder=Encoder(text=TEXT))
    assert "text" in batches(reading(data, "auto"), 1)[0]["extras"]  # the one that has more
    assert len(caches_in(str(data))) == 3
    # Latents of this run, text of another: only the latents are taken.
    batch = batches(reading(data, "auto", encoder=Encoder(text=TEXT | {"weights": "t1"})), 1)[0]
    assert "extras" not in batch
    # A text encoder that is trained has no fingerprint.
    assert "extras" not in batches(reading(data, "auto", encoder=Encoder()), 1)[0]


def test_what_is_no_cache_is_refused(root, tmp_path):
    with pytest.raises(DataError, match="not what this run would make") as error:
        reading(root, root)  # shards, but of videos
    assert "its index is not that of a cache" in str(error.value)
    with pytest.raises(DataError, match="there is no shard folder"):
        reading(root, tmp_path / "nowhere")


def test_buckets_and_truth_in_arrays_need_the_videos(root, cache):
    bucket = {"frames": 4, "height": SIZE, "width": SIZE, "weight": 1.0, "batch_size": 2}
    data = module(root, clip=WHOLE, buckets=[bucket])
    with pytest.raises(ConfigError, match="cannot come from a cache") as error:
        data.use_cache(str(cache), Encoder().made_by)
    assert "data.buckets=null" in str(error.value)
    data.use_cache("auto", Encoder().made_by)
    assert "video" in batches(data, 1)[0]


def test_damage_stops_the_run_and_is_no_broken_sample(root, cache, tmp_path):
    """A sample that vanished in silence would change what is trained on."""
    folder = tmp_path / cache.name
    for path in cache.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(cache)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(cache)).write_bytes(path.read_bytes())
    for path in (folder / "train").glob("*.tar"):
        content = bytearray(path.read_bytes())
        start = content.find(b"latent.npy") + 200
        content[start : start + 8] = b"\xff" * 8
        path.write_bytes(content)
    with pytest.raises(DataError, match="the cache is damaged"):
        batches(reading(root, folder), 6)


def test_a_cache_that_lost_a_file_is_refused(root, cache, tmp_path):
    build(root, tmp_path, splits=["val"])
    next(tmp_path.rglob("*.tar")).unlink()
    with pytest.raises(DataError, match="the cache is damaged: the shards are not those of the index") as error:
        build(root, tmp_path, splits=["val"])
    assert "delete this folder" in str(error.value)


def test_of_two_that_fit_the_exact_one_is_read(root, tmp_path):
    one = CachedSplit(read_index(root / "train"), {"latent": "float16"}, False)
    assert one.worth < replace(one, arrays={"latent": "float32"}).worth
    assert (
        replace(one, arrays={"latent": "float32"}).worth < replace(one, arrays={"latent": "float16", "text": ""}).worth
    )


# ---- however making it ended ------------------------------------------------------------------------------------------


def make_and_die(root, output, at, server):
    forkserver._forkserver = server

    def die(done, total, broken):
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    build(root, output, encoder=Encoder(text=TEXT), on_progress=die)


@pytest.mark.parametrize("at", [4, 10, 17])
def test_killed_it_continues_to_the_same_bytes(root, cache, tmp_path, at):
    process = multiprocessing.get_context("fork").Process(
        target=make_and_die, args=(root, tmp_path, at, forkserver._forkserver)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    assert not (folder / "train" / "index.json").exists()
    whole = {path.name for path in (folder / "train").glob("*.tar")}
    assert len(whole) == (at - 1) // 10
    reference = bytes_in(cache)
    assert all((folder / "train" / name).read_bytes() == reference[f"train/{name}"] for name in whole)
    seen = []
    build(root, tmp_path, encoder=Encoder(text=TEXT), on_progress=lambda *news: seen.append(news))
    assert seen[0][:2] == (10 * len(whole) + 1, 23)  # goes on after the last whole shard
    assert bytes_in(folder) == reference


def test_two_processes_make_what_one_makes(root, cache, tmp_path):
    first = build(root, tmp_path, encoder=Encoder(text=TEXT), rank=0, world=2)
    (folder,) = tmp_path.iterdir()
    assert first.index is not None  # of val, which has one shard
    assert not (folder / "train" / "index.json").exists()
    second = build(root, tmp_path, encoder=Encoder(text=TEXT), rank=1, world=2, splits=["train"])
    assert second.index.num_samples == 23
    assert second.broken.total() == 4  # of both
    assert bytes_in(folder) == bytes_in(cache)
    assert build(root, tmp_path, encoder=Encoder(text=TEXT), rank=0, world=2).was_finished


def test_two_processes_never_make_one_shard(root, tmp_path, monkeypatch):
    def add(self, *given):
        with pytest.raises(DataError, match="another process makes this shard"):
            build(root, tmp_path, splits=["train"])
        raise KeyboardInterrupt

    monkeypatch.setattr(CacheBuilder, "_add", add)
    with pytest.raises(KeyboardInterrupt):
        build(root, tmp_path, splits=["train"])
    assert not list(tmp_path.rglob("*.tar*"))


def test_a_cache_of_other_shards_is_not_overwritten(root, tmp_path):
    other = tmp_path / "tiny"
    make_split(other, 4)
    build(other, tmp_path / "caches", splits=["train"])
    before = bytes_in(tmp_path / "caches")
    with pytest.raises(DataError, match="of other shards") as error:
        build(root, tmp_path / "caches", splits=["train"])
    assert "delete this folder" in str(error.value)
    assert bytes_in(tmp_path / "caches") == before


def test_a_full_disk_leaves_no_shard(root, tmp_path, monkeypatch):
    def add(self, key, members):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ShardWriter, "add", add)
    with pytest.raises(OSError, match="No space"):
        build(root, tmp_path, splits=["train"])
    assert not list(tmp_path.rglob("*.tar*"))


def test_equal_arrays_make_equal_bytes():
    arrays = {"latent": np.ones((2, 3), np.float32), "text.0": np.zeros((4, 2), np.int16)}
    assert cache_building._npz(arrays) == cache_building._npz({name: array.copy() for name, array in arrays.items()})
    assert len(cache_building._npz({"text.0": np.zeros((77, 768), np.float32)})) < 3000  # padding takes no room
