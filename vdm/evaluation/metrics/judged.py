"""Scores by a judge that looks at one clip at a time, such as the oracle of the shapes world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdm.errors import ConfigError
from vdm.evaluation.keyed import PerClip
from vdm.types import VideoBatch


class Judged(PerClip):
    """`judge(clip T H W 3, truth)` gives numbers by name, None where a clip has none; `truth` is `extras[reads]`."""

    higher_is_better = True
    needs = ("truth",)

    def __init__(self, *, judge: Callable[[np.ndarray, Any], Mapping[str, float | None]], reads: str, names: list[str]):
        super().__init__()
        self.judge, self.reads, self.names = judge, reads, list(names)

    def see(self, video: Tensor, batch: VideoBatch) -> None:
        extras = batch.get("extras", {})
        if self.reads not in extras:
            remedy = f"use a dataset whose shards hold {self.reads!r}, and name it in data.extras"
            raise ConfigError(
                "the clips carry no truth for this judge", key="data.extras", got=sorted(extras), remedy=remedy
            )
        rows = []
        for clip, truth in zip(video.permute(0, 2, 3, 4, 1).cpu().numpy(), extras[self.reads], strict=True):
            scores = self.judge(clip, truth)
            rows.append([torch.nan if scores[name] is None else scores[name] for name in self.names])
        self.keep("made", batch["key"], torch.tensor(rows, dtype=torch.float64), video)

    def columns(self) -> list[str]:
        return self.names
