"""Temporal flicker: how much pixels change from frame to frame. Motion is change as well: compare with the real clips."""

from __future__ import annotations

import torch
from torch import Tensor

from vdm.evaluation.keyed import PerClip
from vdm.types import VideoBatch


class Flicker(PerClip):
    """Mean absolute difference of neighbouring frames, 0 (still) to 1 (black to white), mean over clips."""

    higher_is_better = False

    def see(self, video: Tensor, batch: VideoBatch) -> None:
        x = video.float()
        changes = (x[:, :, 1:] - x[:, :, :-1]).abs().flatten(1) / 255
        found = changes.mean(1, keepdim=True) if changes.shape[1] else torch.full((len(x), 1), torch.nan)
        self.keep("made", batch["key"], found, video)

    def columns(self) -> list[str]:
        return ["flicker"]
