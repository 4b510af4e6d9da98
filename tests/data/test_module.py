"""The data module: said before training what is missing, resumed by Lightning without loss, validation split exactly."""

import vdm.errors  # isort: skip  # noqa: F401 - before Lightning: lets it import torchvision on any torch

import dataclasses
from functools import partial

import fsspec
import pytest
import pytorch_lightning as pl
import torch
from clip_factory import FRAMES, SIZE, make_split, sample, seen, shard_cache, stored

from data.loader import VideoLoader
from data.module import VideoData
from data.records import StoreSettings
from data.samples import ClipSettings
from data.shards import read_index
from vdm.errors import ConfigError, DataError

STORE = StoreSettings(frames=FRAMES, height=SIZE, width=SIZE, fps=8.0, gop=4, crf=0, pixel_format="yuv444p",
                      samples_per_shard=10)  # fmt: skip
CLIP = ClipSettings(frames=4, frame_stride=1, height=SIZE, width=SIZE)


def module(root, **changes):
    settings = dict(
        name="tiny", root=str(root), source=None, store=STORE, clip=CLIP, buckets=None, batch_size=4,
        num_workers=0, prefetch=2, seed=0, train_split="train", val_split="val", val_clips=9, extras=[], lanes=None,
        shuffle_window=16, max_broken=0.01, sample_timeout=20.0, quarantine=None, resume_with_other_data=False, backend="pyav",
        cache=shard_cache(str(root) + "/cache"),
    )  # fmt: skip
    return VideoData(**settings | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "tiny"
    make_split(folder, 23)
    make_split(folder, 14, split="val")
    return folder


class Recorder(pl.LightningModule):
    """Learns from the pixels and remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        torch.nn.init.ones_(self.layer.weight)
        self.rows = []

    def training_step(self, batch, batch_idx):
        assert batch["video"].dtype == torch.float32
        assert batch["video"].is_contiguous()
        assert batch["video"].abs().max() <= 1
        self.rows += seen(batch)
        return self.layer(batch["video"].mean(dim=(2, 3, 4))).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class SaveAt(pl.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(data, steps, resumed=None, callbacks=()):
    model = Recorder()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_steps=steps, accelerator="cpu", limit_val_batches=0, callbacks=list(callbacks), **quiet)
    trainer.fit(model, datamodule=data, ckpt_path=resumed, weights_only=True)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("workers", "steps"), [(0, (1, 5, 6, 11)), (1, (5,)), (2, (1, 6))])
def test_resumed_equals_uninterrupted(root, workers, steps, tmp_path):
    """23 clips in batches of 4: step 6 is the first to reach into the second epoch."""
    saves = [SaveAt(step, tmp_path / f"{step}.ckpt") for step in steps]
    whole = fit(module(root, num_workers=workers), 13, callbacks=saves)
    for step in steps:
        resumed = fit(module(root, num_workers=workers), 13, resumed=tmp_path / f"{step}.ckpt")
        assert resumed.rows == whole.rows[4 * step :], f"interrupted after step {step}"
        assert torch.equal(resumed.layer.weight, whole.layer.weight)


@pytest.mark.filterwarnings("ignore")
def test_changed_data_is_refused_on_resume(root, tmp_path):
    fit(module(root), 3, callbacks=[SaveAt(2, tmp_path / "a.ckpt")])
    with pytest.raises(DataError, match="resume_with_other_data"):
        fit(module(root, seed=1), 3, resumed=tmp_path / "a.ckpt")
    fit(module(root, seed=1, resume_with_other_data=True), 3, resumed=tmp_path / "a.ckpt")


def test_missing_shards_are_said_with_the_command(tmp_path):
    with pytest.raises(DataError) as caught:
        module(tmp_path / "nothing").setup("fit")
    message = str(caught.value)
    assert "python -m data.prepare data=tiny" in message
    assert "paths.data_root" in message
    assert str(tmp_path / "nothing" / "train") in message


def test_missing_validation_split_has_a_way_out(tmp_path):
    make_split(tmp_path, 5)
    with pytest.raises(DataError, match="data.val_split=null"):
        module(tmp_path).setup("fit")
    data = module(tmp_path, val_split=None)
    data.setup("fit")
    assert data.val_dataloader() == []
    assert data.preview(3)["key"] == ["train-00000", "train-00001", "train-00002"]


@pytest.mark.parametrize(
    ("change", "key"),
    [({"frames": 9}, "frames"), ({"frame_stride": 3}, "frames"), ({"height": 32}, "height"), ({"width": 17}, "width")],
)
def test_clips_larger_than_stored_are_refused(root, change, key):
    with pytest.raises(ConfigError, match=f"data.clip.{key}"):
        module(root, clip=dataclasses.replace(CLIP, **change)).setup("fit")


def test_the_shortest_stored_clip_decides(tmp_path):
    make_split(tmp_path, 5, store=stored() | {"frames": 16, "min_frames": 6})
    make = partial(module, tmp_path, val_split=None)
    make(clip=dataclasses.replace(CLIP, frames=6)).setup("fit")
    with pytest.raises(ConfigError, match="up to 6"):
        make(clip=dataclasses.replace(CLIP, frames=7)).setup("fit")


def test_shards_of_another_dataset_are_refused(root):
    with pytest.raises(DataError, match="tiny/train"):
        module(root, name="webvid").setup("fit")


def test_misspelt_extras_are_refused(tmp_path):
    make_split(tmp_path, 5, members=lambda key, n: sample(key, n, extras={"plan": [], "boxes": []}))
    module(tmp_path, val_split=None, extras=["plan"]).setup("fit")
    with pytest.raises(ConfigError, match="(?s)data.extras.*'plam'.*boxes, plan"):
        module(tmp_path, val_split=None, extras=["plam"]).setup("fit")


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (2, 4), (3, 2), (4, 2), (9, 1), (4, 1), (2, 100)])
def test_validation_is_split_exactly(root, world_size, batch_size, monkeypatch):
    keys, lengths = [], []
    for rank in range(world_size):
        data = module(root, batch_size=batch_size)
        data.trainer = type("Trainer", (), {"global_rank": rank, "world_size": world_size})
        loader = data.val_dataloader()
        batches = [batch["key"] for batch in loader]
        assert batches == [batch["key"] for batch in loader], "again the same"
        assert len(batches) == len(loader)
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        lengths.append(len(batches))
        keys += sum(batches, [])
    assert len(set(lengths)) == 1, "a rank without a batch would make the others wait"
    expected = 8 if (world_size, batch_size) == (4, 1) else 9
    assert sorted(keys) == [f"val-{number:05d}" for number in range(expected)]


def test_validation_with_fewer_clips_than_ranks(root):
    data = module(root, val_clips=2)
    data.trainer = type("Trainer", (), {"global_rank": 0, "world_size": 3})
    with pytest.raises(ConfigError, match="data.val_clips"):
        data.val_dataloader()


def test_broken_validation_clips_are_replaced_from_beyond(tmp_path):
    make_split(tmp_path, 5)
    make_split(tmp_path, 14, split="val", members=lambda key, n: {"mp4": b""} if n == 2 else sample(key, n))
    data = module(tmp_path, num_workers=2)
    keys = [key for batch in data.val_dataloader() for key in batch["key"]]
    assert keys == [f"val-{number:05d}" for number in (0, 1, 11, 3, 4, 5, 6, 7, 8)]
    assert "val-00002" in (tmp_path / "quarantine.jsonl").read_text()


def test_preview_is_fixed_and_float(root):
    first, second = module(root).preview(3), module(root, seed=5, batch_size=7).preview(3)
    assert first["key"] == second["key"] == ["val-00000", "val-00001", "val-00002"]
    assert first["video"].dtype == torch.float32
    assert first["video"].shape == (3, 3, 4, SIZE, SIZE)


def test_measuring_does_not_move_the_cursor(root):
    data = module(root)
    training = data.train_dataloader()
    next(iter(training))
    measured = data.sample_dataloader()
    assert isinstance(measured, VideoLoader)
    assert next(iter(measured))["key"] == next(iter(data.sample_dataloader()))["key"]
    assert training.consumed == 4


def test_quarantine_goes_into_the_run_folder(root, tmp_path):
    data = module(root)
    data.run_folder = tmp_path
    assert data.train_dataloader().quarantine.path == tmp_path / "quarantine.jsonl"
    assert module(root, quarantine=str(tmp_path / "q")).train_dataloader().quarantine.path == tmp_path / "q"
    assert module(root).train_dataloader().quarantine.path == root / "quarantine.jsonl"


def test_fingerprint_is_that_of_the_training_shards(root):
    assert module(root).fingerprint == read_index(root / "train").fingerprint


def test_remote_shards_are_read_through_a_bounded_cache(root, tmp_path):
    remote = fsspec.filesystem("memory")
    for split in ("train", "val"):
        for path in sorted((root / split).iterdir()):
            remote.pipe(f"/store/tiny/{split}/{path.name}", path.read_bytes())
    size = max(path.stat().st_size for path in (root / "train").glob("*.tar"))
    cache = shard_cache(tmp_path / "cache", 1.5 * size / 1e9)  # room for one shard
    # The file system lives in this process, so no workers.
    far = module("memory://store/tiny", cache=cache).train_dataloader()
    near = module(root).train_dataloader()
    far_stream, near_stream = iter(far), iter(near)
    for _ in range(7):
        assert seen(next(far_stream)) == seen(next(near_stream))
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
    assert kept <= 1.5 * size
    remote.rm("/store", recursive=True)
