"""The geometry of the six shapes: when a point is inside, how far it is from the edge, how far the shape reaches.

Every shape of equal-area radius 1 covers the area pi, so that a size word means the same for all of them. Points are in
the shape's own frame: centred, unrotated, divided by the radius.
"""

from __future__ import annotations

import math

import numpy as np

_SQUARE = math.sqrt(math.pi) / 2  # half side
_SIDE = math.sqrt(4 * math.pi / math.sqrt(3))  # side of the triangle
_INNER = _SIDE / (2 * math.sqrt(3))  # radius of its inner circle; the outer one's is twice that
_ARM = math.sqrt(math.pi * 9 / 5) / 2  # half length of the cross; an arm is a third as wide as the cross
_BAR_RATIO = 2.6
_BAR = math.sqrt(math.pi * _BAR_RATIO) / 2, math.sqrt(math.pi / _BAR_RATIO) / 2  # half length, half width
_RING = math.sqrt(4 / 3), math.sqrt(1 / 3)  # outer and inner radius

# Farthest point from the centre.
REACH = {
    "circle": 1.0,
    "square": _SQUARE * math.sqrt(2),
    "triangle": 2 * _INNER,
    "cross": _ARM * math.hypot(1, 1 / 3),
    "bar": math.hypot(*_BAR),
    "ring": _RING[0],
}

# Turned by this many degrees, a shape is the same again. 0: by any angle.
PERIOD = {"circle": 0.0, "square": 90.0, "triangle": 120.0, "cross": 90.0, "bar": 180.0, "ring": 0.0}


def _box(u: np.ndarray, v: np.ndarray, half_u: float, half_v: float) -> np.ndarray:
    return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the edge, negative inside; outside a corner it is the distance to the nearer side's line."""
    if shape == "circle":
        return np.sqrt(u * u + v * v) - 1.0
    if shape == "square":
        return _box(u, v, _SQUARE, _SQUARE)
    if shape == "triangle":
        side = np.abs(u) * (math.sqrt(3) / 2) - v * 0.5  # the two upper sides; one corner points up, to -v
        return np.maximum(side - _INNER, v - _INNER)
    if shape == "cross":
        return np.minimum(_box(u, v, _ARM, _ARM / 3), _box(u, v, _ARM / 3, _ARM))
    if shape == "bar":
        return _box(u, v, *_BAR)
    middle, half = (_RING[0] + _RING[1]) / 2, (_RING[0] - _RING[1]) / 2
    return np.abs(np.sqrt(u * u + v * v) - middle) - half
