"""Warping error: what is left of the change from frame to frame when motion is taken out of it. A still clip has none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdm.evaluation.flow import optical_flow, visible, warped
from vdm.evaluation.keyed import PerClip
from vdm.types import VideoBatch


class WarpingError(PerClip):
    """Mean squared difference of a frame and the next one moved back by the flow, where a surface is seen in both.

    Pixels in [0, 1]; mean over the pixels and colours of a clip, then over clips.
    """

    higher_is_better = False

    def see(self, video: Tensor, batch: VideoBatch) -> None:
        rows = torch.tensor([[self._error(clip)] for clip in video], dtype=torch.float64)
        self.keep("made", batch["key"], rows, video)

    def columns(self) -> list[str]:
        return ["warping_error_lk"]

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"flow": "Lucas-Kanade", "hidden": "there and back again"}

    @torch.no_grad()
    def _error(self, clip: Tensor) -> float:
        frames = clip.transpose(0, 1).float() / 255  # T 3 H W
        if len(frames) < 2:
            return torch.nan
        here, there = frames[:-1], frames[1:]
        forward = optical_flow(here, there)
        seen = visible(forward, optical_flow(there, here)).double()
        error = (warped(there, forward) - here).double().square().mean(1, keepdim=True)
        return ((error * seen).sum() / seen.sum()).item() if seen.any() else torch.nan
