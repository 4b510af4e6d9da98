"""Frechet and kernel distance of features of whole clips: FVD and KVD with the network everybody uses, other names with others.

The name says what was measured: `fvd2048_16f` is 2,048 clips of 16 frames, `fvd256_16f` is not comparable with it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.evaluation import distances
from vdm.evaluation.sets import Features, SetDistance, span, window


class FVD(SetDistance):
    """`label` and `kernel_label` begin the names; without a kernel label there is no kernel distance.

    Args:
        frames: the first ones of each clip, every `stride`-th; null: all.
        draws: bootstrap samples for the interval; 0: none.
    """

    def __init__(
        self,
        *,
        label: str,
        kernel_label: str | None,
        network: Features,
        frames: PositiveInt | None,
        stride: PositiveInt,
        draws: NonNegativeInt,
        seed: NonNegativeInt,
    ):
        super().__init__(network=network, draws=draws, seed=seed)
        self.label, self.kernel_label, self.frames, self.stride = label, kernel_label, frames, stride
        self._length = 0

    def chosen(self, video: Tensor) -> Tensor:
        return window(video, self.frames, self.stride)

    def features(self, chosen: Tensor) -> Tensor:
        return self.network(chosen)

    def numbers(self) -> dict[str, float]:
        self._length = self.shape()[0]
        end = span(self._length, self.stride)
        frechet, kernel = distances.frechet_distance, distances.kernel_distance
        found = self.described(self.label, lambda n: f"{n}_{end}", frechet, distances.frechet_draws)
        if self.kernel_label is not None:
            found |= self.described(self.kernel_label, lambda n: f"{n}_{end}", kernel, distances.kernel_draws)
        return found

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"frames": self._length, "stride": self.stride, "window": "the first"}
