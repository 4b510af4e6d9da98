"""Frechet distance of single frames: FID with the network of 2015 that everybody uses. It does not see motion."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.evaluation import distances
from vdm.evaluation.sets import Features, SetDistance, of_frames, spread


class FID(SetDistance):
    """`frames` of each clip, evenly spread; 1 is the middle one. The name says how many frames there were in all.

    Frames of one clip are alike, so the interval and the floor draw clips.
    """

    def __init__(
        self, *, label: str, network: Features, frames: PositiveInt, draws: NonNegativeInt, seed: NonNegativeInt
    ):
        super().__init__(network=network, draws=draws, seed=seed)
        self.label, self.frames = label, frames

    def chosen(self, video: Tensor) -> Tensor:
        return spread(video, self.frames)

    def features(self, chosen: Tensor) -> Tensor:
        return of_frames(self.network, chosen)  # b f d

    def numbers(self) -> dict[str, float]:
        self.shape()
        distance, draw = distances.frechet_distance, distances.frechet_draws
        return self.described(self.label, lambda n: f"{n * self.frames}", distance, draw)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"frames_per_clip": self.frames}
