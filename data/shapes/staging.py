"""Where the things stand: places, angles and depths with which a timeline can be seen and told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.shapes.figures import PERIOD, REACH, distance
from data.shapes.motion import GROWTH, RADII, SPEED, Path, is_visible, unit, walk
from data.shapes.script import CHANNELS, DIRECTIONS, SHAPES, Event, Placement, ScriptSettings, Thing
from data.shapes.timeline import Chances

SPOTS = 6  # tries for each thing
MARGIN = 0.015  # between a thing and the picture's edge
SMALLEST, LARGEST = 0.08, 0.225  # radius; smaller is not recognisable at 32 pixels, larger leaves no room
CONTACT = 1.0  # an approach ends at least this many joint radii away
HIDDEN, STANDS_FREE = 0.38, 0.06  # shares of a thing behind others: at most, and where it is as good as alone
CLEAR_ANGLE = 14.0  # degrees between an approach and the eight directions of moves
OTHER_ANGLE = 22.0  # degrees between an approach and the way to or from a third thing
ALIKE_ANGLE = 35.0  # between an approach and the way another thing goes meanwhile
BEHIND_ANGLE = 30.0  # a follower is this close to straight behind
FAR = 0.5  # widths between a follower and its leader
ORBITS = (1.05, 0.36)  # smallest in joint radii, largest in widths


def _points(shape: str) -> np.ndarray:
    """Points spread over a shape of radius 1, as complex numbers."""
    u, v = np.meshgrid(np.linspace(-1.6, 1.6, 17), np.linspace(-1.6, 1.6, 17))
    return (u + 1j * v)[distance(shape, u, v) < 0]


POINTS = {shape: _points(shape) for shape in SHAPES}


@dataclass(frozen=True)
class _Need:
    """What a thing's own moves ask for: the room on each side, its largest radius, where they take it by each tick."""

    left: float
    right: float
    top: float
    bottom: float
    radius: float
    moved: list[tuple[float, float]]


def place(
    chances: Chances, things: Sequence[Thing], events: Sequence[Event], settings: ScriptSettings
) -> tuple[Placement, ...] | None:
    """Draw placements once; None if they break a rule."""
    ticks = settings.ticks
    needs = [_need(events, i, thing, ticks) for i, thing in enumerate(things)]
    if any(need.radius > LARGEST for need in needs):
        return None
    targeted = [next((e for e in events if e.agent == i and e.target is not None), None) for i in range(len(things))]
    places: dict[int, tuple[float, float]] = {}
    # Targets before those who act on them, so that the latter can be put where their act is possible.
    for i in sorted(range(len(things)), key=lambda i: targeted[i] is not None):
        e = targeted[i]
        for _ in range(SPOTS):
            if e is not None and e.target in places:
                spot = _spot_for(chances, e, needs, places[e.target], events)
            else:
                spot = _spot(chances, needs[i], REACH[things[i].shape], settings.scatter)
            if spot is not None and all(_are_free(spot, needs[i], at, needs[j]) for j, at in places.items()):
                break
        else:
            return None
        places[i] = spot
    depths = chances.shuffled(range(len(things)))
    placements = [
        Placement(
            round(x, 4), round(y, 4), round(chances.between(0, PERIOD[things[i].shape]) * settings.tilted, 1), depths[i]
        )
        for i, (x, y) in sorted(places.items())
    ]
    paths = walk(things, placements, events, ticks)
    if not _are_inside(paths, things) or not _are_relations_clear(paths, events):
        return None
    return tuple(placements) if _are_seen(paths, things, placements, events, ticks) else None


def _need(events: Sequence[Event], agent: int, thing: Thing, ticks: int) -> _Need:
    radius = largest = RADII[thing.size]
    moved = [(0.0, 0.0)] * (ticks + 1)
    for e in events:
        if e.agent != agent:
            continue
        if e.action in ("grow", "shrink"):
            radius *= GROWTH ** ((e.end - e.start) if e.action == "grow" else (e.start - e.end))
            largest = max(largest, radius)
        action = _led_by(events, e)
        if action in DIRECTIONS:
            ux, uy = unit(action)
            for tick in range(e.start + 1, ticks + 1):
                way = SPEED * (min(tick, e.end) - e.start)
                moved[tick] = (moved[tick][0] + ux * way, moved[tick][1] + uy * way)
    xs, ys = zip(*moved, strict=True)
    return _Need(min(xs), max(xs), min(ys), max(ys), largest, moved)


