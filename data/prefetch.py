"""Fetches the remote shards that a rank will need next, in the background, in the order in which it will need them.

The order of samples is known for ever, so looking ahead costs arithmetic. A shard that is being fetched here is waited for by the
workers that want it, and fetched by nobody twice. What goes wrong here is not said: whoever needs the shard meets it again.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Callable

from data.plan import ShardPlan
from data.shard_cache import ShardCache
from data.shards import ShardIndex
from vdm.errors import UserError

log = logging.getLogger(__name__)

_IDLE = 0.2  # seconds between looks at how far training has come


class Prefetcher:
    """A thread that stays `cache.ahead` samples of its rank ahead of what `consumed` says, which counts those of all ranks."""

    def __init__(
        self,
        *,
        index: ShardIndex,
        cache: ShardCache,
        plan: ShardPlan,
        rank: int,
        world_size: int,
        consumed: Callable[[], int],
    ):
        self.index, self.cache, self.consumed = index, cache, consumed
        self.rank, self.world_size = rank, world_size
        self.plan = copy.deepcopy(plan)  # it remembers what it was asked, and two threads must not do that at once
        self._known: dict[int, int] = {}  # shard -> position where it was seen last
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def start(self) -> None:
        """Begin at the samples that come next."""
        if self.cache.ahead:
            self._thread.start()

    def stop(self) -> None:
        """Without waiting: a fetch in work ends by itself."""
        self._is_over.set()

    def _run(self) -> None:
        position = self.consumed() + self.rank
        is_first = True
        while not self._is_over.is_set():
            limit = self.consumed() + self.cache.ahead * self.world_size
            if position >= limit:
                if is_first:
                    self._warn_if_narrow()
                    is_first = False
                self._is_over.wait(_IDLE)
                continue
            self._want(self.plan.locate(position).shard, position)
            position += self.world_size

    def _want(self, shard: int, position: int) -> None:
        seen, self._known[shard] = self._known.get(shard), position
        if seen is not None and position - seen <= self.cache.ahead * self.world_size:
            return  # in use; after a longer time it may have left the cache
        with contextlib.suppress(UserError):
            self.cache.path(self.index.path(shard), self.index.shards[shard])

    def _warn_if_narrow(self) -> None:
        """Shards that push each other out are fetched again and again."""
        needed = sum(self.index.shards[shard].bytes for shard in self._known)
        if needed > self.cache.max_bytes:
            log.warning(
                "the next %d samples lie in %d shards of %.1f GB together, and the cache holds %.1f GB: raise "
                "data.cache.gigabytes, or set fewer data.lanes",
                self.cache.ahead, len(self._known), needed / 1e9, self.cache.max_bytes / 1e9,
            )  # fmt: skip
