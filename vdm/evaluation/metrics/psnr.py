"""Peak signal to noise ratio of clips against the clips of the batch, in dB."""

from __future__ import annotations

from torch import Tensor

from vdm.evaluation.keyed import PerClip
from vdm.types import VideoBatch
from vdm.video import to_uint8


class PSNR(PerClip):
    """The mean over clips of each clip's own ratio, on 8-bit values."""

    higher_is_better = True
    needs = ("originals",)
    of_originals = False  # they are what is compared with

    def see(self, video: Tensor, batch: VideoBatch) -> None:
        error = (video.double() - to_uint8(batch["video"]).double()).square().flatten(1).mean(1, keepdim=True)  # b 1
        self.keep("made", batch["key"], 10.0 * (255.0**2 / error.clamp_min(1e-10)).log10(), video)

    def columns(self) -> list[str]:
        return ["psnr"]
