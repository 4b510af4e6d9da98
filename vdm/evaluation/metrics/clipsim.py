"""CLIPSIM: how well frames fit their caption in the eyes of a CLIP model, which the name of the number says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.evaluation.clip import OpenClip
from vdm.evaluation.features import KeptClip
from vdm.evaluation.keyed import PerClip
from vdm.evaluation.sets import spread
from vdm.types import VideoBatch


class CLIPSIM(PerClip):
    """Cosine of caption and frame, mean over `frames` frames of a clip (null: all), then over clips. Not times 100."""

    higher_is_better = True
    needs = ("captions",)

    def __init__(self, *, clip: OpenClip, frames: PositiveInt | None):
        super().__init__()
        self.clip, self.frames = clip, frames

    def keep_features(self, folder: Path) -> None:
        self.clip = KeptClip(self.clip, folder)

    def check_ready(self) -> None:
        self.clip.check_ready()

    def see(self, video: Tensor, batch: VideoBatch) -> None:
        chosen = spread(video, self.frames)
        seen = self.clip.pictures(chosen)  # b f d
        said = self.clip.captions(batch["caption"])  # b d
        self.keep("made", batch["key"], (seen @ said[..., None]).mean(1), chosen)  # b 1

    def columns(self) -> list[str]:
        return [f"clipsim_{self.clip.title}_{self._length()}f"]

    def facts(self) -> dict[str, Any]:
        return super().facts() | self.clip.facts() | {"frames_per_clip": self._length()}

    def _length(self) -> str:
        lengths = sorted({t for t, _, _ in self.shapes()})
        return "-".join(map(str, dict.fromkeys([lengths[0], lengths[-1]]))) if lengths else "0"
