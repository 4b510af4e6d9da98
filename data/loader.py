"""Batches for training, endless and resumable, and for validation.

The state of the training loader is a cursor: how many samples all ranks together have handed to training, which is neither
what was read ahead nor anything about ranks, workers or the batch size. Together with the plan and the buckets it says
everything.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.batches import Batch, BatchReader, Request
from data.buckets import Bucket, bucket_at
from data.plan import ShardPlan, rank_positions
from data.prefetch import Prefetcher
from data.quarantine import Quarantine
from data.samples import Clip
from data.workers import WorkerPool
from vdm.errors import ConfigError, DataError
from vdm.types import VideoBatch

log = logging.getLogger(__name__)

# Lightning reads one batch ahead of a loader without a length, and a resumed run would skip it. This one never ends.
ENDLESS = 2**40


class VideoLoader:
    """Endless training batches with `video` in uint8, always full; sized, because Lightning has to believe it is finite."""

    def __init__(
        self,
        *,
        reader: BatchReader,
        quarantine: Quarantine,
        batch_size: int,
        rank: int,
        world_size: int,
        num_workers: int,
        prefetch: int,
        resume_with_other_data: bool,
        buckets: Sequence[Bucket] = (),
    ):
        """With `buckets`, these say how large clips and batches are, and `batch_size` is not looked at."""
        assert isinstance(reader.plan, ShardPlan), "training follows a shard plan"
        self.reader, self.quarantine, self.plan = reader, quarantine, reader.plan
        self.rank, self.world_size = rank, world_size
        frames, height, width, _ = reader.clip_shape
        plain = Bucket(frames=frames, height=height, width=width, weight=1.0, batch_size=batch_size)
        self.buckets = tuple(buckets) or (plain,)
        self.num_workers, self.prefetch = num_workers, prefetch
        self.resume_with_other_data = resume_with_other_data
        self.consumed = 0  # samples of all ranks, handed to training
        self.last_wait = 0.0  # seconds the latest batch was waited for
        self._seen = 0
        if rank == 0 and self.plan.lanes % world_size:
            log.info("%d ranks do not divide %d lanes: every rank reads from all shards. The order is unaffected.",
                     world_size, self.plan.lanes)  # fmt: skip
        for broken in quarantine.known.values():
            reader.mark(broken)

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[VideoBatch]:
        room = max(bucket.batch_size * math.prod(bucket.shape) for bucket in self.buckets)
        with (
            self._fetching_ahead(),
            contextlib.closing(_read(self.reader, self._requests(), room, self.num_workers, self.prefetch)) as batches,
        ):
            while True:
                begun = time.perf_counter()
                pixels, batch = next(batches)
                self.last_wait = time.perf_counter() - begun
                self._account(batch)
                self.consumed += len(batch.clips) * self.world_size
                yield collate(pixels, batch.clips)

    @contextlib.contextmanager
    def _fetching_ahead(self) -> Iterator[None]:
        """While this lasts, remote shards are fetched before they are needed."""
        shards = self.reader.shards
        if shards.cache is None:
            yield
            return
        prefetcher = Prefetcher(
            index=shards.index, cache=shards.cache, plan=self.plan, rank=self.rank, world_size=self.world_size,
            consumed=lambda: self.consumed,
        )  # fmt: skip
        prefetcher.start()
        try:
            yield
        finally:
            prefetcher.stop()

    def state_dict(self) -> dict[str, Any]:
        return self._order() | {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue behind what was consumed; any world size and batch size will do. Other data is refused."""
        order = self._order()
        other = {name: (state.get(name), order[name]) for name in order if state.get(name) != order[name]}
        if not other:
            self.consumed = int(state["consumed"])
            return
        listed = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in other.items())
        if not self.resume_with_other_data:
            raise DataError("the run to continue read other data, or the same in another order", key="data", got=listed,
                            allowed="the same data, data.seed, data.lanes and data.shuffle_window",
                            remedy="restore them, or start this data from its beginning with "
                                   "data.resume_with_other_data=true")  # fmt: skip
        log.warning(
            "data differs from the run that is continued (%s): reading starts at the beginning of epoch 0", listed
        )
        self.consumed = 0

    def _order(self) -> dict[str, Any]:
        """What decides which sample comes at which position."""
        plan = self.plan
        return {"seed": plan.seed, "fingerprint": self.reader.shards.index.fingerprint, "num_samples": plan.num_samples,
                "lanes": plan.lanes, "shuffle_window": plan.shuffle_window}  # fmt: skip

    def _requests(self) -> Iterator[Request]:
        start = self.consumed
        while True:
            bucket = bucket_at(self.buckets, seed=self.plan.seed, position=start)
            size = bucket.batch_size
            positions = rank_positions(start, batch_size=size, rank=self.rank, world_size=self.world_size)
            yield Request(positions, bucket.shape)
            start += size * self.world_size

    def _account(self, batch: Batch) -> None:
        self._seen += len(batch.clips) + len(batch.broken)
        if batch.broken:
            self.quarantine.add(batch.broken)
            self.quarantine.check(min(self._seen, self.plan.num_samples))


