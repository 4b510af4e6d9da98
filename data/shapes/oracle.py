"""Judge a video of the shapes world from its pixels: what is in it, what happens, in which order.

`describe` measures a video without knowing what it should show; `compare` holds the description against a script. The
same description serves every script it is compared with, so a wrong script cannot bend the measurement.

What it cannot see. A thing that does nothing and a thing that is told to stay look alike: every rest of a thing that is
in sight is read as "stay". Discs and rings have no angle. Which of two things is in front is not judged, nor are ground
and texture. A thing is found by its colour: two of one colour are one thing, and a colour outside the palette is read
as the nearest one or as ground. A thing with less than an eighth of its area in sight counts as gone. A turn of more
than half a shape's period a frame cannot be told from a turn the other way, and the eye does not judge the sense of a
turn or an orbit. A straight way along one of the eight directions is a plain move even if something lies ahead.
A thing on its way out and back within a tick, or switched off between two frames, leaves no trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from data.shapes.fitting import Track, follow
from data.shapes.motion import RADII, frame_times
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
    colour, with this shape or size. action: events in both, over events in either, at any time, by the same agent on
    the same target; a rest nobody asked for counts for neither. timing: share of the script's events that were seen and
    start and end within a tick of their time. order: share of the pairs of events with one definite order (one is over
    when the other begins) that were both seen, in that order. An act seen more often than asked counts as one long act
    from its first to its last time, so that a video which does everything all the time shows no order.
    """

    colour: float
    shape: float
    size: float
    action: float
    timing: float
    order: float | None
    seen: tuple[bool, ...]  # for each event of the script, at any time


def describe(video: np.ndarray, ticks: int) -> Description:
    """Measure a video T H W 3 in uint8 whose frames spread evenly over `ticks` ticks."""
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
        raise DataError("not a video", got=f"{video.shape} {video.dtype}", allowed="T H W 3 in uint8")
    tracks = [track for track in follow(find(video)) if track.error < MISFIT]
    scale = max(video.shape[1:3])
    events = read(tracks, ticks, scale)
    things = []
    for i, track in enumerate(tracks):
        changes = [e.start for e in events if e.agent == i and e.action in ("grow", "shrink")]
        size = _size_word(track, min(changes, default=ticks), ticks, scale)
        things.append(Thing(f"{track.colour} {track.shape}", track.colour, track.shape, size))
    return Description(tuple(things), tuple(events), ticks, tuple(tracks))


def _size_word(track: Track, until: int, ticks: int, scale: int) -> str:
    """Size before it first changes."""
    early = track.visible & (frame_times(len(track.visible), ticks) <= until)
    radius = np.median(track.radius[early if early.any() else track.visible]) / scale
    return min(RADII, key=lambda size: abs(np.log(RADII[size] / radius)))


def compare(seen: Description, script: Script) -> Scores:
    """Hold a description against a script."""
    by_colour = {thing.colour: thing for thing in seen.things}
    asked = {thing.colour for thing in script.things}
    matches = _match(seen, script)
    found = [match is not None for match in matches]
    acts = sum(e.action != "stay" for e in seen.events)
    extra = acts - sum(m is not None and m.action != "stay" for m in matches)
    pairs = ordered_pairs(script.events)
    kept = [found[i] and found[j] and _is_before(matches[i], matches[j]) for i, j in pairs]
    return Scores(
        colour=len(asked & by_colour.keys()) / len(asked | by_colour.keys()),
        shape=_mean(t.colour in by_colour and by_colour[t.colour].shape == t.shape for t in script.things),
        size=_mean(t.colour in by_colour and by_colour[t.colour].size == t.size for t in script.things),
        action=sum(found) / (len(found) + extra),
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
    """What was seen of each asked event: the same agent, action and target."""
    asked: dict[tuple, list[int]] = {}
    for i, e in enumerate(script.events):
        asked.setdefault(_role(script.things, e), []).append(i)
    pool: dict[tuple, list[Event]] = {}
    for e in seen.events:
        pool.setdefault(_role(seen.things, e), []).append(e)
    matches: list[Event | None] = [None] * len(script.events)
    for role, wanted in asked.items():
        # Things rest between their acts without being asked to; such rests are no repetitions.
        there = pool.get(role, []) if role[1] == "stay" else _grouped(pool.get(role, []), len(wanted))
        for i, e in _nearest([(i, script.events[i]) for i in wanted], there):
            matches[i] = e
    return matches


def _role(things: tuple[Thing, ...], e: Event) -> tuple[str, str, str | None]:
    return things[e.agent].colour, e.action, None if e.target is None else things[e.target].colour


def _grouped(events: list[Event], count: int) -> list[Event]:
    """At most `count` events: where there are more, those with the shortest breaks between them become one."""
    events = list(events)
    while len(events) > count:
        k = min(range(len(events) - 1), key=lambda k: events[k + 1].start - events[k].end)
        events[k : k + 2] = [replace(events[k], end=events[k + 1].end)]
    return events


def _nearest(asked: list[tuple[int, Event]], seen: list[Event]) -> list[tuple[int, Event]]:
    """Pair as many as there are, in time order, with the smallest shift in time."""
    count = min(len(asked), len(seen))
    pairings = (
        list(zip(some, others, strict=True))
        for some in itertools.combinations(asked, count)
        for others in itertools.combinations(seen, count)
    )
    best = min(pairings, key=lambda pairs: sum(abs(a.start - e.start) + abs(a.end - e.end) for (_, a), e in pairs))
    return [(i, e) for (i, _), e in best]


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
