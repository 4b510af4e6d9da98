"""What a parser says about each frame of a clip: the things in sight and how they stand to each other.

Things are known by the id of their track, which is the same in all frames. Names of objects, ticks and smoothing come
later, in `merging`, and are the same for every parser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the clip; right and bottom are outside
Track = int | str


@dataclass(frozen=True)
class Seen:
    """A thing in one frame. `box` is None where a parser knows no place."""

    track: Track
    label: str
    box: Box | None
    score: float = 1.0
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Link:
    """`subject` does something (`is_action`, perhaps to nobody), or stands in a relation to `object`."""

    subject: Track
    predicate: str
    object: Track | None
    is_action: bool = False


@dataclass(frozen=True)
class FrameGraph:
    """One frame. Links may name things that are hidden in it."""

    objects: tuple[Seen, ...] = ()
    links: tuple[Link, ...] = ()


class Parser(Protocol):
    """`needs_video` False: `video` may be None and the number of frames comes from the extras."""

    name: str
    needs_video: bool

    def parse(
        self, video: np.ndarray | None, caption: str, fps: float, extras: dict[str, Any]
    ) -> list[FrameGraph] | None:
        """A graph for each frame of `video` (T H W 3, uint8). None: this parser knows nothing of the clip.

        `extras` are the truths of the stored sample with its `key`, `source`, `frames`, `height` and `width`.
        """

    def fingerprint(self) -> dict[str, Any]:
        """What decides the graphs."""


def fitted(box: Box, size: tuple[float, float], stored: tuple[int, int]) -> Box | None:
    """A box of a picture (height, width) where shards keep it: shrunk to fit, the longer side cut on both ends."""
    scale = max(stored[0] / size[0], stored[1] / size[1])
    top, left = (size[0] * scale - stored[0]) / 2, (size[1] * scale - stored[1]) / 2
    x1, y1, x2, y2 = (side * scale - cut for side, cut in zip(box, (left, top, left, top), strict=True))
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(stored[1])), min(y2, float(stored[0]))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def common(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: Box, b: Box) -> float:
    """What two boxes share of what they cover together."""
    shared = common(a, b)
    return shared / max(area(a) + area(b) - shared, 1e-9)


def held(annotated: dict[int, FrameGraph], num_frames: int) -> list[FrameGraph]:
    """A graph for each frame where only some are annotated: each takes the nearest, of two the earlier."""
    known = sorted(annotated)
    return [annotated[min(known, key=lambda at: (abs(at - frame), at))] for frame in range(num_frames)]
