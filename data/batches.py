"""Fills one batch with good clips, whatever the samples at its positions are like.

A broken sample is replaced by another one of its lane, by position alone, so that every worker of every run finds the same
substitute. Reading happens in a thread beside the calling one, because a decoder may never return: it is then left
behind, its result discarded, and the batch goes on from the next candidate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from data.plan import Place, SequentialPlan, ShardPlan
from data.quarantine import Broken
from data.reader import BrokenSample, ShardReader
from data.samples import Clip, ClipReader
from vdm.errors import DataError

ATTEMPTS = 100  # at a rate of one half broken, that many in a row never happen


class Request(NamedTuple):
    """A batch to be read."""

    positions: Sequence[int]
    shape: tuple[int, int, int, int]  # T H W 3 of its clips


@dataclass
class Batch:
    """What is known of a batch besides its pixels, which are in the array that was filled."""

    clips: list[Clip]  # their `frames` are gone
    broken: list[Broken] = field(default_factory=list)
    hung: int = 0  # threads left behind


class BatchReader:
    """Reads the clips at given positions. Picklable: a worker process gets its own."""

    def __init__(
        self, *, plan: ShardPlan | SequentialPlan, shards: ShardReader, clips: ClipReader, sample_timeout: float | None
    ):
        self.plan, self.shards, self.clips, self.sample_timeout = plan, shards, clips, sample_timeout
        self._shard_numbers = {info.file: number for number, info in enumerate(shards.index.shards)}
        self.avoid: dict[tuple[int, int], Broken] = {}  # known broken: (shard, index)

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Of clips that are not cut to a bucket, T H W 3."""
        clip = self.clips.clip
        return clip.frames, clip.height, clip.width, 3

    def mark(self, broken: Broken) -> bool:
        """Never read this sample again. True when that is news."""
        shard = self._shard_numbers.get(broken.shard)
        if shard is None or (shard, broken.index) in self.avoid:
            return False
        self.avoid[shard, broken.index] = broken
        return True

    def describe(self, place: Place, kind: str, detail: str) -> Broken:
        """A quarantine entry for a sample that could not be asked itself."""
        try:
            key, _ = self.shards.read(place.shard, place.index, ())
        except BrokenSample:
            key = None
        return Broken(self.shards.index.shards[place.shard].file, place.index, key, kind, detail)

    def read(
        self,
        positions: Sequence[int],
        out: np.ndarray,  # b T H W 3, uint8
        on_sample: Callable[[int], None] = lambda position: None,
    ) -> Batch:
        """Fill `out`, whose shape says how clips are cut. `on_sample` hears each position when decoding begins, and -1 when
        it has ended.
        """
        reading = _Reading(self, positions, out, on_sample)
        if self.sample_timeout is None:
            reading.run()
        else:
            reading.run_watched(self.sample_timeout)
        if reading.error is not None:
            raise reading.error
        return reading.batch


class _Reading:
    """One batch in the making. Whoever holds the lock and the current turn may write; an abandoned thread has no turn."""

    def __init__(
        self, reader: BatchReader, positions: Sequence[int], out: np.ndarray, on_sample: Callable[[int], None]
    ):
        self.reader, self.positions, self.out, self.on_sample = reader, positions, out, on_sample
        self.clips = reader.clips.cut_to(*out.shape[1:4])
        self.batch = Batch([])
        self.error: BaseException | None = None
        self.lock, self.done = threading.Lock(), threading.Event()
        self.turn, self.attempt = 0, 0
        self.current: Place | None = None
        self.started = time.monotonic()

    def run_watched(self, timeout: float) -> None:
        self._start()
        remaining = timeout
        while not self.done.wait(remaining):
            with self.lock:
                place, remaining = self.current, timeout
                if place is not None:
                    remaining = self.started + timeout - time.monotonic()
                if self.done.is_set() or remaining > 0:
                    continue
                self.turn += 1
                self.current = None
                self.on_sample(-1)
            # The thread left behind may still use the open files: the next one gets its own.
            self.reader.shards = self.reader.shards.reopened()
            self.batch.hung += 1
            self._skip(place, self.reader.describe(place, "decoder hung", f"no clip within {timeout:g} s"))
            self._start()
            remaining = timeout

    def run(self, turn: int = 0) -> None:
        """Every position in order, each until a good clip is found."""
        try:
            while len(self.batch.clips) < len(self.positions):
                if self._one(turn):
                    return
        except BaseException as error:  # handed to the thread that asked for the batch
            with self.lock:
                if self.turn == turn:
                    self.error = error
        finally:
            with self.lock:
                if self.turn == turn:
                    self.done.set()

    def _start(self) -> None:
        threading.Thread(target=self.run, args=(self.turn,), name="read-batch", daemon=True).start()

    def _one(self, turn: int) -> bool:
        """One candidate for the next row; True when this thread has been left behind."""
        reader, row = self.reader, len(self.batch.clips)
        if self.attempt >= ATTEMPTS:
            rows = "\n".join(
                f"  {broken.key or broken.index} in {broken.shard}: {broken.reason}"
                for broken in self.batch.broken[-3:]
            )
            raise DataError(f"{ATTEMPTS} broken samples in a row, such as\n{rows}", key="data.root",
                            got=reader.shards.index.folder, remedy="mend or prepare the data again")  # fmt: skip
        position = self.positions[row]
        if self.attempt:
            position = reader.plan.substitute(position, self.attempt)
        place, key = reader.plan.locate(position), None
        broken = reader.avoid.get((place.shard, place.index))
        clip = None
        if broken is None:
            try:
                key, members = reader.shards.read(place.shard, place.index, self.clips.extensions)
                # Only decoding is timed: slow storage is no sample's fault.
                with self.lock:
                    if self.turn != turn:
                        return True
                    self.current, self.started = place, time.monotonic()
                    self.on_sample(position)
                clip = self.clips.read(key, members, place.epoch)
            except BrokenSample as error:
                file = reader.shards.index.shards[place.shard].file
                broken = Broken(file, place.index, error.key or key, error.kind, error.detail)
        with self.lock:
            if self.turn != turn:
                return True
            self.current = None
            self.on_sample(-1)
            if clip is None:
                self._skip(place, broken)
            else:
                self.out[row] = clip.frames
                clip.frames = None
                self.batch.clips.append(clip)
                self.attempt = 0
        return False

    def _skip(self, place: Place, broken: Broken) -> None:
        self.reader.avoid[place.shard, place.index] = broken
        self.batch.broken.append(broken)
        self.attempt += 1
