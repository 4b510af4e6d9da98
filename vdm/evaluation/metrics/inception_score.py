"""Inception scores from class probabilities: of whole clips (C3D tuned on UCF-101) and of frames (Inception, 2015).

They are two numbers with two networks and never one: each has its own name.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.evaluation.distances import inception_score
from vdm.evaluation.features import KeptFeatures
from vdm.evaluation.keyed import KeyedMetric, Skipped, warn_if_few
from vdm.evaluation.sets import Features, of_frames, span, spread, window
from vdm.types import VideoBatch


class InceptionScore(KeyedMetric):
    """Mean over `splits` parts of the clips, whose deviation stands beside it. The parts go by a hash of the keys."""

    higher_is_better = True
    of_originals = True

    def __init__(self, *, label: str, network: Features, splits: PositiveInt):
        super().__init__()
        self.label, self.network, self.splits = label, network, splits
        self._end = ""

    @abstractmethod
    def probabilities(self, video: Tensor) -> Tensor:
        """b c, or b f c, of 8-bit clips b 3 T H W."""

    def keep_features(self, folder: Path) -> None:
        self.network = KeptFeatures(self.network, folder)

    def check_ready(self) -> None:
        self.network.check_ready()

    def see(self, video: Tensor, batch: VideoBatch) -> None:
        found = self.probabilities(video)
        if (found < 0).any() or not torch.allclose(found.sum(-1), torch.ones(()), atol=1e-2):
            raise Skipped("the network does not give probabilities of classes: they do not add up to 1")
        self.keep("made", batch["key"], found, video)

    def numbers(self) -> dict[str, float]:
        rows = self.rows()
        if len(rows) < self.splits:
            raise Skipped(f"{len(rows)} clips cannot be split into {self.splits} parts")
        mean, deviation = inception_score(rows, splits=self.splits)
        if self.is_part:
            return {self.label: mean}
        name = f"{self.label}{len(rows)}{self._end}"
        warn_if_few(name, len(rows))
        return {name: mean, f"{name}/deviation": deviation}

    def facts(self) -> dict[str, Any]:
        return super().facts() | self.network.facts() | {"splits": self.splits}


class VideoInceptionScore(InceptionScore):
    """Of the first `frames` frames, every `stride`-th."""

    def __init__(self, *, label: str, network: Features, frames: PositiveInt, stride: PositiveInt, splits: PositiveInt):
        super().__init__(label=label, network=network, splits=splits)
        self.frames, self.stride = frames, stride
        self._end = f"_{span(frames, stride)}"

    def probabilities(self, video: Tensor) -> Tensor:
        return self.network(window(video, self.frames, self.stride))

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"frames": self.frames, "stride": self.stride, "window": "the first"}


class FrameInceptionScore(InceptionScore):
    """Of `frames` frames of each clip, evenly spread. All frames of a clip are in one part."""

    def __init__(self, *, label: str, network: Features, frames: PositiveInt, splits: PositiveInt):
        super().__init__(label=label, network=network, splits=splits)
        self.frames = frames
        self._end = f"x{frames}"

    def probabilities(self, video: Tensor) -> Tensor:
        return of_frames(self.network, spread(video, self.frames))

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"frames_per_clip": self.frames}
