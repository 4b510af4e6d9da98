"""Buckets: training batches of several frame counts, sizes and aspect ratios in one run, still images among them.

A batch is of one bucket, drawn by weight from the seed and the position at which the batch begins. All ranks are at the
same position, so they draw the same bucket and do equal work, and a resumed run draws on as it would have. Which sample
comes next has nothing to do with buckets: the order of data/plan.py is dealt out in portions of the buckets' batch sizes.
Light, because settings are checked before anything heavy is imported.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from vdm.bounds import BOUNDS, PositiveFloat, PositiveInt
from vdm.errors import ConfigError, suggest

if TYPE_CHECKING:
    from data.samples import ClipSettings


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Batches of one shape. One frame is an image."""

    frames: PositiveInt
    height: PositiveInt
    width: PositiveInt
    weight: PositiveFloat  # share of the batches, relative to the other buckets
    batch_size: PositiveInt  # per rank

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.frames, self.height, self.width, 3


def buckets_are_right(*, buckets: Sequence[dict] | None) -> None:
    """Named by `checks` in conf/."""
    buckets_of(buckets)


def buckets_of(settings: Sequence[Mapping[str, Any]] | None) -> tuple[Bucket, ...]:
    """The setting `data.buckets`, checked. None: no buckets."""
    if settings is None:
        return ()
    if not settings:
        remedy = "data.buckets=null trains on clips of data.clip"
        raise ConfigError("a list of buckets without a bucket", key="data.buckets", got="[]", remedy=remedy)
    return tuple(_bucket(entry, f"data.buckets[{number}]") for number, entry in enumerate(settings))


def bucket_at(buckets: Sequence[Bucket], *, seed: int, position: int) -> Bucket:
    """The bucket of the batch whose first sample, over all ranks, is at this position."""
    digest = hashlib.blake2b(f"{seed}/bucket/{position}".encode(), digest_size=8).digest()
    ends = list(accumulate(bucket.weight for bucket in buckets))
    drawn = bisect_right(ends, int.from_bytes(digest, "little") / 2**64 * ends[-1])
    return buckets[min(drawn, len(buckets) - 1)]


def largest(clip: ClipSettings, buckets: Sequence[Bucket]) -> ClipSettings:
    """What a stored clip must have room for. Whether it is broken must not depend on the bucket that it comes up in."""
    sizes = {name: max(getattr(one, name) for one in (clip, *buckets)) for name in ("frames", "height", "width")}
    return replace(clip, **sizes)


def _bucket(entry: Mapping[str, Any], key: str) -> Bucket:
    known = {field.name: field.type for field in fields(Bucket)}
    if not isinstance(entry, Mapping):
        raise ConfigError("a bucket is a group of settings", key=key, got=entry, allowed=f"{{{', '.join(known)}}}")
    for name in entry:
        if name not in known:
            remedy = suggest(str(name), known) or "remove it"
            raise ConfigError("a bucket has no such setting", key=key, got=name, allowed=known, remedy=remedy)
    for name, bound in known.items():
        base, is_within, words = BOUNDS[bound]
        if name not in entry:
            raise ConfigError(f"a bucket needs its {name}", key=key, got=dict(entry), allowed=words)
        value = entry[name]
        is_number = isinstance(value, int if base is int else int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not is_within(value):
            raise ConfigError("a bucket cannot take this value", key=f"{key}.{name}", got=repr(value), allowed=words)
    return Bucket(**entry)
