"""Judge a video of the shapes world from its pixels: what is in it, what happens, in which order.

`describe` measures a video without knowing what it should show; `compare` holds the description against a script. The
same description serves every script it is compared with, so a wrong script cannot bend the measurement.

What it cannot see. A thing that does nothing and a thing that is told to stay look alike: every rest of a thing that is
in sight is read as "stay". Discs and rings have no angle. Which of two things is in front is not judged, nor are ground
and texture. A thing is found by its colour: two of one colour are one thing, and a colour outside the palette is read
as the nearest one or as ground. A thing in sight with less than a tenth of its area counts as gone. A turn of more
than half a shape's period a frame cannot be told from a turn the other way, and the eye does not judge the sense of a
turn or an orbit. A straight way along one of the eight directions is a plain move even if something lies ahead.
A thing on its way out and back within a tick, or switched off between two frames, leaves no trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from data.shapes.fitting import Track, follow
from data.shapes.motion import RADII
from data.shapes.reading import read
from data.shapes.script import Event, Script, Thing, kind, ordered_pairs
from data.shapes.seeing import find
from vdm.errors import DataError

MISFIT = 0.3  # above this mean squared misfit a patch of colour is not one of the shapes
ON_TIME = 1  # ticks by which a timely event may start or end early or late


@dataclass(frozen=True)
class Description:
    """What was seen: things as a script has them, and events whose agents and targets are positions in `things`."""

    things: tuple[Thing, ...]
    events: tuple[Event, ...]
    ticks: int
    tracks: tuple[Track, ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Scores:
    """How well one video shows one script; each in [0, 1], None where the script asks no such thing.

    colour: colours in both, over colours in either. shape, size: share of the script's things that are there, by
    colour, with this shape or size. action: share of the script's events that were seen at any time, by the same agent
    and on the same target, each seen event counted once. timing: those that also start and end on time. order: share of
    the pairs of events with one definite order (one is over when the other begins) that were both seen, in that order.
    """

    colour: float
    shape: float
    size: float
    action: float
    timing: float
    order: float | None
    seen: tuple[bool, ...]  # for each event of the script


def describe(video: np.ndarray, ticks: int) -> Description:
    """Measure a video T H W 3 in uint8 whose frames spread evenly over `ticks` ticks."""
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
        raise DataError("not a video", got=f"{video.shape} {video.dtype}", allowed="T H W 3 in uint8")
    tracks = [track for track in follow(find(video)) if track.error < MISFIT]
    scale = max(video.shape[1:3])
    things = tuple(Thing(f"{t.colour} {t.shape}", t.colour, t.shape, _size_word(t, scale)) for t in tracks)
    return Description(things, tuple(read(tracks, ticks, scale)), ticks, tuple(tracks))


def _size_word(track: Track, scale: int) -> str:
    """Size when it is first seen."""
    radius = track.radius[track.visible][0] / scale
    return min(RADII, key=lambda size: abs(np.log(RADII[size] / radius)))


def compare(seen: Description, script: Script) -> Scores:
    """Hold a description against a script."""
    by_colour = {thing.colour: thing for thing in seen.things}
    asked = {thing.colour for thing in script.things}
    matches = _match(seen, script)
    found = [match is not None for match in matches]
    pairs = ordered_pairs(script.events)
    kept = [found[i] and found[j] and _is_before(matches[i], matches[j]) for i, j in pairs]
    return Scores(
        colour=len(asked & by_colour.keys()) / len(asked | by_colour.keys()),
        shape=_mean(t.colour in by_colour and by_colour[t.colour].shape == t.shape for t in script.things),
        size=_mean(t.colour in by_colour and by_colour[t.colour].size == t.size for t in script.things),
        action=_mean(found),
        timing=_mean(m is not None and _is_timely(m, e) for m, e in zip(matches, script.events, strict=True)),
        order=_mean(kept) if pairs else None,
        seen=tuple(found),
    )


def score(video: np.ndarray, script: Script) -> Scores:
    """How well a video T H W 3 in uint8 shows a script."""
    return compare(describe(video, script.ticks), script)


def _mean(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _is_timely(seen: Event, asked: Event) -> bool:
    return abs(seen.start - asked.start) <= ON_TIME and abs(seen.end - asked.end) <= ON_TIME


def _is_before(a: Event, b: Event) -> bool:
    """a is over when b begins; half of the shorter one may overlap, since a frame's rounding can move an end."""
    return min(a.end, b.end) - b.start <= min(a.end - a.start, b.end - b.start) / 2 and a.start < b.start


def _match(seen: Description, script: Script) -> list[Event | None]:
    """A different seen event for each asked one that was seen: same agent, action and target, the nearest in time."""

    def role(things: tuple[Thing, ...], e: Event) -> tuple[str, str, str | None]:
        return things[e.agent].colour, e.action, None if e.target is None else things[e.target].colour

    asked: dict[tuple, list[int]] = {}
    for i, e in enumerate(script.events):
        asked.setdefault(role(script.things, e), []).append(i)
    pool: dict[tuple, list[Event]] = {}
    for e in seen.events:
        pool.setdefault(role(seen.things, e), []).append(e)
    matches: list[Event | None] = [None] * len(script.events)
    for key, wanted in asked.items():
        there = pool.get(key, [])
        few, many = (wanted, there) if len(wanted) <= len(there) else (there, wanted)
        if not few:
            continue
        choices = itertools.combinations(range(len(many)), len(few))
        if many is there:
            best = min(choices, key=lambda c: sum(_shift(there[k], script.events[i]) for k, i in zip(c, wanted)))  # noqa: B905
            pairs = [(i, there[k]) for i, k in zip(wanted, best, strict=True)]
        else:
            best = min(choices, key=lambda c: sum(_shift(e, script.events[wanted[k]]) for e, k in zip(there, c)))  # noqa: B905
            pairs = [(wanted[k], e) for e, k in zip(there, best, strict=True)]
        for i, e in pairs:
            matches[i] = e
    return matches


def _shift(a: Event, b: Event) -> int:
    return abs(a.start - b.start) + abs(a.end - b.end)


class OracleReport:
    """Means of scores over clips, and how often each kind of action was seen."""

    def __init__(self):
        self._scores: list[Scores] = []
        self._kinds: dict[str, list[bool]] = {}

    def add(self, scores: Scores, script: Script) -> None:
        self._scores.append(scores)
        for e, was_seen in zip(script.events, scores.seen, strict=True):
            self._kinds.setdefault(kind(e.action), []).append(was_seen)

    def means(self) -> dict[str, float]:
        """Mean of each score over the clips that have it; no entry for what no clip had."""
        names = ("colour", "shape", "size", "action", "timing", "order")
        values = {name: [v for s in self._scores if (v := getattr(s, name)) is not None] for name in names}
        return {name: sum(v) / len(v) for name, v in values.items() if v}

    def by_action(self) -> dict[str, tuple[float, int]]:
        """For each kind of action the share that was seen, and how many there were."""
        return {name: (sum(v) / len(v), len(v)) for name, v in sorted(self._kinds.items())}

    def __len__(self) -> int:
        return len(self._scores)
