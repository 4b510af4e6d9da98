"""Peak signal to noise ratio of clips against the clips of the batch, in dB."""

from __future__ import annotations

import torch
from torch import Tensor

from vdm.evaluation.base import VideoMetric
from vdm.types import VideoBatch
from vdm.video import to_uint8


class PSNR(VideoMetric):
    """The mean over clips of each clip's own ratio, on 8-bit values."""

    higher_is_better = True

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("clips", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, video: Tensor, batch: VideoBatch) -> None:
        error = (video.double() - to_uint8(batch["video"]).double()).square().flatten(1).mean(1)  # b
        self.total += (10.0 * (255.0**2 / error.clamp_min(1e-10)).log10()).sum()
        self.clips += len(error)

    def compute(self) -> dict[str, float]:
        return {"psnr": (self.total / self.clips).item()}
