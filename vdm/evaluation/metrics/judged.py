"""Scores by a judge that looks at one clip at a time, such as the oracle of the shapes world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdm.errors import ConfigError
from vdm.evaluation.base import VideoMetric
from vdm.types import VideoBatch


class Judged(VideoMetric):
    """`judge(clip T H W 3, truth)` gives numbers by name, None where a clip has none; `truth` is `extras[reads]`."""

    higher_is_better = True

    def __init__(self, *, judge: Callable[[np.ndarray, Any], Mapping[str, float | None]], reads: str, names: list[str]):
        super().__init__()
        self.judge, self.reads, self.names = judge, reads, list(names)
        self.add_state("totals", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, video: Tensor, batch: VideoBatch) -> None:
        extras = batch.get("extras", {})
        if self.reads not in extras:
            remedy = f"use a dataset whose shards hold {self.reads!r}, and name it in data.extras"
            raise ConfigError(
                "the clips carry no truth for this judge", key="data.extras", got=sorted(extras), remedy=remedy
            )
        for clip, truth in zip(video.permute(0, 2, 3, 4, 1).cpu().numpy(), extras[self.reads], strict=True):
            scores = self.judge(clip, truth)
            for position, name in enumerate(self.names):
                if scores[name] is not None:
                    self.totals[position] += scores[name]
                    self.counts[position] += 1

    def compute(self) -> dict[str, float]:
        return {n: (t / c).item() for n, t, c in zip(self.names, self.totals, self.counts, strict=True) if c > 0}
