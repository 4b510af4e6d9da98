"""Where every thing is at any time: the one definition of what each action does to place, size, angle and sight.

A script is stepped tick by tick, because an approach or an orbit depends on where the target stands by then; between
ticks a thing moves along a straight line or, in an orbit, along its circle. The sampler, the renderer and the truth
all read the same trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.shapes.script import DIRECTIONS, Event, Placement, Script, Thing

# Radius of the disc of equal area, as a fraction of the picture's width: what a size word means for every shape.
RADII = {"small": 0.1, "medium": 0.135, "large": 0.18}
SPEED = 0.085  # widths a tick
GROWTH = 1.2  # factor on the radius a tick
TURN = 30.0  # degrees a tick, on itself
ORBIT = 30.0  # degrees a tick, around the target, clockwise on the screen

# Rounding the states makes the pixels independent of the last bits of a platform's sine.
GRID = 2.0**-16


@dataclass(frozen=True)
class Path:
    """One thing's state at every whole tick, and the centre it circles in each tick (None: it goes straight)."""

    places: list[tuple[float, float]]
    radii: list[float]
    angles: list[float]
    centres: list[tuple[float, float] | None]


@dataclass(frozen=True)
class Trajectory:
    """States of n things at T times: widths, widths, widths, degrees, yes or no."""

    x: np.ndarray  # T n
    y: np.ndarray  # T n
    radius: np.ndarray  # T n
    angle: np.ndarray  # T n
    visible: np.ndarray  # T n, bool: not switched off; it may still be hidden behind another thing


def frame_times(frames: int, ticks: int) -> np.ndarray:
    """Time of each frame in ticks: the first is at 0 and the last at `ticks`."""
    return np.linspace(0.0, ticks, frames) if frames > 1 else np.zeros(1)


def unit(action: str) -> tuple[float, float]:
    """Unit vector of a move."""
    dx, dy = DIRECTIONS[action]
    length = math.hypot(dx, dy)
    return dx / length, dy / length


def walk(things: Sequence[Thing], placements: Sequence[Placement], events: Sequence[Event], ticks: int) -> list[Path]:
    """Step all things from tick 0 to `ticks`."""
    paths = [Path([(p.x, p.y)], [RADII[t.size]], [p.angle], []) for t, p in zip(things, placements, strict=True)]
    for tick in range(ticks):
        steps: dict[int, tuple[float, float]] = {}
        centres: dict[int, tuple[float, float]] = {}
        scales, turns, followers = {}, {}, []
        for e in events:
            if not e.start <= tick < e.end:
                continue
            if e.action in DIRECTIONS:
                ux, uy = unit(e.action)
                steps[e.agent] = (SPEED * ux, SPEED * uy)
            elif e.action in ("approach", "leave"):
                (x, y), (tx, ty) = paths[e.agent].places[-1], paths[e.target].places[-1]
                length = max(math.hypot(tx - x, ty - y), 1e-6)
                pace = (SPEED if e.action == "approach" else -SPEED) / length
                steps[e.agent] = ((tx - x) * pace, (ty - y) * pace)
            elif e.action == "orbit":
                centres[e.agent] = paths[e.target].places[-1]
                (x, y), (nx, ny) = paths[e.agent].places[-1], turned(paths[e.agent].places[-1], centres[e.agent], 1.0)
                steps[e.agent] = (nx - x, ny - y)
            elif e.action == "follow":
                followers.append(e)
            elif e.action in ("grow", "shrink"):
                scales[e.agent] = GROWTH if e.action == "grow" else 1.0 / GROWTH
            elif e.action == "rotate":
                turns[e.agent] = TURN
        for e in followers:
            steps[e.agent] = steps.get(e.target, (0.0, 0.0))
        for i, path in enumerate(paths):
            (x, y), (dx, dy) = path.places[-1], steps.get(i, (0.0, 0.0))
            path.places.append((x + dx, y + dy))
            path.radii.append(path.radii[-1] * scales.get(i, 1.0))
            path.angles.append(path.angles[-1] + turns.get(i, 0.0))
            path.centres.append(centres.get(i))
    return paths


def turned(place: tuple[float, float], centre: tuple[float, float], ticks: float) -> tuple[float, float]:
    """A place after circling a centre for some ticks."""
    angle = math.radians(ORBIT * ticks)
    dx, dy = place[0] - centre[0], place[1] - centre[1]
    c, s = math.cos(angle), math.sin(angle)
    return centre[0] + c * dx - s * dy, centre[1] + s * dx + c * dy


def is_visible(events: Sequence[Event], agent: int, time: float) -> bool:
    """Whether a thing is switched on. It switches in the middle of the tick in which it appears or vanishes."""
    mine = [e for e in events if e.agent == agent and e.action in ("appear", "vanish", "blink")]
    on = not mine or min(mine, key=lambda e: e.start).action != "appear"
    for e in sorted(mine, key=lambda e: e.start):
        since = time - e.start
        if e.action == "blink":
            if 0 <= since < e.end - e.start and 0.5 <= since % 2 < 1.5:
                return False
        elif since >= 0.5:
            on = e.action == "appear"
    return on


def trajectory(script: Script, times: np.ndarray) -> Trajectory:
    """States of all things of a script at the given times, in ticks."""
    paths = walk(script.things, script.placements, script.events, script.ticks)
    shape = (len(times), len(paths))
    x, y, radius, angle = (np.zeros(shape) for _ in range(4))
    visible = np.zeros(shape, dtype=bool)
    for f, time in enumerate(times.tolist()):
        tick = min(int(time), script.ticks - 1)
        part = time - tick
        for i, path in enumerate(paths):
            here, there = path.places[tick], path.places[tick + 1]
            if path.centres[tick] is not None:
                x[f, i], y[f, i] = turned(here, path.centres[tick], part)
            else:
                x[f, i] = here[0] + part * (there[0] - here[0])
                y[f, i] = here[1] + part * (there[1] - here[1])
            radius[f, i] = path.radii[tick] * (path.radii[tick + 1] / path.radii[tick]) ** part
            angle[f, i] = path.angles[tick] + part * (path.angles[tick + 1] - path.angles[tick])
            visible[f, i] = is_visible(script.events, i, time)
    x, y, radius = (np.round(a / GRID) * GRID for a in (x, y, radius))
    return Trajectory(x, y, radius, angle, visible)
