"""How much moves: length of the optical flow, and the share of clips in which something clearly moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdm.bounds import Fraction, PositiveFloat
from vdm.evaluation.flow import optical_flow
from vdm.evaluation.keyed import PerClip
from vdm.types import VideoBatch


class Motion(PerClip):
    """In shorter sides of the picture a second, so that size and frame rate do not matter.

    Args:
        share: of the pixels, those that move most, whose mean decides whether a pair of frames is dynamic.
        threshold: shorter sides a second; a clip is dynamic if at least a quarter of its pairs of frames are above it.
    """

    def __init__(self, *, share: Fraction, threshold: PositiveFloat):
        super().__init__()
        self.share, self.threshold = share, threshold

    def see(self, video: Tensor, batch: VideoBatch) -> None:
        rows = [self._row(clip, float(fps)) for clip, fps in zip(video, batch["fps"], strict=True)]
        self.keep("made", batch["key"], torch.tensor(rows, dtype=torch.float64), video)

    def columns(self) -> list[str]:
        return ["flow_lk", "dynamic_degree_lk"]

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"flow": "Lucas-Kanade", "share": self.share, "threshold": self.threshold}

    @torch.no_grad()
    def _row(self, clip: Tensor, fps: float) -> tuple[float, float]:
        frames = clip.transpose(0, 1).float() / 255  # T 3 H W
        if len(frames) < 2:
            return torch.nan, torch.nan
        lengths = optical_flow(frames[:-1], frames[1:]).norm(dim=1).flatten(1)  # T-1 HW
        lengths = lengths * fps / min(frames.shape[-2:])
        largest = lengths.topk(max(1, round(self.share * lengths.shape[1])), dim=1).values.mean(1)
        return lengths.mean().item(), float((largest > self.threshold).double().mean() >= 0.25)
