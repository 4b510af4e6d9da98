"""A tracker for boxes: best assignment by overlap from frame to frame, with a guess of where a lost thing went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dysen.parsing.frames import Box, Seen, area, iou
from vdm.bounds import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt

_FORBIDDEN = 1e6


def assign(cost: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column) of least summed cost, one for each row or column, whichever are fewer (Hungarian method)."""
    cost = np.asarray(cost, dtype=np.float64)
    if not cost.size:
        return []
    if cost.shape[0] > cost.shape[1]:
        return sorted((row, column) for column, row in assign(cost.T))
    rows, columns = cost.shape
    # Potentials keep every reduced cost >= 0; each row is let in along the shortest path of such costs.
    u, v = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, dtype=int)  # row of a column, counted from 1; column 0 is the way in
    for row in range(1, rows + 1):
        owner[0], at = row, 0
        least, came, done = np.full(columns + 1, np.inf), np.zeros(columns + 1, dtype=int), np.zeros(columns + 1, bool)
        while owner[at]:
            done[at] = True
            reduced = cost[owner[at] - 1] - u[owner[at]] - v[1:]
            better = ~done[1:] & (reduced < least[1:])
            least[1:][better], came[1:][better] = reduced[better], at
            following = int(np.where(done, np.inf, least).argmin())
            step = least[following]
            u[owner[done]] += step
            v[done] -= step
            least[~done] -= step
            at = following
        while at:
            owner[at] = owner[came[at]]
            at = came[at]
    return sorted((int(owner[column]) - 1, column - 1) for column in range(1, columns + 1) if owner[column])


@dataclass
class _Trail:
    track: int
    label: str
    box: Box
    velocity: tuple[float, float]
    missed: int = 0
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tracker:
    """Gives detections the id of their track.

    Args:
        overlap: least intersection over union with where the thing is expected.
        reach: a box may also be as far from there as so many of its sizes, for small things that move fast.
        patience: frames that a thing may be lost.
        num_hits: detections that make a track; shorter ones are left out.
        momentum: how much of the old velocity is kept.
        relabel: overlap from which a detection with another label is the same thing; 1: never.
    """

    overlap: Fraction
    reach: NonNegativeFloat
    patience: NonNegativeInt
    num_hits: PositiveInt
    momentum: Fraction
    relabel: Fraction

    def track(self, frames: Sequence[Sequence[Seen]]) -> list[list[Seen]]:
        """The same detections, with tracks."""
        trails: list[_Trail] = []
        out: list[list[Seen]] = []
        hits: dict[int | str, int] = {}
        for found in frames:
            cost = np.array([[self._cost(trail, seen) for seen in found] for trail in trails])
            pairs = [(i, j) for i, j in assign(cost.reshape(len(trails), len(found))) if cost[i, j] < _FORBIDDEN]
            named = {j: trails[i] for i, j in pairs}
            for trail in trails:
                trail.missed += 1
            for j, seen in enumerate(found):
                if j in named:
                    self._follow(named[j], seen)
                else:
                    named[j] = _Trail(len(hits), seen.label, seen.box, (0.0, 0.0), 0, seen.attributes)
                    trails.append(named[j])
                    hits[named[j].track] = 0
                hits[named[j].track] += 1
            out.append([replace(seen, track=named[j].track) for j, seen in enumerate(found)])
            trails = [trail for trail in trails if trail.missed <= self.patience]
        return [[seen for seen in frame if hits[seen.track] >= self.num_hits] for frame in out]

    def _cost(self, trail: _Trail, seen: Seen) -> float:
        if seen.box is None:
            return _FORBIDDEN
        steps = trail.missed + 1
        box = _moved(trail.box, trail.velocity, steps)
        shared = max(iou(box, seen.box), iou(trail.box, seen.box))
        if trail.label != seen.label:
            return 2 - shared if shared >= self.relabel and self.relabel < 1 else _FORBIDDEN
        gap = min(_distance(box, seen.box), _distance(trail.box, seen.box))
        size = max(area(trail.box), area(seen.box)) ** 0.5
        if shared < max(self.overlap, 1e-9) and gap > self.reach * size * steps:
            return _FORBIDDEN
        return 1 - shared + 0.5 * gap / max(size, 1e-9) / steps

    def _follow(self, trail: _Trail, seen: Seen) -> None:
        steps = trail.missed  # counted up already for this frame
        old, new = _centre(trail.box), _centre(seen.box)
        trail.velocity = tuple(
            self.momentum * v + (1 - self.momentum) * (b - a) / steps
            for v, a, b in zip(trail.velocity, old, new, strict=True)
        )
        trail.box, trail.missed = seen.box, 0


def _moved(box: Box, velocity: tuple[float, float], steps: int) -> Box:
    dx, dy = velocity[0] * steps, velocity[1] * steps
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _distance(a: Box, b: Box) -> float:
    (ax, ay), (bx, by) = _centre(a), _centre(b)
    return ((ax - bx) ** 2 + (ay - by) ** 2) ** 0.5
