"""The video term of the reward: what a video made from a plan is worth, by one of several measures.

All are in [0, 1] and 0 for a caption without a plan. They differ in what they need: the true plan, the true clip, the
caption, or a judge.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dysen.icl.clip import Clip
from dysen.icl.rewards import Outcome, RewardTerm, frechet
from dysen.icl.videos import PlanVideos
from vdm.bounds import NonNegativeFloat, PositiveFloat
from vdm.errors import ConfigError
from vdm.video import to_uint8


class VideoTerm(RewardTerm):
    """Makes a video of each plan.

    Args:
        weight: in the sum.
        sample: makes them.
    """

    def __init__(self, *, weight: NonNegativeFloat, sample: PlanVideos):
        super().__init__(weight=weight)
        self.sample = sample

    @torch.no_grad()
    def scores(self, outcomes: Sequence[Outcome]) -> list[float]:
        found = [0.0] * len(outcomes)
        planned = [i for i, one in enumerate(outcomes) if one.plan is not None]
        if planned:
            some = [outcomes[i] for i in planned]
            for i, score in zip(planned, self.compared(self.sample(some), some), strict=True):
                found[i] = score if math.isfinite(score) else 0.0
        return found

    @abstractmethod
    def compared(self, videos: Sequence[Tensor], outcomes: Sequence[Outcome]) -> list[float]:
        """One score for each video `3 T H W` of an outcome that has a plan."""

    def state(self) -> dict[str, Any]:
        return {"run": self.sample.run.name}

    def load_state(self, state: dict[str, Any]) -> None:
        if state and state["run"] != self.sample.run.name:  # a newer one than the training began with
            self.sample.choose(state["run"])


class VideoLikeness(VideoTerm):
    """How near a video made from the plan is to the right one: 1 / (1 + distance / scale).

    Args:
        truth: plan: the video of the true plan, by the same run in the same noise | clip: the true clip.
        features: videos `b 3 T H W` -> `b d`.
        measure: distance: of each video by itself | frechet: of all videos of a batch (FVD, as published), so one score for
            all of them.
        scale: the distance that is worth one half.
    """

    def __init__(
        self,
        *,
        weight: NonNegativeFloat,
        sample: PlanVideos,
        truth: Literal["plan", "clip"],
        features: Callable[[Tensor], Tensor],
        measure: Literal["distance", "frechet"],
        scale: PositiveFloat,
    ):
        super().__init__(weight=weight, sample=sample)
        self.truth, self.features, self.measure, self.scale = truth, features, measure, scale
        self.is_of_batch = measure == "frechet"

    def compared(self, videos: Sequence[Tensor], outcomes: Sequence[Outcome]) -> list[float]:
        if self.truth == "plan":
            right = self.sample.of_truth(outcomes)
        else:
            absent = [one.caption for one in outcomes if one.video is None]
            if absent:
                raise ConfigError("the captions come without their clips", key="stage.terms.video.truth", got="clip",
                                  remedy="set it to plan, or train on clips: texts=null data.extras=[plan]")  # fmt: skip
            right = [one.video.to(videos[0].device) for one in outcomes]
            sizes = {tuple(clip.shape) for clip in (*right, *videos)}
            if len(sizes) > 1:
                raise ConfigError("the run makes videos of another size than the clips have", key="data.clip",
                                  got=sorted(sizes))  # fmt: skip
        made, true = (self.features(torch.stack(list(some))).double() for some in (videos, right))
        if self.measure == "distance":
            distances = (made - true).norm(dim=-1).tolist()
        else:
            distances = [frechet(made, true)] * len(videos)
        return [1 / (1 + distance / self.scale) for distance in distances]


class CaptionLikeness(VideoTerm):
    """How near a video is to its caption, as a model of text and pictures sees it (CLIP score): (1 + cosine) / 2.

    Only captions are needed. Cosines of real videos differ by a few hundredths: with stage.normalise that is enough.
    """

    def __init__(self, *, weight: NonNegativeFloat, sample: PlanVideos, clip: Clip):
        super().__init__(weight=weight, sample=sample)
        self.clip = clip

    def compared(self, videos: Sequence[Tensor], outcomes: Sequence[Outcome]) -> list[float]:
        found = self.clip.cosines(videos, [one.caption for one in outcomes])
        return [(1 + min(max(value, -1.0), 1.0)) / 2 for value in found.tolist()]


class JudgedVideo(VideoTerm):
    """What a judge sees in a video, such as the oracle of the shapes world.

    Args:
        judge: a clip `T H W 3` in uint8 and the truth -> numbers in [0, 1] by name, None where a clip has none.
        reads: the name of the truth among the extras of a caption.
        names: the numbers that count; their mean is the score.
    """

    def __init__(
        self,
        *,
        weight: NonNegativeFloat,
        sample: PlanVideos,
        judge: Callable[[np.ndarray, Any], Mapping[str, float | None]],
        reads: str,
        names: list[str],
    ):
        super().__init__(weight=weight, sample=sample)
        self.judge, self.reads, self.names = judge, reads, list(names)

    def compared(self, videos: Sequence[Tensor], outcomes: Sequence[Outcome]) -> list[float]:
        if any(self.reads not in one.extras for one in outcomes):
            raise ConfigError("the captions come without the truth that the judge needs", key="data.extras",
                              got=sorted(outcomes[0].extras),
                              remedy=f"train on clips that have it: texts=null data.extras=[plan,{self.reads}]")  # fmt: skip
        return [self._score(video, one.extras[self.reads]) for video, one in zip(videos, outcomes, strict=True)]

    def _score(self, video: Tensor, truth: Any) -> float:
        seen = self.judge(to_uint8(video).permute(1, 2, 3, 0).cpu().numpy(), truth)
        absent = [name for name in self.names if name not in seen]
        if absent:
            raise ConfigError(
                "the judge knows no such number", key="stage.terms.video.names", got=absent, allowed=sorted(seen)
            )
        values = [seen[name] for name in self.names if seen[name] is not None]
        return sum(values) / len(values) if values else 1.0  # nothing was asked for, so nothing is wrong
