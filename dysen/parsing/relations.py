"""Relations that boxes over time show: where things stand to each other and how they move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dysen.parsing.frames import Box, FrameGraph, Link, Seen, Track, area, common
from vdm.bounds import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt

DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")  # y grows downwards


@dataclass(frozen=True)
class Relations:
    """When boxes count as left of, above, inside, overlapping or near, and a thing as moving, growing or approaching.

    Args:
        beside: centres this far apart, in widths (heights) of the picture, are left of (above) each other.
        inside: share of a box in another one from which it is inside.
        overlapping: share of the smaller box in the other one from which they overlap.
        near: widest gap of two boxes that are near, in sizes of the larger; 0: nothing is near.
        seconds: time over which motion is measured, at least one frame.
        moving: least way in that time, in widths of the picture.
        growing: least factor of width and of height in that time.
        toward: least cosine between a thing's motion and the line to another one, for approaching and leaving; 1: never.
        neighbours: only pairs of which one is among so many nearest of the other; null: all pairs.
    """

    beside: NonNegativeFloat
    inside: Fraction
    overlapping: Fraction
    near: NonNegativeFloat
    seconds: NonNegativeFloat
    moving: PositiveFloat
    growing: PositiveFloat
    toward: Fraction
    neighbours: PositiveInt | None

    def link(self, frames: Sequence[Sequence[Seen]], size: tuple[int, int], fps: float) -> list[FrameGraph]:
        """The frames with links, for a picture of `size` (height, width)."""
        span = min(max(1, round(self.seconds * fps)), max(len(frames) - 1, 1))
        places = [{seen.track: seen.box for seen in frame if seen.box is not None} for frame in frames]
        order = {track: i for i, track in enumerate(dict.fromkeys(seen.track for frame in frames for seen in frame))}
        graphs = []
        for at, frame in enumerate(frames):
            boxes = dict(sorted(places[at].items(), key=lambda entry: order[entry[0]]))
            pairs = self._pairs(boxes)
            first = min(at, max(len(frames) - 1 - span, 0))  # the last frames look back
            moves = self._links_of_motion(places[first], places[min(first + span, len(frames) - 1)], pairs, boxes, size)
            graphs.append(FrameGraph(tuple(frame), (*self._standing(boxes, pairs, size), *moves)))
        return graphs

    def _pairs(self, boxes: dict[Track, Box]) -> set[tuple[Track, Track]]:
        """Both ways round."""
        found = set()
        for one, a in boxes.items():
            others = sorted((other for other in boxes if other != one), key=lambda other: _apart(a, boxes[other]))
            found |= {pair for other in others[: self.neighbours] for pair in ((one, other), (other, one))}
        return found

    def _standing(self, boxes: dict[Track, Box], pairs: set[tuple[Track, Track]], size: tuple[int, int]) -> list[Link]:
        """Said once of each pair, of the one that came first, but inside of the inner one."""
        found, tracks = [], list(boxes)
        for i, one in enumerate(tracks):
            for other in tracks[i + 1 :]:
                if (one, other) not in pairs:
                    continue
                a, b = boxes[one], boxes[other]
                dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
                if abs(dx) > self.beside * size[1]:
                    found.append(Link(one, "left of" if dx < 0 else "right of", other))
                if abs(dy) > self.beside * size[0]:
                    found.append(Link(one, "above" if dy < 0 else "below", other))
                found += self._touching(one, other, a, b)
        return found

    def _touching(self, one: Track, other: Track, a: Box, b: Box) -> list[Link]:
        shared = common(a, b)
        if shared > 0 and shared >= self.inside * area(a) and area(a) < area(b):
            return [Link(one, "inside", other)]
        if shared > 0 and shared >= self.inside * area(b) and area(b) < area(a):
            return [Link(other, "inside", one)]
        if shared > 0 and shared >= self.overlapping * min(area(a), area(b)):
            return [Link(one, "overlapping", other)]
        gap = math.hypot(max(a[0] - b[2], b[0] - a[2], 0.0), max(a[1] - b[3], b[1] - a[3], 0.0))
        if self.near > 0 and gap <= self.near * max(area(a), area(b)) ** 0.5:
            return [Link(one, "near", other)]
        return []

    def _links_of_motion(
        self,
        before: dict[Track, Box],
        after: dict[Track, Box],
        pairs: set[tuple[Track, Track]],
        now: dict[Track, Box],
        size: tuple[int, int],
    ) -> list[Link]:
        found = []
        for track in now:
            if track not in before or track not in after:
                continue
            a, b = before[track], after[track]
            wide, high = (b[2] - b[0]) / max(a[2] - a[0], 1e-9), (b[3] - b[1]) / max(a[3] - a[1], 1e-9)
            if min(wide, high) >= self.growing:
                found.append(Link(track, "growing", None, is_action=True))
            elif max(wide, high) <= 1 / self.growing:
                found.append(Link(track, "shrinking", None, is_action=True))
            dx, dy = (b[0] + b[2] - a[0] - a[2]) / 2, (b[1] + b[3] - a[1] - a[3]) / 2
            way = math.hypot(dx, dy)
            if way < self.moving * size[1]:
                continue
            direction = DIRECTIONS[round(math.atan2(dy, dx) / (math.pi / 4)) % 8]
            found.append(Link(track, f"moving {direction}", None, is_action=True))
            if self.toward < 1:
                found += self._approaches(track, (dx, dy), before, after, pairs)
        return found

    def _approaches(
        self,
        track: Track,
        step: tuple[float, float],
        before: dict[Track, Box],
        after: dict[Track, Box],
        pairs: set[tuple[Track, Track]],
    ) -> list[Link]:
        """It goes there, and comes closer: who runs after somebody as fast does not approach."""
        found, way = [], math.hypot(*step)
        for other, place in before.items():
            if (track, other) not in pairs or other not in after:
                continue
            a = before[track]
            to = (place[0] + place[2] - a[0] - a[2]) / 2, (place[1] + place[3] - a[1] - a[3]) / 2
            cosine = (step[0] * to[0] + step[1] * to[1]) / max(way * math.hypot(*to), 1e-9)
            closer = (_apart(a, place) - _apart(after[track], after[other])) / 2
            if abs(cosine) >= self.toward and abs(closer) >= way / 2 and (closer > 0) == (cosine > 0):
                found.append(Link(track, "approaching" if cosine > 0 else "leaving", other, is_action=True))
        return found


def _apart(a: Box, b: Box) -> float:
    """Between two centres, twice."""
    return math.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3])
