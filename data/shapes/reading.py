"""From measured tracks to events: what each thing did in each tick, told from its own numbers only.

Each tick is judged by four questions: did it move, change size, turn, go out of sight? Runs of ticks with the same
answer are events. The thresholds lie halfway between an action's true pace and rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from data.shapes.figures import PERIOD
from data.shapes.fitting import Track
from data.shapes.motion import GROWTH, ORBIT, SPEED, TURN, frame_times
from data.shapes.script import DIRECTIONS, MOVES, Event

MOVING = SPEED / 2  # widths a tick
GROWING = math.log(GROWTH) / 2
TURNING = TURN / 2  # degrees a tick
BEND = 24.0  # degrees between two steps of one straight move
COMPASS = 7.0  # a heading closer than this to one of the eight directions is a plain move
TOWARDS = 11.0  # a heading closer than this to the way to or from a thing approaches or leaves it
BEHIND = 45.0  # how far off straight ahead the leader may be
DRIFT = 0.35 * SPEED  # how fast the way to the leader may change
BENT = (7.0, 60.0)  # least and most turn of the heading from tick to tick in an orbit
ROUND = 0.25  # how much an orbit may drift


@dataclass(frozen=True)
class Steps:
    """A track read at whole ticks."""

    x: np.ndarray  # ticks + 1, widths
    y: np.ndarray  # ticks + 1
    visible: np.ndarray  # ticks + 1, bool
    moves: np.ndarray  # ticks, bool: further than MOVING in this tick
    growth: np.ndarray  # ticks, log of the factor on the radius
    turn: np.ndarray  # ticks, degrees
    known: np.ndarray  # ticks, bool: seen at both ends


def at_ticks(track: Track, ticks: int, scale: int) -> Steps:
    """Read a track between its frames, on lines through its nearest visible neighbours in time."""
    times = frame_times(len(track.visible), ticks)
    whole = np.arange(ticks + 1)
    nearest = np.abs(times[None] - whole[:, None]).argmin(axis=1)
    visible = track.visible[nearest]
    seen = np.flatnonzero(track.visible)
    period = PERIOD[track.shape]
    angle = np.unwrap(track.angle[seen], period=period) if period else np.zeros(len(seen))
    values = track.x[seen] / scale, track.y[seen] / scale, np.log(track.radius[seen]), angle
    x, y, radius, angle = (np.interp(whole, times[seen], value) for value in values)
    known = visible[1:] & visible[:-1]
    moves = known & (np.hypot(np.diff(x), np.diff(y)) > MOVING)
    return Steps(x, y, visible, moves, np.diff(radius), np.diff(angle), known)


def read(tracks: list[Track], ticks: int, scale: int) -> list[Event]:
    """The events of all tracks, sorted by time; agents and targets are positions in `tracks`."""
    steps = [at_ticks(track, ticks, scale) for track in tracks]
    events = []
    for i, own in enumerate(steps):
        done = [*_sights(own, ticks), *_runs("grow", own.known & (own.growth > GROWING))]
        done += _runs("shrink", own.known & (own.growth < -GROWING))
        done += _runs("rotate", own.known & (np.abs(own.turn) > TURNING))
        done += [place for start, end in _spans(own.moves) for place in _places(steps, i, start, end)]
        busy = ~own.known
        for _, _, start, end in done:
            busy[start:end] = True
        done += _runs("stay", ~busy)
        events += [Event(i, action, target, start, end) for action, target, start, end in done]
    return sorted(events, key=lambda e: (e.start, e.end, e.agent))


def _spans(flags: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of every run of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _runs(action: str, flags: np.ndarray) -> list[tuple[str, int | None, int, int]]:
    return [(action, None, start, end) for start, end in _spans(flags)]


def _sights(own: Steps, ticks: int) -> list[tuple[str, int | None, int, int]]:
    """A thing that is away for one tick blinks; for longer, it vanishes and appears."""
    found: list[tuple[str, int | None, int, int]] = []
    for start, end in _spans(~own.visible):
        if start > 0 and end <= ticks and end - start == 1:
            if found and found[-1][0] == "blink" and found[-1][3] == start - 1:
                start = found.pop()[2] + 1
            found.append(("blink", None, start - 1, end))
            continue
        if start > 0:
            found.append(("vanish", None, start - 1, start))
        if end <= ticks:
            found.append(("appear", None, end - 1, end))
    return found


def _places(steps: list[Steps], i: int, start: int, end: int) -> list[tuple[str, int | None, int, int]]:
    """Name one unbroken run of movement: an orbit as a whole, or straight pieces."""
    others = [j for j in range(len(steps)) if j != i and steps[j].visible[start : end + 1].all()]
    resting = [j for j in others if not steps[j].moves[start:end].any()]
    if end - start >= 2:
        drifts = [(_drift(steps[i], steps[j], start, end), j) for j in resting]
        if drifts and min(drifts)[0] < ROUND:
            return [("orbit", min(drifts)[1], start, end)]
    headings = [_bearing(steps[i], tick, steps[i], tick + 1) for tick in range(start, end)]
    cuts = [start]
    for tick in range(start + 1, end):
        if _apart(headings[tick - start], headings[tick - 1 - start], 360) > BEND:
            cuts.append(tick)
    cuts.append(end)
    return [_straight(steps, i, a, b) for a, b in zip(cuts, cuts[1:], strict=False)]


def _drift(own: Steps, centre: Steps, start: int, end: int) -> float:
    """How unlike an orbit a run is: the spread of the distances as a share of them; infinite where it is none."""
    ticks = np.arange(start, end + 1)
    dx, dy = own.x[ticks] - centre.x[ticks], own.y[ticks] - centre.y[ticks]
    gaps = np.hypot(dx, dy)
    swept = np.rad2deg(np.diff(np.unwrap(np.arctan2(dy, dx))))
    # A straight way past something keeps its distance for a while too, but its heading does not turn.
    bent = np.rad2deg(np.diff(np.unwrap(np.arctan2(np.diff(own.y[ticks]), np.diff(own.x[ticks])))))
    sense = np.sign(swept[0])
    turning = (sense * swept > ORBIT / 2).all() and (sense * bent > BENT[0]).all() and (sense * bent < BENT[1]).all()
    # Around its true centre a thing sweeps what its heading turns.
    astray = abs(swept.mean() - bent.mean()) / ORBIT
    return float(np.ptp(gaps) / gaps.mean() + astray / 4) if turning and sense * bent.mean() > ORBIT / 2 else math.inf


def _straight(steps: list[Steps], i: int, start: int, end: int) -> tuple[str, int | None, int, int]:
    """Follow, approach, leave or one of the eight moves."""
    own = steps[i]
    heading = _bearing(own, start, own, end)
    others = [j for j in range(len(steps)) if j != i and steps[j].visible[start : end + 1].all()]
    for j in others:
        leader = steps[j]
        dx, dy = leader.x - own.x, leader.y - own.y
        drift = math.hypot(dx[end] - dx[start], dy[end] - dy[start]) / (end - start)
        alike = leader.moves[start:end].all() and drift < DRIFT
        if alike and end - start >= 2 and _apart(heading, _bearing(own, start, leader, start), 360) < BEHIND:
            return "follow", j, start, end
    if end - start >= 2 and _apart(heading, 0.0, 45) > COMPASS:
        ways = []
        for j in others:
            if not steps[j].moves[start:end].any():
                ahead = _bearing(own, start, steps[j], start)
                ways += [(_apart(heading, ahead, 360), "approach", j), (_apart(heading, ahead + 180, 360), "leave", j)]
        if ways and min(ways)[0] < TOWARDS:
            _, action, j = min(ways)
            return action, j, start, end
    directions = {action: math.degrees(math.atan2(dy, dx)) for action, (dx, dy) in DIRECTIONS.items()}
    return min(MOVES, key=lambda action: _apart(heading, directions[action], 360)), None, start, end


def _bearing(a: Steps, tick_a: int, b: Steps, tick_b: int) -> float:
    return math.degrees(math.atan2(b.y[tick_b] - a.y[tick_a], b.x[tick_b] - a.x[tick_a]))


def _apart(a: float, b: float, period: float) -> float:
    """Smallest difference of two angles that repeat after `period` degrees."""
    return abs((a - b + period / 2) % period - period / 2)
