"""Distances between a set of made clips and a set of real ones, with what makes such a number readable beside it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vdm.evaluation import distances
from vdm.evaluation.distances import Distance
from vdm.evaluation.features import KeptFeatures
from vdm.evaluation.keyed import KeyedMetric, Skipped, warn_if_few
from vdm.types import VideoBatch
from vdm.video import to_uint8

LEVEL = 0.95  # of the interval
SPLITS = 5  # of the real clips, for the floor


class Features(Protocol):
    def __call__(self, pictures: Tensor) -> Tensor:
        """Features b d of 8-bit clips b 3 T H W or frames b 3 H W."""

    def check_ready(self) -> None:
        """Skipped where it cannot be used."""

    def facts(self) -> dict[str, Any]: ...


class SetDistance(KeyedMetric):
    """The real side are the clips of the batches, or, after `begin_reference`, only those given to `refer`."""

    sides = ("made", "real")
    higher_is_better = False

    def __init__(self, *, network: Features, draws: int, seed: int):
        super().__init__()
        self.network, self.draws, self.seed = network, draws, seed
        self._referred = False

    @abstractmethod
    def chosen(self, video: Tensor) -> Tensor:
        """What is looked at of clips b 3 T H W, of either side, in the same layout."""

    @abstractmethod
    def features(self, chosen: Tensor) -> Tensor:
        """Rows b d or b f d of what was chosen."""

    def keep_features(self, folder: Path) -> None:
        self.network = KeptFeatures(self.network, folder)

    def check_ready(self) -> None:
        self.network.check_ready()

    def begin_reference(self) -> None:
        """The real side is a set of its own, also in a process that sees nothing of it."""
        assert not self.update_called, "the reference comes first"
        self._referred = True

    def parted(self, side: str) -> bool:
        return side == "made" or not self._referred

    def refer(self, video: Tensor, keys: Sequence[str]) -> None:
        """Clips of a reference set, b 3 T H W in uint8, before the first update."""
        assert self._referred, "begin_reference comes first"
        if self._unavailable is None:
            try:
                self._look("real", video, keys)
            except Skipped as reason:
                self._unavailable = str(reason)

    def see(self, video: Tensor, batch: VideoBatch) -> None:
        self._look("made", video, batch["key"])
        if not self._referred:
            self._look("real", to_uint8(batch["video"]), batch["key"])

    def _look(self, side: str, video: Tensor, keys: Sequence[str]) -> None:
        assert video.dtype == torch.uint8, "both sides are measured in 8 bit"
        chosen = self.chosen(video)
        self.keep(side, keys, self.features(chosen), chosen)

    def shape(self) -> tuple[int, int, int]:
        """T H W of all clips of both sides."""
        made, real = ([f"{t} frames of {h}x{w}" for t, h, w in self.shapes(side)] for side in self.sides)
        if len({*made, *real}) > 1:
            both = f"made clips are {' and '.join(made)}, real ones {' and '.join(real)}"
            raise Skipped(f"{both}: resizing or cutting would tell them apart")
        if not made:
            raise Skipped("no clips were seen")
        return self.shapes()[0]

    def described(
        self, label: str, ending: Callable[[int], str], distance: Distance, draw: Callable[..., list[float]]
    ) -> dict[str, float]:
        """A distance under a name whose ending says how many clips it is of, its interval, and what real clips get."""
        made, real = self.rows("made"), self.rows("real")
        if min(len(made), len(real)) < 2:
            raise Skipped(f"a distance needs at least two clips on each side, got {len(made)} and {len(real)}")
        if made.isnan().any() or real.isnan().any():
            raise Skipped("the network gives features that are not numbers")
        if self.is_part:
            return {label: distance(real, made)}
        title = f"{label}{ending(len(made))}"
        if distance is distances.frechet_distance:  # that of kernels has no bias
            warn_if_few(title, min(len(made), len(real)))
        value = distance(real, made)
        out = {title: value}
        if self.draws:
            low, high = distances.interval(value, draw(real, made, draws=self.draws, seed=self.seed), level=LEVEL)
            out |= {f"{title}/low": low, f"{title}/high": high}
        if min(len(made), len(real) // 2) >= 2:
            lowest, matched, count = distances.floor(distance, real, made, splits=SPLITS, seed=self.seed)
            out |= {f"{title}/floor": lowest, f"{title}/matched": matched, f"{title}/floor_clips": count}
        return out

    def reset(self) -> None:
        super().reset()
        self._referred = False

    def facts(self) -> dict[str, Any]:
        return (
            super().facts()
            | self.network.facts()
            | {"reference": "a set of its own" if self._referred else "the batch"}
        )


def window(video: Tensor, frames: int | None, stride: int) -> Tensor:
    """The first `frames` frames, every `stride`-th; all of them where `frames` is None. Nothing is repeated or padded."""
    if frames is None:
        return video[:, :, ::stride]
    needed = (frames - 1) * stride + 1
    if video.shape[2] < needed:
        raise Skipped(
            f"clips have {video.shape[2]} frames, and {needed} are needed for {frames} of them with stride {stride}; "
            "the metric's `frames` or `stride` can be less, and the number then has another name"
        )
    return video[:, :, :needed:stride]


def span(frames: int, stride: int) -> str:
    """As in fvd2048_16f and fvd2048_128f_subsample8f."""
    return f"{frames}f" if stride == 1 else f"{frames * stride}f_subsample{stride}f"


def spread(video: Tensor, frames: int | None) -> Tensor:
    """`frames` frames of each clip, evenly spread, b 3 f H W; the one in the middle where it is 1; None: all."""
    length = video.shape[2]
    if frames is not None and frames > length:
        raise Skipped(f"clips have {length} frames, of which {frames} cannot be chosen")
    places = torch.arange(length) if frames is None else ((torch.arange(frames) + 0.5) * length / frames).long()
    return video[:, :, places.to(video.device)]


def of_frames(network: Features, video: Tensor) -> Tensor:
    """b f d of clips b 3 f H W, each frame by itself."""
    return network(video.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(video), video.shape[2]))