class ValidationLoader:
    """The first clips of a split in stored order, dealt to the ranks: each clip once, and as many batches on each rank."""

    def __init__(
        self,
        *,
        reader: BatchReader,
        quarantine: Quarantine,
        batch_size: int,
        rank: int,
        world_size: int,
        num_workers: int,
        prefetch: int,
    ):
        self.reader, self.quarantine = reader, quarantine
        self.batch_size, self.num_workers, self.prefetch = batch_size, num_workers, prefetch
        clips = reader.plan.num_samples
        num_batches = -(-clips // (world_size * batch_size))
        if clips // world_size < num_batches:
            # A rank without a batch would leave the others waiting for it.
            clips -= clips % world_size
            num_batches = -(-clips // (world_size * batch_size))
        if not clips:
            raise ConfigError("fewer validation clips than ranks", key="data.val_clips", got=reader.plan.num_samples,
                              allowed=f">= {world_size}", remedy="raise it, or set data.val_split=null")  # fmt: skip
        self._batches = [part.tolist() for part in np.array_split(np.arange(rank, clips, world_size), num_batches)]
        for broken in quarantine.known.values():
            reader.mark(broken)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[VideoBatch]:
        for pixels, batch in read_batches(self.reader, self._batches, self.batch_size, self.num_workers, self.prefetch):
            self.quarantine.add(batch.broken)
            yield collate(pixels, batch.clips)


def read_batches(
    reader: BatchReader, positions: Iterable[Sequence[int]], batch_size: int, num_workers: int, prefetch: int
) -> Iterator[tuple[Tensor, Batch]]:
    """Pixels b T H W 3 and clips for each group of positions, in order; clips of one size."""
    requests = (Request(group, reader.clip_shape) for group in positions)
    return _read(reader, requests, batch_size * math.prod(reader.clip_shape), num_workers, prefetch)


def _read(
    reader: BatchReader, requests: Iterable[Request], batch_bytes: int, num_workers: int, prefetch: int
) -> Iterator[tuple[Tensor, Batch]]:
    """Pixels and clips for each request, in order, none larger than `batch_bytes`."""
    if not num_workers:
        for request in requests:
            pixels = _empty(len(request.positions), *request.shape)
            yield pixels, reader.read(request.positions, pixels.numpy())
        return
    pool = WorkerPool(reader=reader, batch_bytes=batch_bytes, num_workers=num_workers, prefetch=prefetch)
    try:
        waiting, tickets, count = iter(requests), deque(), 0
        while True:
            while pool.has_room and (request := next(waiting, None)) is not None:
                pool.submit(count, request)
                tickets.append(count)
                count += 1
            if not tickets:
                return
            ticket = tickets.popleft()
            shared, batch = pool.collect(ticket)
            pixels = _empty(*shared.shape).copy_(torch.from_numpy(shared))
            pool.release(ticket)
            yield pixels, batch
    finally:
        pool.close()


def collate(pixels: Tensor, clips: Sequence[Clip]) -> VideoBatch:
    """`video` is a view b 3 T H W in uint8: a quarter of the bytes to move; it becomes float [-1, 1] on the device."""
    batch: VideoBatch = {
        "video": pixels.permute(0, 4, 1, 2, 3),
        "caption": [clip.caption for clip in clips],
        "fps": torch.tensor([clip.fps for clip in clips], dtype=torch.float32),
        "key": [clip.key for clip in clips],
    }
    if clips[0].extras:
        batch["extras"] = {name: _stack([clip.extras[name] for clip in clips]) for name in clips[0].extras}
    return batch


def _stack(values: list[Any]) -> Tensor | list[Any]:
    """Arrays of one shape become a tensor; anything else stays a list, one entry a clip."""
    if all(isinstance(value, np.ndarray) and value.shape == values[0].shape for value in values):
        return torch.from_numpy(np.stack(values))
    return values


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
