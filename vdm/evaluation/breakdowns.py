"""Numbers of parts of the clips: by the number of events, by the length of the prompt, by the number of frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vdm.bounds import PositiveInt
from vdm.errors import ConfigError
from vdm.types import VideoBatch

UNKNOWN = "unknown"


class Events:
    """`extras[reads]` lists the events of a clip. Each of `counts` is a bin; the last one has that many or more.

    Clips with fewer events than the first are a bin of their own.
    """

    needs = "truth"

    def __init__(self, *, reads: str, counts: Sequence[int]):
        self.reads, self.counts = reads, _increasing(counts, "counts")
        self.unlisted = {f"<{self.counts[0]}", UNKNOWN}  # bins that are left out where they are empty

    @property
    def bins(self) -> list[str]:
        *exact, last = self.counts
        return [f"<{self.counts[0]}", *map(str, exact), f">={last}", UNKNOWN]

    def bins_of(self, batch: VideoBatch) -> list[str]:
        listed = batch.get("extras", {}).get(self.reads)
        return [self._bin(one) for one in (listed if listed is not None else [None] * len(batch["key"]))]

    def _bin(self, events: object) -> str:
        if not isinstance(events, list | tuple):
            return UNKNOWN
        count = len(events)
        if count < self.counts[0]:
            return f"<{self.counts[0]}"
        below = max(edge for edge in self.counts if edge <= count)
        return f">={below}" if below == self.counts[-1] else str(below)


class Words:
    """Words of the prompt: up to the first edge, from there to the next, and more than the last."""

    reads, needs = None, "captions"
    unlisted: frozenset[str] = frozenset()

    def __init__(self, *, edges: Sequence[int]):
        self.edges = _increasing(edges, "edges")

    @property
    def bins(self) -> list[str]:
        between = [f"{low + 1}-{high}" for low, high in pairwise(self.edges)]
        return [f"<={self.edges[0]}", *between, f">{self.edges[-1]}"]

    def bins_of(self, batch: VideoBatch) -> list[str]:
        return [self.bins[sum(len(caption.split()) > edge for edge in self.edges)] for caption in batch["caption"]]


class Frames:
    """The first so many frames of each clip, in which the network of a distance sees all of them."""

    reads, needs = None, ""

    def __init__(self, *, counts: Sequence[int], metrics: Sequence[str]):
        self.counts, self.metrics = _increasing(counts, "counts"), tuple(metrics)


def _increasing(numbers: Sequence[PositiveInt], name: str) -> tuple[int, ...]:
    if not numbers or numbers[0] < 1 or any(b <= a for a, b in pairwise(numbers)):
        raise ConfigError("bins need increasing numbers from 1", key=f"protocol.breakdowns.*.{name}", got=list(numbers))
    return tuple(numbers)
