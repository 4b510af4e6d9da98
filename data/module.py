"""The data of a run: shards of one dataset as training, validation and preview batches."""

from __future__ import annotations

import vdm.errors  # isort: skip  # noqa: F401 - before Lightning: lets it import torchvision on any torch

import contextlib
import functools
import logging
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch

from data.batches import BatchReader
from data.buckets import buckets_of, largest
from data.check import checked_index
from data.decode import resolve_backend
from data.loader import ValidationLoader, VideoLoader, collate, read_batches
from data.plain_mp4 import decode_stored
from data.plan import SequentialPlan, ShardPlan
from data.precomputed import AUTO, LATENT, CachedClips, CachedSplit, batch_of_latents, find_cache, open_cache
from data.quarantine import Quarantine
from data.reader import BrokenSample, ShardReader
from data.records import Source, StoreSettings
from data.samples import ClipReader, ClipSettings, extras_names
from data.shard_cache import ShardCache
from data.shards import ShardIndex
from data.tar import is_remote
from data.workers import start_fork_server
from vdm.bounds import Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from vdm.errors import ConfigError
from vdm.types import VideoBatch
from vdm.video import to_float

log = logging.getLogger(__name__)

_OPEN_FILES, _TABLES = 256, 1024  # per process: well below the usual limits, tables of 50 kB
_PROBED = 20  # samples, for the names of extras