def _are_free(a: tuple[float, float], need_a: _Need, b: tuple[float, float], need_b: _Need) -> bool:
    """Whether two things, at their spots and where their own moves take them, are not one on top of the other."""
    nearest = 0.55 * (need_a.radius + need_b.radius)
    for (ax, ay), (bx, by) in zip(need_a.moved, need_b.moved, strict=True):
        if max(abs(a[0] + ax - 0.5), abs(a[1] + ay - 0.5)) > 0.5 - need_a.radius:
            return False
        if math.hypot(a[0] + ax - b[0] - bx, a[1] + ay - b[1] - by) < nearest:
            return False
    return True


def _led_by(events: Sequence[Event], e: Event) -> str:
    """The move that a follower copies; otherwise the action itself."""
    if e.action != "follow":
        return e.action
    return next(o.action for o in events if o.agent == e.target and o.start == e.start and o.action in DIRECTIONS)


def _spot(chances: Chances, need: _Need, reach: float, scatter: float) -> tuple[float, float] | None:
    """Anywhere from where a thing's own moves stay inside the picture."""
    room = need.radius * reach + MARGIN
    low_x, high_x, low_y, high_y = room - need.left, 1 - room - need.right, room - need.top, 1 - room - need.bottom
    if low_x > high_x or low_y > high_y:
        return None
    x, y = chances.between(low_x, high_x), chances.between(low_y, high_y)
    return _towards((low_x + high_x) / 2, x, scatter), _towards((low_y + high_y) / 2, y, scatter)


def _towards(middle: float, place: float, scatter: float) -> float:
    return place if scatter == 1 else middle + scatter * (place - middle)


def _spot_for(
    chances: Chances, e: Event, needs: Sequence[_Need], target: tuple[float, float], events: Sequence[Event]
) -> tuple[float, float] | None:
    """At the right distance from the target, in a direction in which the act can be told from others."""
    near = needs[e.agent].radius + needs[e.target].radius
    if e.action == "orbit":
        low, high, bearing = near * ORBITS[0], ORBITS[1], chances.between(0, 360)
    elif e.action == "follow":
        ux, uy = unit(_led_by(events, e))
        bearing = math.degrees(math.atan2(uy, ux)) + chances.between(-BEHIND_ANGLE, BEHIND_ANGLE)
        low, high = near, FAR
    else:
        bearing = 22.5 + 45 * chances.integer(0, 7) + chances.between(CLEAR_ANGLE - 22.5, 22.5 - CLEAR_ANGLE)
        low, high = near + (SPEED * (e.end - e.start) if e.action == "approach" else 0.0), FAR + 0.1
    if low > high:
        return None
    length, angle = chances.between(low, high), math.radians(bearing)
    (tx, ty), (ax, ay) = needs[e.target].moved[e.start], needs[e.agent].moved[e.start]
    return target[0] + tx - ax - length * math.cos(angle), target[1] + ty - ay - length * math.sin(angle)


def _are_inside(paths: list[Path], things: Sequence[Thing]) -> bool:
    for path, thing in zip(paths, things, strict=True):
        for (x, y), radius in zip(path.places, path.radii, strict=True):
            reach = radius * REACH[thing.shape] + MARGIN / 2
            if not (reach <= x <= 1 - reach and reach <= y <= 1 - reach and SMALLEST <= radius <= LARGEST):
                return False
    return True


def _are_relations_clear(paths: list[Path], events: Sequence[Event]) -> bool:
    return all(_is_relation_clear(paths, events, e) for e in events if e.target is not None)


