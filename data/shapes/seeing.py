"""Find coloured things in pixels: which palette colours there are, and how much of each pixel belongs to them.

The ground is grey, so only the colour part of a pixel matters: its direction names the palette colour and its length
says how much of the pixel is covered. Textures, shading and most codec noise are grey too and vanish at this step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.shapes.render import RGB
from data.shapes.script import COLOURS

# Two axes that span what is left of RGB when grey is taken away.
AXES = np.array([[1, -1, 0], [0.5, 0.5, -1]], dtype=np.float32).T / np.sqrt([2, 1.5], dtype=np.float32)  # 3 2
PALETTE = np.array([RGB[colour] for colour in COLOURS], dtype=np.float32) @ AXES  # 8 2
LENGTHS = np.linalg.norm(PALETTE, axis=1)  # 8
HUES = PALETTE / LENGTHS[:, None]  # 8 2

NONE = len(COLOURS)  # label of pixels without a colour
GREY = 30.0  # colour below this is ground
SOLID = 0.5  # a pixel covered this far belongs to the thing
SMALLEST = 9.0  # solid pixels of the smallest thing, at 32 x 32
FEWEST = 0.12  # of a thing's largest area: with less in sight it is hidden
FREE = 4.0  # solid pixels away from all other colours: where two things touch, their blend is no third thing


@dataclass(frozen=True)
class Blob:
    """All that has one colour."""

    colour: str
    alpha: np.ndarray  # T H W, float32 in [0, 1]: how much of a pixel it covers
    solid: np.ndarray  # T H W, bool
    rivals: np.ndarray  # T H W, bool: pixels of other things, behind which it may go on
    visible: np.ndarray  # T, bool


def find(video: np.ndarray) -> list[Blob]:
    """The coloured things in a video T H W 3 in uint8."""
    shape = video.shape[:3]
    unit = shape[1] * shape[2] / 1024
    rgb = np.ascontiguousarray(video.reshape(-1, 3).T, dtype=np.float32)  # 3 p, one column for each pixel
    chroma = AXES.T @ rgb  # 2 p
    ground = chroma[:, (chroma * chroma).sum(axis=0) < GREY**2]
    if ground.shape[1]:
        chroma -= np.median(ground[:, :: 1 + ground.shape[1] // 2048], axis=1, keepdims=True)
    cover = (HUES / LENGTHS[:, None]) @ chroma  # 8 p
    label = (HUES @ chroma).argmax(axis=0)
    labels = np.where(np.take_along_axis(cover, label[None], axis=0)[0] > SOLID, label, NONE).reshape(shape)
    frame = np.arange(shape[0])[:, None, None] * (NONE + 1)
    counts = np.bincount((labels + frame).ravel(), minlength=shape[0] * (NONE + 1)).reshape(-1, NONE + 1)  # T 9
    present = [k for k in range(NONE) if counts[:, k].max() >= SMALLEST * unit and _stands_free(labels, k, unit)]
    if not present:
        return []
    # Once it is known which colours there are, every pixel goes to one of them: noise cannot invent others.
    among = np.array(present)[(HUES[present] @ chroma).argmax(axis=0)].reshape(shape)
    known = np.array([k in present for k in range(NONE + 1)])[labels]
    return [blob for k in present if (blob := _blob(k, cover[k].reshape(shape), among, known, unit))]


def _stands_free(labels: np.ndarray, k: int, unit: float) -> bool:
    mine, others = labels == k, (labels != NONE) & (labels != k)
    return int((mine & ~widened(others)).sum(axis=(1, 2)).max()) >= FREE * unit


def widened(mask: np.ndarray) -> np.ndarray:
    """A mask T H W grown by one pixel to all eight sides."""
    out = mask.copy()
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    rows = out.copy()
    out[:, :, 1:] |= rows[:, :, :-1]
    out[:, :, :-1] |= rows[:, :, 1:]
    return out


def _blob(k: int, cover: np.ndarray, among: np.ndarray, known: np.ndarray, unit: float) -> Blob | None:
    mine = among == k
    inside = cover[mine & (cover > SOLID)]
    if not len(inside):
        return None
    # A codec or a decoder may fade a colour; what is inside the thing counts as covered whatever its saturation.
    gain = max(float(np.quantile(inside, 0.7)), SOLID)
    alpha = np.where(mine, np.clip(cover / gain, 0, 1), 0)
    solid = alpha > SOLID
    counts = solid.sum(axis=(1, 2))
    return Blob(COLOURS[k], alpha, solid, known & ~mine, counts >= max(3 * unit, FEWEST * counts.max()))
