"""Sentences with their times, as the truths of a clip: an action plan in ticks, its scenes, and the time of each frame.

They have the form that the shapes world stores: `plan` [[agent, predicate, target or null, [start, end]], ...], `scenes`
with the events that each sentence tells, and `frame_ticks`. A tick is the atomic interval v of Dysen-VDM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vdm.errors import PlanError

MAX_EVENTS = 64  # of a plan
_NUM_TIMES = 4096  # frames of a clip whose times are stored; longer clips have none

Reader = Callable[[str], Any]
Event = tuple[str, str, str | None]  # agent, predicate, target


@dataclass(frozen=True, slots=True)
class Span:
    """A sentence and the seconds of the clip that it tells; they may reach beyond it."""

    number: int
    text: str
    start: float
    end: float


def timed_plan(
    spans: Sequence[Span], seconds: float, *, ticks: int | None, frames: int, fps: float | None, reader: Reader | None
) -> dict[str, Any]:
    """The truths of a clip of `seconds` (may be infinite: not known).

    With `ticks` the clip is divided into so many, at most one for a frame, and an event lasts as long as its sentence. None:
    one sentence, which is all of the clip; its events follow each other as it tells them.
    """
    if ticks is None:
        plan = _own_plan(spans[0].text, reader)
        length = max((event[3][1] for event in plan), default=1)
        places = [(0, length)]
        told = [list(range(len(plan)))]
        length += 1  # the graph at the last tick has its share of the frames, as the others
    else:
        length = max(1, min(ticks, math.ceil(seconds * (fps or math.inf)) if math.isfinite(seconds) else ticks))
        places = [_placed(span, seconds, length) for span in spans]
        plan, told = _joined_plan(spans, places, reader)
    scenes = [
        {
            "start": start,
            "end": end,
            "events": events,
            "caption": span.text,
            "seconds": [round(max(span.start, 0.0), 3), round(min(span.end, seconds), 3)],
        }
        for span, (start, end), events in zip(spans, places, told, strict=True)
    ]
    truths: dict[str, Any] = {"scenes": scenes} | ({"plan": plan} if plan else {})
    if fps is not None and math.isfinite(seconds) and frames <= _NUM_TIMES:
        truths["frame_ticks"] = [round(frame / fps / seconds * length, 4) for frame in range(frames)]
    return truths


def _placed(span: Span, seconds: float, length: int) -> tuple[int, int]:
    """The ticks of a sentence: at least one."""
    start = min(math.floor(max(span.start, 0.0) / seconds * length + 0.5), length - 1)
    end = math.floor(min(span.end, seconds) / seconds * length + 0.5)
    return start, max(end, start + 1)


def _own_plan(text: str, reader: Reader | None) -> list[list[Any]]:
    read = None if reader is None else _read(text, reader)
    return [] if read is None else read[:MAX_EVENTS]


def _joined_plan(
    spans: Sequence[Span], places: Sequence[tuple[int, int]], reader: Reader | None
) -> tuple[list[list[Any]], list[list[int]]]:
    """One plan, and for each sentence which events of it are told there."""
    if reader is None:
        return [], [[] for _ in spans]
    numbers: dict[tuple[Event, tuple[int, int]], int] = {}
    told: list[list[int]] = []
    for events, place in zip(_events(spans, reader), places, strict=True):
        mine: list[int] = []
        for event in events:
            if (event, place) not in numbers and len(numbers) == MAX_EVENTS:
                continue
            mine.append(numbers.setdefault((event, place), len(numbers)))
        told.append(list(dict.fromkeys(mine)))
    return [[*event, list(place)] for event, place in numbers], told


def _events(spans: Sequence[Span], reader: Reader) -> list[list[Event]]:
    """The events of each sentence, read in the light of those before it, so that "he" is who was named there."""
    texts = [span.text for span in spans]
    counts, joint, grows = [0], [], True
    for count in range(1, len(texts) + 1):
        before = [event[1] for event in joint]
        joint = _plain(_read(" ".join(texts[:count]), reader))
        grows &= [event[1] for event in joint[: len(before)]] == before
        counts.append(len(joint))
    found = (
        [joint[first:last] for first, last in zip(counts, counts[1:], strict=False)] if grows else [[] for _ in texts]
    )
    return [events or _plain(_read(text, reader)) for events, text in zip(found, texts, strict=True)]


def _plain(events: list[list[Any]]) -> list[Event]:
    return [(agent, predicate, target) for agent, predicate, target, _ in events]


def _read(text: str, reader: Reader) -> list[list[Any]]:
    try:
        plan = reader(text).plan
    except PlanError:
        return []
    return [] if plan is None else plan.to_json()
