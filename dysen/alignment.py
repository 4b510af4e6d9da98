"""Which scene graph a frame belongs to, for any number of frames and ticks, and which graphs it may see beside its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vdm.errors import ConfigError


def frame_ticks(num_frames: int, num_ticks: int) -> tuple[int, ...]:
    """For each frame the tick its graph is of: floor(f M / F), so the ticks share the frames evenly."""
    if num_frames < 1 or num_ticks < 1:
        raise ConfigError("frames and ticks are counted from 1", got=f"{num_frames} frames, {num_ticks} ticks")
    return tuple(frame * num_ticks // num_frames for frame in range(num_frames))


def ticks_at(times: Sequence[float], num_ticks: int) -> tuple[int, ...]:
    """For frames whose time is known (in ticks, as `frame_ticks` of a shapes clip): the tick that holds at that time."""
    return tuple(min(max(math.floor(time + 1e-6), 0), num_ticks - 1) for time in times)


def visibility(ticks: Sequence[int], num_ticks: int, window: int | None) -> tuple[tuple[bool, ...], ...]:
    """t m: a frame sees the graphs at most `window` ticks from its own; all of them when `window` is None."""
    if window is not None and window < 0:
        raise ConfigError("a window has no negative size", got=window, allowed=">= 0, or null for all graphs")
    reach = num_ticks if window is None else window
    return tuple(tuple(abs(m - tick) <= reach for m in range(num_ticks)) for tick in ticks)
