"""Frame consistency: how alike a CLIP model finds frames that follow each other. A still picture is perfect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdm.evaluation.clip import OpenClip
from vdm.evaluation.features import KeptClip
from vdm.evaluation.keyed import PerClip
from vdm.types import VideoBatch


class ClipConsistency(PerClip):
    """Cosine of neighbouring frames, mean over a clip, then over clips. Read it beside a measure of motion."""

    higher_is_better = True

    def __init__(self, *, clip: OpenClip):
        super().__init__()
        self.clip = clip

    def keep_features(self, folder: Path) -> None:
        self.clip = KeptClip(self.clip, folder)

    def check_ready(self) -> None:
        self.clip.check_ready()

    def see(self, video: Tensor, batch: VideoBatch) -> None:
        seen = self.clip.pictures(video)  # b T d
        pairs = (seen[:, 1:] * seen[:, :-1]).sum(-1)  # b T-1
        alike = pairs.mean(1, keepdim=True) if pairs.shape[1] else torch.full((len(seen), 1), torch.nan)
        self.keep("made", batch["key"], alike, video)

    def columns(self) -> list[str]:
        return [f"clip_consistency_{self.clip.title}"]

    def facts(self) -> dict[str, Any]:
        return super().facts() | self.clip.facts()
