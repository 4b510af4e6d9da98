"""Events grouped by time: a stage is a maximal run of events that overlap, and is over when the next stage begins."""

from __future__ import annotations

from collections.abc import Sequence

from data.shapes.script import Event

Stage = list[int]  # positions of events, in the order in which they begin


def overlap(a: Event, b: Event) -> bool:
    return a.start < b.end and b.start < a.end


def stages(events: Sequence[Event], among: Sequence[int] | None = None) -> list[Stage]:
    """Positions of events in maximal runs that overlap in time; a stage is over when the next begins."""
    found: list[Stage] = []
    end = 0
    for i in sorted(range(len(events)) if among is None else among, key=lambda i: (events[i].start, events[i].end)):
        if found and events[i].start < end:
            found[-1].append(i)
        else:
            found.append([i])
        end = max(end, events[i].end)
    return found
