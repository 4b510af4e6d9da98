"""Which rank the others wait for, and in what.

Ranks meet in every step, so all of them take the same time for it: what the slow one works longer, the others wait longer
behind it. In the order of a step the first phase in which one rank is late is therefore the cause, and what comes after is
waiting. A rank whose device is slow in everything shows up in no phase where ranks meet inside the phases (FSDP, ZeRO-3);
a small product that each computes by itself tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low

CAUSES = ("ema", "data_wait", "autoencoder", "encoding", "forward")  # before the gradients meet, in order
SLOWER = 1 / 3  # a device that takes half as long again; one product is short, and its time noisy
WORDS = {
    "ema": "averaging weights", "data_wait": "waiting for data", "autoencoder": "the autoencoder",
    "encoding": "encoding conditions", "forward": "the forward pass", "device": "computing: its device is slow",
}  # fmt: skip


@dataclass(frozen=True)
class Straggler:
    rank: int
    phase: str
    seconds: float  # of a step
    median: float
    share: float  # of a step that the others wait

    def __str__(self) -> str:
        times = f"{1000 * self.seconds:.3g} ms, the median {1000 * self.median:.3g} ms"
        return f"rank {self.rank} is the slowest in {WORDS[self.phase]} ({times}): {self.share:.0%} of a step"


def find_straggler(
    ranks: Sequence[Mapping[str, float]], probes: Sequence[float], *, step: float, threshold: float
) -> Straggler | None:
    """From seconds by phase of each rank, all of a step of `step` seconds; `probes` are seconds for the same product."""
    for phase in CAUSES:
        found = _latest(phase, [seconds.get(phase, 0.0) for seconds in ranks], step)
        if found.share > threshold:
            return found
    most, middle = max(probes), median_low(probes)
    share = 1 - middle / max(most, 1e-12)  # of a step that would last as long as the slowest device makes it
    slow = Straggler(list(probes).index(most), "device", most, middle, share)
    return slow if share > max(threshold, SLOWER) else None


def _latest(phase: str, seconds: Sequence[float], unit: float) -> Straggler:
    most, middle = max(seconds), median_low(seconds)
    return Straggler(seconds.index(most), phase, most, middle, (most - middle) / max(unit, 1e-12))
