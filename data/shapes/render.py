"""Paint a trajectory: anti-aliased shapes with true occlusion on a gentle, nearly colourless ground."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from data.shapes.figures import REACH, distance
from data.shapes.motion import Trajectory
from data.shapes.script import Background, Script

# Far apart in hue, so that a pixel names its object whatever the ground behind it.
RGB = {
    "red": (214, 38, 40),
    "orange": (245, 145, 20),
    "yellow": (236, 222, 40),
    "green": (40, 172, 58),
    "cyan": (44, 204, 214),
    "blue": (42, 78, 226),
    "purple": (134, 48, 196),
    "pink": (250, 120, 186),
}
SHADE_LEVELS = {"dark": 62.0, "grey": 122.0, "light": 196.0}
RELIEF = 11.0  # half the contrast of a texture, in grey levels
TINT = 5.0  # how far a ground is from grey
SAMPLES = 4  # per pixel and axis


@dataclass(frozen=True)
class Picture:
    """A rendered clip and what its pixels belong to."""

    frames: np.ndarray  # T H W 3, uint8
    coverage: np.ndarray  # n T H W, uint8 in 0..255: how much of a pixel a visible thing covers, in front or not


def paint(script: Script, trajectory: Trajectory, height: int, width: int) -> Picture:
    """Render all frames. Lengths are in widths; a picture that is not square shows the middle of the unit square."""
    num_frames, num_things = trajectory.x.shape
    ground = background(script.background, height, width)
    canvas = np.repeat(ground[None], num_frames, axis=0)  # T H W 3
    coverage = np.zeros((num_things, num_frames, height, width), dtype=np.uint8)
    for i in sorted(range(num_things), key=lambda i: -script.placements[i].depth):
        thing = script.things[i]
        colour = np.array(RGB[thing.colour], dtype=np.float32)
        alphas, tops, lefts = _stamps(thing.shape, trajectory, i, height, width)
        size = alphas.shape[1]
        for f in np.flatnonzero(trajectory.visible[:, i]).tolist():
            top, left = tops[f], lefts[f]
            y0, y1, x0, x1 = max(top, 0), min(top + size, height), max(left, 0), min(left + size, width)
            alpha = alphas[f, y0 - top : y1 - top, x0 - left : x1 - left]
            patch = canvas[f, y0:y1, x0:x1]
            patch += alpha[..., None] * (colour - patch)
            coverage[i, f, y0:y1, x0:x1] = np.rint(alpha * 255)
    return Picture(np.rint(canvas).astype(np.uint8), coverage)


def pixels(trajectory: Trajectory, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres and radii of a trajectory in pixels: three arrays T n."""
    scale = max(height, width)
    x = trajectory.x * scale - (scale - width) / 2
    y = trajectory.y * scale - (scale - height) / 2
    return x, y, trajectory.radius * scale


def _stamps(
    shape: str, trajectory: Trajectory, i: int, height: int, width: int
) -> tuple[np.ndarray, list[int], list[int]]:
    """Coverage of one thing in a window around it, T s s in [0, 1], and where the windows lie."""
    x, y, radius = (a[:, i].astype(np.float32) for a in pixels(trajectory, height, width))
    size = int(2 * math.ceil(float(radius.max()) * REACH[shape])) + 2
    lefts, tops = np.floor(x - size / 2 + 0.5), np.floor(y - size / 2 + 0.5)
    angle = np.deg2rad(trajectory.angle[:, i])
    # Rounded, so that platforms whose cosines differ in the last bit paint the same pixels.
    c = np.round(np.cos(angle) * 65536).astype(np.float32) / 65536 / radius
    s = np.round(np.sin(angle) * 65536).astype(np.float32) / 65536 / radius
    steps = (np.arange(size * SAMPLES, dtype=np.float32) + 0.5) / SAMPLES
    dx = steps[None] + (lefts - x)[:, None]  # T s*4
    dy = steps[None] + (tops - y)[:, None]
    u = (c[:, None] * dx)[:, None, :] + (s[:, None] * dy)[:, :, None]
    v = (c[:, None] * dy)[:, :, None] - (s[:, None] * dx)[:, None, :]
    inside = (distance(shape, u, v) < 0).reshape(len(x), size, SAMPLES, size, SAMPLES)
    alpha = inside.sum(axis=(2, 4), dtype=np.float32) / SAMPLES**2
    return alpha, tops.astype(int).tolist(), lefts.astype(int).tolist()


def background(ground: Background, height: int, width: int) -> np.ndarray:
    """H W 3, float32. Textures scale with the picture, so that a clip looks alike at any resolution."""
    scale = max(height, width)
    x = (np.arange(width, dtype=np.float32) + 0.5)[None, :] / scale
    y = (np.arange(height, dtype=np.float32) + 0.5)[:, None] / scale
    relief = np.broadcast_to(_relief(ground.texture, x, y, ground.phase), (height, width))
    hue = math.radians(ground.tint)
    tint = [round(TINT * math.cos(hue - shift), 3) for shift in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    level = SHADE_LEVELS[ground.shade] + RELIEF * np.round(relief, 3)
    return (level[..., None] + np.array(tint, dtype=np.float32)).astype(np.float32)


def _relief(texture: str, x: np.ndarray, y: np.ndarray, phase: float) -> np.ndarray:
    """A pattern in [-1, 1], broadcast over x: 1 W and y: H 1."""
    turn = 2 * math.pi
    if texture == "plain":
        return np.zeros((1, 1), dtype=np.float32)
    if texture == "gradient":
        return 2.5 * (math.cos(turn * phase) * (x - 0.5) + math.sin(turn * phase) * (y - 0.5))
    if texture == "stripes":
        return np.sin(turn * (3 * x * (phase < 0.5) + 3 * y * (phase >= 0.5) + 2 * phase))
    if texture == "checks":
        return np.tanh(4 * np.sin(turn * (2 * x + phase)) * np.sin(turn * (2 * y + phase)))
    if texture == "dots":
        bumps = np.cos(turn * (3 * x + phase)) + np.cos(turn * (3 * y + 2 * phase))
        return np.tanh(3 * (bumps - 0.8))
    waves = np.sin(turn * (1.3 * x + 0.7 * y + phase)) + np.sin(turn * (2.1 * y - 0.9 * x + 3 * phase))
    return 0.5 * (waves + np.sin(turn * (1.7 * x + 1.1 * y + 5 * phase)) * 0.7) / 1.35