class VideoData(pl.LightningDataModule):
    """Reads what `python -m data.prepare data=<name>` wrote. `source` and `store` say how; here they are only compared.

    Args:
        extras: truths to pass along; a name that no clip has is an error.
        extras_if_there: further ones, None for every clip where shards do not have them.
    """

    def __init__(
        self,
        *,
        name: str,
        root: str,
        source: Source,
        store: StoreSettings,
        clip: ClipSettings,
        buckets: Sequence[dict] | None,
        batch_size: PositiveInt,
        num_workers: NonNegativeInt,
        prefetch: PositiveInt,
        seed: NonNegativeInt,
        train_split: str,
        val_split: str | None,
        val_clips: PositiveInt,
        extras: Sequence[str],
        extras_if_there: Sequence[str] = (),
        lanes: PositiveInt | None,
        shuffle_window: PositiveInt,
        max_broken: Fraction,
        sample_timeout: PositiveFloat | None,
        quarantine: str | None,
        resume_with_other_data: bool,
        backend: str,
        cache: ShardCache,
    ):
        super().__init__()
        resolve_backend(backend)
        self.name, self.root, self.source, self.store, self.clip = name, str(root).rstrip("/"), source, store, clip
        self.buckets = buckets_of(buckets)
        self.batch_size, self.num_workers, self.prefetch, self.seed = batch_size, num_workers, prefetch, seed
        self.train_split, self.val_split, self.val_clips = train_split, val_split, val_clips
        self.extras, self.extras_if_there = tuple(extras), tuple(extras_if_there)
        self.lanes, self.shuffle_window = lanes, shuffle_window
        self.max_broken, self.sample_timeout, self.quarantine = max_broken, sample_timeout, quarantine
        self.resume_with_other_data, self.backend, self.cache = resume_with_other_data, backend, cache
        self.run_folder: str | os.PathLike | None = None  # whoever has one sets it
        self._indices: dict[str, ShardIndex] = {}
        self._quarantines: dict[str, Quarantine] = {}
        self._cached: dict[str, CachedSplit] = {}

    def setup(self, stage: str) -> None:
        """Read the indices, and say what is missing or does not fit, before anything else is built."""
        for split in filter(None, (self.train_split, self.val_split)):
            if split not in self._indices:
                self._indices[split] = checked_index(
                    self.name, self.root, split, clip=asdict(self.clip), is_optional=split == self.val_split,
                    buckets=self.buckets if split == self.train_split else (),
                    patience=self.cache.patience, max_lost=self.max_broken,
                )  # fmt: skip
        self._training_plan()
        if self.extras or self.extras_if_there:
            self._check_extras()
        if self.num_workers:
            start_fork_server()

    @property
    def fingerprint(self) -> str:
        """Of the training shards; belongs to the lineage of a run."""
        return self.split_fingerprint(self.train_split)

    def split_fingerprint(self, split: str) -> str:
        return self._index(split).fingerprint

    def use_cache(self, wanted: str, made_by: Callable[[], Mapping[str, Any]]) -> None:
        """From here on, `latent` instead of `video`, and embeddings in `extras`, if a cache of these networks has them.

        `wanted` is the folder of a cache, which must then be right, or auto: any that is.
        """
        self._cached = {}
        if obstacle := self._no_cache():
            if wanted != AUTO:
                raise ConfigError("this data cannot come from a cache", key="stage.cached", got=wanted, remedy=obstacle)
            return
        made_by = functools.cache(made_by)  # hashing weights takes seconds where they are large
        source, says = self._index(self.train_split), self.trainer is None or self.trainer.is_global_zero
        found = find_cache(wanted, self.root, source, self.clip, made_by)
        if found is None:
            return
        folder, self._cached[self.train_split] = found
        if self.val_split is not None:
            cached, reasons, _ = open_cache(folder, self._index(self.val_split), self.clip, made_by())
            if cached is not None:
                self._cached[self.val_split] = cached
            elif says:
                log.info("validation reads videos: %s", "; ".join(reasons))
        if says:
            arrays = [f"{name} ({dtype})" for name, dtype in self._cached[self.train_split].arrays.items()]
            log.info("reading %s from the cache %s", ", ".join(arrays), folder)

    def train_dataloader(self) -> VideoLoader:
        """Endless, with a state."""
        return VideoLoader(
            reader=self._reader(self.train_split, self._training_plan(), largest(self.clip, self.buckets)),
            buckets=self.buckets,
            quarantine=self._quarantine(self.train_split),
            batch_size=self.batch_size,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            num_workers=self.num_workers,
            prefetch=self.prefetch,
            resume_with_other_data=self.resume_with_other_data,
        )

    def sample_dataloader(self) -> VideoLoader:
        """Training clips to measure on: the same ones whenever it is asked for, whatever training has consumed."""
        return self.train_dataloader()

    def val_dataloader(self) -> ValidationLoader | list:
        """The first `val_clips` of the validation split, in order."""
        if self.val_split is None:
            return []
        return ValidationLoader(
            reader=self._reader(self.val_split, self._sequential_plan(self.val_split, self.val_clips)),
            quarantine=self._quarantine(self.val_split),
            batch_size=self.batch_size,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            num_workers=self.num_workers,
            prefetch=self.prefetch,
        )

    def preview(self, count: int) -> VideoBatch:
        """The first clips of the validation split (without one, of the training split): the same in every run."""
        split = self.val_split or self.train_split
        plan = self._sequential_plan(split, count)
        reader = self._reader(split, plan)
        pixels, batch = next(read_batches(reader, [range(plan.num_samples)], count, num_workers=0, prefetch=1))
        self._quarantine(split).add(batch.broken)
        return self.on_after_batch_transfer(collate(pixels, batch.clips), 0)

    def on_after_batch_transfer(self, batch: VideoBatch, dataloader_idx: int) -> VideoBatch:
        """uint8 crossed the bus; from here on `video` is what VideoBatch promises."""
        if LATENT in batch.get("extras", {}):
            return batch_of_latents(batch, next(iter(self._cached.values())).arrays)
        if "video" in batch and batch["video"].dtype == torch.uint8:
            batch["video"] = to_float(batch["video"]).contiguous()
        return batch

    def _no_cache(self) -> str:
        """What would have to change before a cache can be read; empty: nothing."""
        if self.buckets:
            return "set data.buckets=null: a cache has clips of one size"
        asked = {*self.extras, *self.extras_if_there} & self._known_extras("json", "npz")
        arrays = sorted(asked - self._known_extras("json"))
        return f"leave {', '.join(arrays)} out of data.extras: a cache has no truth in arrays" if arrays else ""

    def _check_extras(self) -> None:
        """A misspelt name would otherwise be None for ever."""
        known = self._known_extras("json", "npz")
        for name in self.extras:
            if name not in known:
                got = f"{name!r}, which none of the first samples has"
                raise ConfigError("unknown extras", key="data.extras", got=got, allowed=sorted(known))
        absent = [name for name in self.extras_if_there if name not in known]
        if absent and (self.trainer is None or self.trainer.is_global_zero):
            log.info("clips of %s have no %s: nothing is said of it", self.name, ", ".join(absent))

    def _known_extras(self, *extensions: str) -> set[str]:
        """Names of truths in these members of the first samples."""
        index, known = self._index(self.train_split), set()
        reader = self._shards(index, max_lost=self.max_broken, max_open=1, max_tables=1)
        for number in range(min(_PROBED, index.shards[0].samples)):
            with contextlib.suppress(BrokenSample, ValueError, OSError, AttributeError, zipfile.BadZipFile):
                known |= extras_names(reader.read(0, number, extensions)[1])
        return known

    def _index(self, split: str) -> ShardIndex:
        if split not in self._indices:
            self.setup("fit")
        return self._indices[split]

    def _training_plan(self) -> ShardPlan:
        counts = [info.samples for info in self._index(self.train_split).shards]
        return ShardPlan(counts=counts, seed=self.seed, shuffle_window=self.shuffle_window, lanes=self.lanes)

    def _sequential_plan(self, split: str, limit: int) -> SequentialPlan:
        return SequentialPlan(counts=[info.samples for info in self._index(split).shards], limit=limit)

    def _reader(self, split: str, plan: ShardPlan | SequentialPlan, clip: ClipSettings | None = None) -> BatchReader:
        cached = self._cached.get(split)
        index = cached.index if cached else self._index(split)
        # What a cache has lost is no fault of the data: it can be made again.
        bearable = 0.0 if cached else self.max_broken
        shards = self._shards(index, max_lost=bearable, max_open=_OPEN_FILES, max_tables=_TABLES)
        decoder = functools.partial(decode_stored, backend=self.backend)
        extras = tuple(dict.fromkeys((*self.extras, *self.extras_if_there)))
        settings = {"clip": clip or self.clip, "seed": self.seed, "extras": extras, "decoder": decoder}
        clips = CachedClips(cached=cached, **settings) if cached else ClipReader(**settings)
        return BatchReader(plan=plan, shards=shards, clips=clips, sample_timeout=self.sample_timeout)

    def _shards(self, index: ShardIndex, **limits: float) -> ShardReader:
        cache = self.cache if is_remote(index.folder) else None
        return ShardReader(index=index, cache=cache, patience=self.cache.patience, **limits)

    def _quarantine(self, split: str) -> Quarantine:
        if split not in self._quarantines:
            path = self.quarantine
            if path is None:
                folder = self.run_folder or (None if is_remote(self.root) else self.root)
                path = os.path.join(folder, "quarantine.jsonl") if folder else None
            fingerprint = self._index(split).fingerprint
            self._quarantines[split] = Quarantine(path=path, fingerprint=fingerprint, max_broken=self.max_broken)
        return self._quarantines[split]
