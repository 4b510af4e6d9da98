"""The order of training samples as a pure function of (seed, position).

A position counts samples over the endless stream of epochs. Each epoch permutes the shards, cuts the row of all samples
into `lanes` stretches whose lengths differ by at most one, and deals the stretches out like cards: position p is the next
sample of lane p mod lanes. Within a lane, samples are shuffled in windows. Ranks, workers and the batch size appear
nowhere in this, so changing them changes who reads a sample, never which sample comes next. The lanes exist for locality:
ranks take positions modulo the world size, and where that divides the lanes, each rank reads one contiguous stretch of the
permuted shards and no other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vdm.errors import ConfigError, DataError

MAX_LANES = 8192  # 1,024 ranks with 8 lanes each; more lanes only mean more open files
_SHARD_ORDER, _WINDOW_ORDER = 1, 2  # keep the random streams apart: seeds that differ by trailing zeros are one seed
_CACHED_WINDOWS = 1024


class Place(NamedTuple):
    """Where a sample lies, and in which epoch it is asked for."""

    epoch: int
    shard: int
    index: int  # of the sample within its shard


class ShardPlan:
    """Shuffled and endless. Costs a few numbers per shard; nothing is listed per sample."""

    def __init__(self, *, counts: Sequence[int], seed: int, shuffle_window: int, lanes: int | None):
        self.counts = np.asarray(counts, dtype=np.int64)
        self.num_samples = int(self.counts.sum())
        if not self.num_samples:
            raise DataError("the shards hold no samples", remedy="prepare the dataset again")
        self.lanes = default_lanes(min(len(self.counts), self.num_samples)) if lanes is None else lanes
        self.seed, self.shuffle_window = seed, shuffle_window
        if not 1 <= self.lanes <= self.num_samples:
            raise ConfigError(
                "that many lanes do not fit", key="data.lanes", got=lanes, allowed=f"1..{self.num_samples}"
            )
        # The first num_samples % lanes lanes are one longer, so that the last, incomplete round visits exactly those.
        self._lengths = self.num_samples // self.lanes + (np.arange(self.lanes) < self.num_samples % self.lanes)
        stretch = _stretch_of_lane(self.lanes)
        ends = np.cumsum(self._lengths[np.argsort(stretch)])
        self._starts = (ends - self._lengths[np.argsort(stretch)])[stretch]
        self._epochs: OrderedDict[int, tuple[list[int], list[int]]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def locate(self, position: int) -> Place:
        """The sample at a position of the endless stream."""
        epoch, step = divmod(position, self.num_samples)
        row, lane = divmod(step, self.lanes)
        window, offset = divmod(row, self.shuffle_window)
        order = self._window(epoch, lane, window)
        place = int(self._starts[lane]) + window * self.shuffle_window + int(order[offset])
        shards, starts = self._epoch(epoch)
        nth = bisect_right(starts, place) - 1
        return Place(epoch, shards[nth], place - starts[nth])

    def substitute(self, position: int, attempt: int) -> int:
        """Where to look instead when the sample at a position is broken: further along the same lane.

        Not the very next sample of the lane when lanes are few: a batch would then hold it twice.
        """
        distance = self.lanes * -(-512 // self.lanes)
        return position + attempt * distance

    def _epoch(self, epoch: int) -> tuple[list[int], list[int]]:
        if epoch not in self._epochs:
            shards = _permutation(len(self.counts), [self.seed, _SHARD_ORDER, epoch])
            counts = self.counts[shards]
            self._epochs[epoch] = shards.tolist(), (np.cumsum(counts) - counts).tolist()
            if len(self._epochs) > 3:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _window(self, epoch: int, lane: int, window: int) -> np.ndarray:
        key = epoch, lane, window
        if key not in self._windows:
            size = min(self.shuffle_window, int(self._lengths[lane]) - window * self.shuffle_window)
            self._windows[key] = _permutation(size, [self.seed, _WINDOW_ORDER, *key]).astype(np.uint32)
            if len(self._windows) > _CACHED_WINDOWS:
                self._windows.popitem(last=False)
        return self._windows[key]


class SequentialPlan:
    """The first `limit` samples in stored order, for validation."""

    def __init__(self, *, counts: Sequence[int], limit: int):
        self._ends = np.cumsum(counts).tolist()
        self._starts = [0, *self._ends[:-1]]
        self.stored = self._ends[-1]
        self.num_samples = min(limit, self.stored)

    def locate(self, position: int) -> Place:
        nth = bisect_right(self._starts, position % self.stored) - 1
        return Place(0, nth, position % self.stored - self._starts[nth])

    def substitute(self, position: int, attempt: int) -> int:
        """A sample beyond the first `limit`, as far as there are any."""
        return position + attempt * self.num_samples


def rank_positions(start: int, *, batch_size: int, rank: int, world_size: int) -> range:
    """Positions of one rank's batch when the global batch begins at `start`: all ranks together take a contiguous run."""
    return range(start + rank, start + batch_size * world_size, world_size)


def default_lanes(num_shards: int) -> int:
    """A power of two, so that the usual world sizes divide it; never more than there are shards."""
    return 2 ** (min(num_shards, MAX_LANES).bit_length() - 1)


def _stretch_of_lane(lanes: int) -> np.ndarray:
    """Digit reversal: lanes that are equal modulo a world size become neighbours, so a rank reads one run of shards."""
    stretch, block = np.zeros(1, dtype=np.int64), lanes
    for factor in _prime_factors(lanes):
        block //= factor
        stretch = (stretch[None, :] + block * np.arange(factor)[:, None]).reshape(-1)
    return stretch


def _prime_factors(number: int) -> list[int]:
    """Largest first: with 48 lanes, 3, 6, 12, 24 and 48 ranks each read one run."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors[::-1]


def _permutation(size: int, seed: list[int]) -> np.ndarray:
    """By sorting raw bits: numpy promises these never change between versions, and of `permutation` it does not."""
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")
