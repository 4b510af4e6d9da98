"""What a text-to-video model makes of captions it has not seen: sample each, look at it as a viewer would, measure.

The clips that the captions belong to are measured beside it, because a judge's own mistakes are not the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from vdm.bounds import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from vdm.evaluation.base import VideoMetric
from vdm.types import VideoBatch
from vdm.video import save_mp4, save_png, sheet, to_float, to_uint8


class Generation:
    """`seed` and a clip's key decide the noise, so the numbers do not depend on batches. `shown` samples are written, each
    beside the clip its caption belongs to.
    """

    needs = ("samples",)

    def __init__(
        self,
        *,
        name: str,
        stage: str | Sequence[str],
        graphs: Literal["gold", "planned", "none"],
        plans: Callable[..., object],
        split: str,
        clips: PositiveInt,
        reference_split: str | None,
        reference_clips: PositiveInt,
        sampler: Callable[..., Tensor],
        guidance: NonNegativeFloat,
        guidance_rescale: Fraction,
        guidance_interval: Sequence[float],
        seed: NonNegativeInt,
        shown: NonNegativeInt,
        scale: PositiveInt,
    ):
        self.name, self.stage, self.split, self.clips = name, stage, split, clips
        self.graphs, self.plans = graphs, plans
        self.reference_split, self.reference_clips = reference_split, reference_clips
        self.sampler, self.guidance, self.guidance_rescale = sampler, guidance, guidance_rescale
        self.guidance_interval = (float(guidance_interval[0]), float(guidance_interval[1]))
        self.seed, self.shown, self.scale = seed, shown, scale

    def run(
        self,
        make: Callable[[VideoBatch], Tensor],
        batches: Iterable[VideoBatch],
        metrics: Mapping[str, VideoMetric],
        originals: Mapping[str, VideoMetric],
        folder: Path,
    ) -> dict[str, float]:
        """Named numbers; those of the clips themselves are under `original/`. `make` gives videos b 3 T H W in uint8."""
        rows, captions, seen = [], [], 0
        for batch in batches:
            made = make(batch)
            for metric in metrics.values():
                metric.update(made, batch)
            for metric in originals.values():
                metric.update(to_uint8(batch["video"]), batch)
            for position in range(min(len(made), max(0, self.shown - seen))):
                pair = [batch["video"][position].cpu(), to_float(made[position]).cpu()]
                rows += pair
                captions.append(batch["caption"][position])
                key, fps = batch["key"][position], float(batch["fps"][position])
                save_mp4(folder / "videos" / f"{key}.mp4", pair[1], fps)
            seen += len(made)
        if rows:
            save_png(folder / "sheet.png", sheet(rows, scale=self.scale))
            (folder / "captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
        measured = {name: value for metric in metrics.values() for name, value in metric.compute().items()}
        of_originals = {f"original/{n}": v for metric in originals.values() for n, v in metric.compute().items()}
        return {"clips": seen, **measured, **of_originals}
