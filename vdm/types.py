"""What flows between the parts: batches of clips, and the three doors of the backbone.

Letters, everywhere: b batch, c latent channels, t h w latent frames and size, T H W the same in pixels, n tokens,
d token width, e embedding width, k control channels, m scene graphs or ticks.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NotRequired, TypedDict

from torch import Tensor


class VideoBatch(TypedDict):
    """A dictionary, so that default collate, pinned memory and device transfer work untouched."""

    video: Tensor  # b 3 T H W in [-1, 1]
    caption: list[str]
    fps: Tensor  # b
    key: list[str]  # stable id of each clip: it seeds the noise and names output files
    extras: NotRequired[dict[str, Any]]  # signals under the name of their condition


class LatentShape(NamedTuple):
    """Shape of one latent clip, without the batch."""

    channels: int
    frames: int
    height: int
    width: int
