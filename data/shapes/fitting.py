"""Fit shapes to what was seen: centre, radius and angle of a thing in every frame, to a fraction of a pixel.

A soft-edged template is moved, scaled and turned until it covers the same pixels (Gauss-Newton, many frames at once).
Where another thing lies, the template may go on unseen, so a half hidden thing is still measured where it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.shapes.figures import PERIOD, REACH, distance
from data.shapes.script import SHAPES
from data.shapes.seeing import Blob, widened

EDGE = 1.3  # pixels over which a template's edge fades
STEPS = 4  # of Gauss-Newton, at most
STILL = 0.05  # pixels: smaller steps change nothing
GLANCES, LOOKS = 3, 6  # frames that tell which shapes are possible, and which of them it is
MARGIN = 3.0  # a shape that fits this many times worse than another at a glance is out
HIDDEN, NEAR = 0.01, 0.1  # weights of pixels where another thing may be in front, and next to those


@dataclass(frozen=True)
class Track:
    """One thing through a video, in pixels and degrees; where it is not visible the numbers mean nothing."""

    colour: str
    shape: str
    visible: np.ndarray  # T, bool
    x: np.ndarray  # T
    y: np.ndarray  # T
    radius: np.ndarray  # T
    angle: np.ndarray  # T, modulo the shape's period
    error: float  # mean squared misfit in the clearest frames, per pixel of the thing


@dataclass(frozen=True)
class _Windows:
    """Square cut-outs around things, f of s x s pixels, and first guesses of what is in them."""

    alpha: np.ndarray  # f s s
    weight: np.ndarray  # f s s
    columns: np.ndarray  # f s, pixel centres
    rows: np.ndarray  # f s
    guess: np.ndarray  # f 3: x, y, radius
    owner: np.ndarray  # f, position of the blob

    def __getitem__(self, index: np.ndarray) -> _Windows:
        return _Windows(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def follow(blobs: list[Blob]) -> list[Track]:
    """Recognise the shape of every blob and measure it in every frame in which it is visible."""
    if not blobs:
        return []
    windows = _cut(blobs)
    ranks = _ranks(windows)
    rivals = _rivals(windows[np.flatnonzero(ranks < GLANCES)], len(blobs))  # shapes n
    states = np.zeros((len(SHAPES), len(ranks), 4))
    misfits = np.full(rivals.shape, np.inf)
    for k, shape in enumerate(SHAPES):
        index = np.flatnonzero(rivals[k][windows.owner])
        if len(index):
            chosen = windows[index]
            states[k, index], misfit = _fit(shape, chosen, _start(shape, chosen), STEPS)
            looks = ranks[index] < LOOKS
            means = _mean_by(chosen.owner[looks], misfit[looks], len(blobs))
            misfits[k, rivals[k]] = means[rivals[k]]
    tracks = []
    for i, blob in enumerate(blobs):
        k = int(misfits[:, i].argmin())
        x, y, radius, angle = _spread(states[k, windows.owner == i], blob.visible).T
        period = PERIOD[SHAPES[k]]
        angle = np.rad2deg(angle) % period if period else np.zeros_like(angle)
        tracks.append(Track(blob.colour, SHAPES[k], blob.visible, x, y, radius, angle, float(misfits[k, i])))
    return tracks


def _spread(values: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Values of the visible frames among zeros for the others."""
    out = np.zeros((len(visible), values.shape[1]))
    out[visible] = values
    return out


def _cut(blobs: list[Blob]) -> _Windows:
    """A window around every blob in every frame in which it is visible, all of one size."""
    owner, _ = np.nonzero(np.stack([blob.visible for blob in blobs]))
    solid = np.concatenate([blob.solid[blob.visible] for blob in blobs])  # f H W
    _, height, width = solid.shape
    area = solid.sum(axis=(1, 2))
    x = solid.sum(axis=1) @ (np.arange(width) + 0.5) / area
    y = solid.sum(axis=2) @ (np.arange(height) + 0.5) / area
    radius = np.sqrt(area / np.pi)
    size = min(2 * int(np.ceil(radius.max() * 1.5 + 2)), 2 * max(height, width))
    left, top = np.floor(x - size / 2 + 0.5).astype(int), np.floor(y - size / 2 + 0.5).astype(int)
    column, row = left[:, None] + np.arange(size), top[:, None] + np.arange(size)  # f s
    outside = ((row < 0) | (row >= height))[:, :, None] | ((column < 0) | (column >= width))[:, None, :]
    at = (row.clip(0, height - 1) * width)[:, :, None] + column.clip(0, width - 1)[:, None, :]
    at = at + (np.arange(len(owner)) * height * width)[:, None, None]
    alpha = np.concatenate([blob.alpha[blob.visible] for blob in blobs]).ravel()[at]
    doubtful = []
    for blob in blobs:
        rivals = blob.rivals[blob.visible]
        doubtful.append(np.where(rivals, HIDDEN, np.where(widened(rivals), NEAR, 1)).astype(np.float32))
    weight = np.concatenate(doubtful).ravel()[at]
    alpha, weight = np.where(outside, 0, alpha), np.where(outside, HIDDEN, weight)
    guess = np.stack([x, y, radius], axis=1)
    return _Windows(*(a.astype(np.float32) for a in (alpha, weight, column + 0.5, row + 0.5, guess)), owner)


