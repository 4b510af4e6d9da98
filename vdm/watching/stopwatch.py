"""Seconds by phase. On a GPU the time is that of its own stream, by events: nothing waits for it until somebody reads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch


class Stopwatch:
    """An observer of phases."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._seconds: Counter[str] = Counter()
        self._phase, self._since = "other", clock()

    def __call__(self, phase: str) -> None:
        now = self._clock()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def read(self) -> dict[str, float]:
        """Seconds by phase since it was last read; they add up to all of it."""
        self(self._phase)
        seconds, self._seconds = dict(self._seconds), Counter()
        return seconds


class CudaStopwatch(Stopwatch):
    """A phase lasts as long as the GPU was busy with what it launched, or had to wait for it."""

    LIMIT = 4096  # events that are kept; half of them are then read, which are long past

    def __init__(self, *, event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True)):
        self._event = event
        self._seconds: Counter[str] = Counter()
        self._marks = [("other", self._mark())]  # what begins, and when

    def __call__(self, phase: str) -> None:
        self._marks.append((phase, self._mark()))
        if len(self._marks) > self.LIMIT:
            self._fold(self.LIMIT // 2)

    def read(self) -> dict[str, float]:
        self(self._marks[-1][0])
        self._fold(len(self._marks) - 1)
        seconds, self._seconds = dict(self._seconds), Counter()
        return seconds

    def _mark(self) -> Any:
        event = self._event()
        event.record()
        return event

    def _fold(self, count: int) -> None:
        self._marks[count][1].synchronize()
        for (phase, begin), (_, end) in zip(self._marks[:count], self._marks[1 : count + 1], strict=True):
            self._seconds[phase] += begin.elapsed_time(end) / 1000
        del self._marks[:count]


def stopwatch_for(device: torch.device) -> Stopwatch:
    return CudaStopwatch() if device.type == "cuda" else Stopwatch()