def _is_relation_clear(paths: list[Path], events: Sequence[Event], e: Event) -> bool:
    agent, target = paths[e.agent], paths[e.target]
    start, end = _gap(agent, target, e.start), _gap(agent, target, e.end)
    touching = max(agent.radii[t] + target.radii[t] for t in (e.start, e.end))
    heading = _bearing(agent.places[e.start], agent.places[e.end])
    for other in events:
        lone = other.agent not in (e.agent, e.target) and CHANNELS[other.action] == "place"
        if lone and e.action != "follow" and _is_alike(paths, heading, e, other):
            return False
    if e.action == "orbit":
        return ORBITS[0] * touching <= start <= ORBITS[1]
    if min(start, end) < CONTACT * touching:
        return False
    ahead = _bearing(agent.places[e.start], target.places[e.start])
    if e.action == "follow":
        return _apart(heading, ahead, 360) <= BEHIND_ANGLE and start <= FAR + 0.05
    if _apart(heading, 0.0, 45) < CLEAR_ANGLE:
        return False
    for i, other in enumerate(paths):
        if i not in (e.agent, e.target):
            for tick in (e.start, e.end):
                # Modulo 180: going to one thing must not look like coming from another either.
                if _apart(heading, _bearing(agent.places[tick], other.places[tick]), 180) < OTHER_ANGLE:
                    return False
    return True


def _is_alike(paths: list[Path], heading: float, e: Event, other: Event) -> bool:
    """Whether another thing goes almost the same way at the same time, as if one followed the other."""
    start, end = max(e.start, other.start), min(e.end, other.end)
    if start >= end:
        return False
    places = paths[other.agent].places
    return _apart(heading, _bearing(places[start], places[end]), 360) < ALIKE_ANGLE


def _gap(a: Path, b: Path, tick: int) -> float:
    return math.dist(a.places[tick], b.places[tick])


def _bearing(a: tuple[float, float], b: tuple[float, float]) -> float:
    return math.degrees(math.atan2(b[1] - a[1], b[0] - a[0]))


def _apart(a: float, b: float, period: float) -> float:
    """Smallest difference of two angles that repeat after `period` degrees."""
    return abs((a - b + period / 2) % period - period / 2)


def _are_seen(
    paths: list[Path], things: Sequence[Thing], placements: Sequence[Placement], events: Sequence[Event], ticks: int
) -> bool:
    """No thing is ever hidden too far, each stands free once, and what blinks, appears or vanishes always does."""
    on = [[is_visible(events, i, tick) for tick in range(ticks + 1)] for i in range(len(paths))]
    for i, thing in enumerate(things):
        hidden = np.zeros((ticks + 1, len(POINTS[thing.shape])), dtype=bool)
        for j, other in enumerate(things):
            if placements[j].depth < placements[i].depth:
                hidden |= _covered(paths[i], thing.shape, paths[j], other.shape) & np.array(on[j])[:, None]
        share = hidden.mean(axis=1)[on[i]]
        is_shy = any(e.agent == i and e.action in ("blink", "appear", "vanish") for e in events)
        if share.max() > (STANDS_FREE if is_shy else HIDDEN) or share.min() > STANDS_FREE:
            return False
    return True


def _covered(behind: Path, shape: str, front: Path, other: str) -> np.ndarray:
    """Which of a thing's points lie under another thing, at each whole tick: ticks + 1, points."""
    here, there = np.array(behind.places), np.array(front.places)
    near = np.array(behind.radii) * REACH[shape] + np.array(front.radii) * REACH[other]
    gap = there - here
    if (np.hypot(gap[:, 0], gap[:, 1]) > near).all():
        return np.zeros((len(here), len(POINTS[shape])), dtype=bool)
    turn, size = np.deg2rad(behind.angles), np.array(behind.radii)
    points = np.exp(1j * turn)[:, None] * size[:, None] * POINTS[shape] - (gap[:, 0] + 1j * gap[:, 1])[:, None]
    points *= (np.exp(-1j * np.deg2rad(front.angles)) / np.array(front.radii))[:, None]
    return distance(other, points.real, points.imag) < 0
