"""What an autoencoder keeps of clips it has not seen: encode with the posterior's mean, decode, measure.

The clips themselves are measured beside it, because a judge's own mistakes are not the autoencoder's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.evaluation.base import VideoMetric
from vdm.types import VideoBatch
from vdm.video import save_mp4, save_png, sheet, to_float, to_uint8


class Reconstruction:
    """`shown` clips are written as original and reconstruction side by side."""

    needs = ("autoencoder",)

    def __init__(
        self, *, name: str, stage: str, split: str, clips: PositiveInt, shown: NonNegativeInt, scale: PositiveInt
    ):
        self.name, self.stage, self.split, self.clips = name, stage, split, clips
        self.shown, self.scale = shown, scale

    @torch.no_grad()
    def run(
        self,
        networks: Mapping[str, nn.Module],
        batches: Iterable[VideoBatch],
        metrics: Mapping[str, VideoMetric],
        originals: Mapping[str, VideoMetric],
        folder: Path,
    ) -> dict[str, float]:
        """Named numbers; those of the clips themselves are under `original/`."""
        autoencoder = networks["autoencoder"].eval()
        rows, seen = [], 0
        for batch in batches:
            restored = to_uint8(autoencoder.decode(autoencoder.encode(batch["video"])))
            for metric in metrics.values():
                metric.update(restored, batch)
            for metric in originals.values():
                metric.update(to_uint8(batch["video"]), batch)
            for position in range(min(len(restored), max(0, self.shown - seen))):
                rows += self._show(batch, position, to_float(restored[position]), folder)
            seen += len(restored)
        if rows:
            save_png(folder / "sheet.png", sheet(rows, scale=self.scale))
        measured = {name: value for metric in metrics.values() for name, value in metric.compute().items()}
        of_originals = {f"original/{n}": v for metric in originals.values() for n, v in metric.compute().items()}
        return {"clips": seen, **measured, **of_originals}

    def _show(self, batch: VideoBatch, position: int, restored: Tensor, folder: Path) -> list[Tensor]:
        pair = [batch["video"][position].cpu(), restored.cpu()]
        path = folder / "videos" / f"{batch['key'][position]}.mp4"
        save_mp4(path, torch.cat(pair, dim=-1), float(batch["fps"][position]))
        return pair
