"""Metrics that keep one row a clip under the clip's key: whoever saw a clip, how often and in what batch changes nothing.

Samplers of several processes repeat clips until the batches are even; the copies are dropped by key here. Rows are sorted by a
hash of their key before anything is computed, so splits and draws are the same for every order and number of processes.
"""

from __future__ import annotations

import hashlib
import logging
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from vdm.evaluation.base import VideoMetric
from vdm.types import VideoBatch

log = logging.getLogger(__name__)

ENOUGH = 2048  # clips of the published numbers; with fewer, distances are visibly too large


class Skipped(Exception):
    """Why a metric has no number. The evaluation goes on and says so."""


class KeyedMetric(VideoMetric):
    """Rows of one or two sides, `made` and `real`. `skipped` says after `compute` why there is no number."""

    sides: tuple[str, ...] = ("made",)

    def __init__(self):
        super().__init__(dist_sync_fn=gathered)
        self.skipped: str | None = None
        self.counts: dict[str, int] = {}  # distinct clips a side, after compute
        self._unavailable: str | None = None
        self._part: frozenset[tuple[int, int]] | None = None  # of the clips, by the digests of their keys
        self._order: list[tuple[int, int]] = []  # whose rows were given last
        self.add_state("absent", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        for side in self.sides:
            self.add_state(f"{side}_keys", [], dist_reduce_fx="cat")
            self.add_state(f"{side}_rows", [], dist_reduce_fx="cat")
            self.add_state(f"{side}_shapes", [], dist_reduce_fx="cat")

    def update(self, video: Tensor, batch: VideoBatch) -> None:
        assert video.dtype == torch.uint8, "clips are measured in 8 bit"
        if self._unavailable is None:
            try:
                self.see(video, batch)
            except Skipped as reason:
                self._unavailable = str(reason)
        if self._unavailable is not None:
            self.absent.fill_(1)

    def compute(self) -> dict[str, float]:
        self.skipped, numbers = self._unavailable, {}
        if self.skipped is None and int(self.absent):
            self.skipped = "it is not available in another process of this evaluation, whose log says why"
        if self.skipped is None:
            try:
                numbers = self.numbers()
            except Skipped as reason:
                self.skipped = str(reason)
        return numbers

    def reset(self) -> None:
        super().reset()
        self.skipped, self._unavailable, self.counts = None, None, {}

    @property
    def is_part(self) -> bool:
        """Whether numbers are those of a part of the clips: under plain names, without what stands beside a distance."""
        return self._part is not None

    def numbers_of_parts(self, parts: Iterable[Sequence[str]]) -> list[dict[str, float]]:
        """The numbers of the clips with these keys, for each part. Every process has to ask for the same parts."""
        with self.sync_context(dist_sync_fn=gathered):
            return [self._numbers_of(keys) for keys in parts]

    def _numbers_of(self, keys: Sequence[str]) -> dict[str, float]:
        if self.skipped is not None or not keys:
            return {}
        with self._only(keys):
            try:
                return self.numbers()
            except Skipped:  # too few clips
                return {}

    @contextmanager
    def _only(self, keys: Sequence[str]) -> Iterator[None]:
        counts = dict(self.counts)
        self._part = frozenset(map(tuple, digests(keys).tolist()))
        try:
            yield
        finally:
            self._part, self.counts = None, counts

    def parted(self, side: str) -> bool:
        """Whether a part is also a part of this side."""
        return True

    @abstractmethod
    def see(self, video: Tensor, batch: VideoBatch) -> None:
        """`keep` rows of a batch; raise Skipped where there will be no number."""

    @abstractmethod
    def numbers(self) -> dict[str, float]:
        """From all `rows`."""

    def facts(self) -> dict[str, Any]:
        """What somebody needs to know beside the numbers to compute them again."""
        return {"clips": self.counts.get("made", 0)} | (
            {"real_clips": self.counts.get("real", 0)} if "real" in self.sides else {}
        )

    def keep(self, side: str, keys: Sequence[str], rows: Tensor, video: Tensor) -> None:
        """Rows of the clips of a side, and the frames and size `T H W` that were looked at."""
        assert len(keys) == len(rows), "one row a clip"
        getattr(self, f"{side}_shapes").append(torch.tensor([video.shape[-3:]]))
        getattr(self, f"{side}_keys").append(digests(keys))
        getattr(self, f"{side}_rows").append(rows.detach().cpu())

    def shapes(self, side: str = "made") -> list[tuple[int, int, int]]:
        """All T H W of the clips that were seen."""
        kept = getattr(self, f"{side}_shapes")
        return sorted({tuple(row) for row in dim_zero_cat(kept).tolist()}) if len(kept) else []

    def rows(self, side: str = "made") -> Tensor:
        """One row of each distinct clip, in the order of the hashes, in float64."""
        kept = getattr(self, f"{side}_keys")
        if not len(kept):
            raise Skipped(f"no {side} clips were seen")
        keys, rows = dim_zero_cat(kept).cpu().numpy(), dim_zero_cat(getattr(self, f"{side}_rows"))
        _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        found = rows[torch.from_numpy(first)].double()
        if len(rows) > len(first):
            apart = (rows.double() - found[torch.from_numpy(which.reshape(-1))]).abs().flatten(1).amax(1)
            if others := int((apart > 0.05 * found.nan_to_num().std()).sum()):
                log.warning("%d clips share a key with a different clip and do not count", others)
        self._order = list(map(tuple, keys[first].tolist()))
        if self._part is not None and self.parted(side):
            inside = [position for position, key in enumerate(self._order) if key in self._part]
            found, self._order = found[inside], [self._order[position] for position in inside]
        self.counts[side] = len(found)
        if not len(found):
            raise Skipped(f"no {side} clips are in this part")
        if found.isinf().any():
            raise Skipped("a feature or value is not finite")
        return found


class PerClip(KeyedMetric):
    """The mean over clips of numbers that each clip has for itself; NaN where a clip has none."""

    of_originals = True  # the clips the captions belong to are measured beside the made ones
    _table: dict[tuple[int, int], list[float]] = {}

    @abstractmethod
    def columns(self) -> list[str]:
        """Of the columns of a row."""

    def numbers(self) -> dict[str, float]:
        rows = self.rows()  # n k
        if not self.is_part:
            self._table = dict(zip(self._order, rows.tolist(), strict=True))
        known = ~rows.isnan()
        sums, counts = torch.where(known, rows, 0.0).sum(0), known.sum(0)
        found = {n: (s / c).item() for n, s, c in zip(self.columns(), sums, counts, strict=True) if c}
        if not found:
            raise Skipped("no clip is long enough to have a value")
        return found

    def scores(self, keys: Sequence[str]) -> list[dict[str, float]]:
        """After compute: the numbers of each of these clips, those that it has."""
        names = self.columns() if self._table else []
        rows = [self._table.get(tuple(digest), []) for digest in digests(keys).tolist()]
        return [{n: v for n, v in zip(names, row, strict=False) if not math.isnan(v)} for row in rows]


def digests(keys: Sequence[str]) -> Tensor:
    """b 2 in int64: 128 bits of each key."""
    whole = b"".join(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest() for key in keys)
    return torch.from_numpy(np.frombuffer(whole, dtype="<i8").reshape(len(keys), 2).copy())


def gathered(tensor: Tensor, group: Any = None) -> list[Tensor]:
    """The tensor of every process, any sizes, also where a process saw nothing."""
    found: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(found, tensor.detach().cpu(), group=group)
    if tensor.ndim == 0:
        return [one.to(tensor.device) for one in found]
    # The stand-in of an empty state has another type and number of dimensions than what others bring.
    return [one.to(tensor.device) for one in found if one.numel()] or [tensor]


def warn_if_few(name: str, clips: int) -> None:
    if clips < ENOUGH:
        log.warning(
            "%s: %d clips. Published numbers are of %d; with fewer the distance is too large and the score too small, so "
            "compare it with numbers of the same count only.", name, clips, ENOUGH,
        )  # fmt: skip