def _ranks(windows: _Windows) -> np.ndarray:
    """Place of each window among those of its blob, from the clearest to the one most in doubt."""
    doubt = (windows.alpha * (windows.weight < 1)).sum(axis=(1, 2)) / windows.guess[:, 2] ** 2
    order = np.lexsort((doubt, windows.owner))
    firsts = np.searchsorted(windows.owner[order], windows.owner[order])
    ranks = np.empty(len(order), dtype=int)
    ranks[order] = np.arange(len(order)) - firsts
    return ranks


def _rivals(glances: _Windows, count: int) -> np.ndarray:
    """Which shapes each blob may have, shapes n: the best after one step, and the second if it is almost as good."""
    fits = (_fit(shape, glances, _start(shape, glances), 1)[1] for shape in SHAPES)
    misfits = np.stack([_mean_by(glances.owner, misfit, count) for misfit in fits])
    return misfits <= np.minimum(MARGIN * misfits.min(axis=0), np.sort(misfits, axis=0)[1])


def _mean_by(owner: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    number = np.bincount(owner, minlength=count)
    return np.bincount(owner, weights=values, minlength=count) / np.maximum(number, 1)


def _fit(shape: str, windows: _Windows, start: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y, radius, angle in radians) f 4 after some steps, and the misfit of each window."""
    state, limit = start.copy(), np.array([2, 2, 1, 0.4], dtype=np.float32)
    # A disc has no angle: the heavy damping keeps it where it is.
    damping = np.diag(np.array([1e-3, 1e-3, 1e-3, 1e-3 if PERIOD[shape] else 1e6], dtype=np.float32))
    for _ in range(steps):
        template, dx, dy = _template(shape, windows, state)
        residual = (windows.alpha - template).reshape(len(state), -1, 1)
        gx, gy = np.zeros_like(template), np.zeros_like(template)
        gx[:, :, 1:-1] = (template[:, :, 2:] - template[:, :, :-2]) / 2
        gy[:, 1:-1] = (template[:, 2:] - template[:, :-2]) / 2
        jacobian = np.stack([gx, gy, (dx * gx + dy * gy) / state[:, 2, None, None], dx * gy - dy * gx], axis=1)
        jacobian = -jacobian.reshape(len(state), 4, -1)  # f 4 p
        weighted = jacobian * windows.weight.reshape(len(state), 1, -1)
        normal = weighted @ jacobian.transpose(0, 2, 1)  # f 4 4
        scale = 1 + normal.trace(axis1=1, axis2=2)[:, None, None]
        step = np.linalg.solve(normal + damping * scale, weighted @ residual)[..., 0].clip(-limit, limit)
        state += step
        state[:, 2] = state[:, 2].clip(1, template.shape[1])
        if np.abs(step[:, :3]).max() < STILL:
            break
    residual = windows.alpha - _template(shape, windows, state)[0]
    return state, (windows.weight * residual**2).sum(axis=(1, 2)) / (np.pi * state[:, 2] ** 2)


def _template(shape: str, windows: _Windows, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much of each pixel the shape covers, f s s, and the pixels' places relative to its centre."""
    x, y, radius, angle = (column[:, None, None] for column in state.T)
    dx, dy = windows.columns[:, None, :] - x, windows.rows[:, :, None] - y
    c, s = np.cos(angle) / radius, np.sin(angle) / radius
    outline = distance(shape, c * dx + s * dy, c * dy - s * dx) * radius
    return np.clip(0.5 - outline / EDGE, 0, 1), dx, dy


def _start(shape: str, windows: _Windows) -> np.ndarray:
    """First guesses f 4: where the corners or arms point is told by the shape's harmonic in what was seen."""
    x, y, radius = (column[:, None, None] for column in windows.guess.T)
    angle = np.zeros(len(windows.guess), dtype=np.float32)
    if PERIOD[shape]:
        order = round(360 / PERIOD[shape])
        z = ((windows.columns[:, None, :] - x) + 1j * (windows.rows[:, :, None] - y)) / radius
        near = z.real**2 + z.imag**2 < (1.1 * REACH[shape]) ** 2
        power = z * z * z if order == 3 else (z * z if order == 2 else (z * z) ** 2)
        angle = np.angle((windows.alpha * near * power).sum(axis=(1, 2))) / order
        # Corners of the unturned square lie on the diagonals, one of the triangle's points up.
        angle = angle + {"square": np.pi / 4, "triangle": np.pi / 2}.get(shape, 0.0)
    return np.concatenate([windows.guess, angle[:, None]], axis=1, dtype=np.float32)
