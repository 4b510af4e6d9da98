"""Which part of a step is running: every moment belongs to one phase, so the phases of a step add up to the step.

A stage and its callbacks say `with stage.phases("backward"):` around their work. Whoever wants to know (a stopwatch, a
ledger of memory) observes the changes; without observers a change costs a microsecond. Each change is a sign of life.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# In the order of a step, which begins where the step before has met the other ranks.
ORDER = (
    "ema", "validation", "checkpoint", "samples", "data_wait", "autoencoder", "encoding", "forward", "backward",
    "optimizer", "logging", "other",
)  # fmt: skip
OTHER = "other"


class Phases:
    """Phases may stand inside each other: time belongs to the innermost."""

    def __init__(self) -> None:
        self._running = [OTHER]
        self.observers: list[Callable[[str], None]] = []  # called with the phase that begins
        self.alive()

    @property
    def current(self) -> str:
        return self._running[-1]

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._running.append(name)
        self._changed()
        try:
            yield
        finally:
            self._running.pop()
            self._changed()

    def outside(self, name: str) -> None:
        """The phase of everything that stands in no other."""
        self._running[0] = name
        self._changed()

    def alive(self) -> None:
        """A sign of life, from work that takes long and changes no phase."""
        self.last_sign = time.monotonic()

    def _changed(self) -> None:
        self.alive()
        for observer in self.observers:
            observer(self._running[-1])

    def __deepcopy__(self, memo: dict[int, Any]) -> Phases:
        return Phases()  # nobody observes a copy
