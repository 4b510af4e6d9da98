"""stage=dysen: the video model goes on training on the scene graphs that a planner made of its captions (the paper's step 3).

In sampling nobody has the true graphs. So from step to step more of the clips come with planned ones, with all their mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dysen.condition import SceneGraphCondition, scenes_of_clip
from dysen.icl.rewards import agreement
from dysen.planning_corpus import PlannedGraphs
from vdm.autoencoder.base import VideoAutoencoder
from vdm.bounds import Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from vdm.conditions.base import Condition
from vdm.diffusion.noise import generator_for
from vdm.diffusion.objective import Objective
from vdm.errors import ConfigError
from vdm.stages.diffusion import DiffusionStage, Previews
from vdm.stages.planned import check_some_are_found, with_planned
from vdm.types import VideoBatch

COUNTS = ("asked", "without_plan", "contradicted")  # of clips, since the first step


@dataclass(frozen=True, kw_only=True)
class PlannedShare:
    """The share of clips that come with planned graphs: a straight line over the first `steps`, then `end`."""

    start: Fraction
    end: Fraction
    steps: PositiveInt

    def at(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


class DysenStage(DiffusionStage):
    """A clip that has no plan of its caption keeps its gold graphs, and is counted.

    Args:
        planned: what `python -m dysen.plan` wrote for the training split.
        share: how many clips come with it.
        agreement: a plan is told only where its graphs agree so well with the true ones: the share of triplets that both
            have, in the same order. 0: every plan, as in the paper. Of a clip without true graphs every plan is told.
    """

    def __init__(
        self,
        *,
        name: str,
        planned: PlannedGraphs,
        share: PlannedShare,
        agreement: Fraction,
        autoencoder: VideoAutoencoder,
        backbone: nn.Module,
        objective: Objective,
        conditions: Mapping[str, Condition],
        joint_drop_prob: Fraction,
        joint_keep_prob: Fraction,
        noise_levels: PositiveInt,
        cached: str | None,
        previews: Previews,
        conditions_lr: PositiveFloat | None,
        optimizer: Callable[[Iterable], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        grad_clip: PositiveFloat | None,
        accumulate: PositiveInt,
        max_skipped: PositiveInt,
        seed: NonNegativeInt,
    ):
        super().__init__(
            name=name,
            autoencoder=autoencoder,
            backbone=backbone,
            objective=objective,
            conditions=conditions,
            joint_drop_prob=joint_drop_prob,
            joint_keep_prob=joint_keep_prob,
            noise_levels=noise_levels,
            cached=cached,
            previews=previews,
            conditions_lr=conditions_lr,
            optimizer=optimizer,
            scheduler=scheduler,
            grad_clip=grad_clip,
            accumulate=accumulate,
            max_skipped=max_skipped,
            seed=seed,
        )
        heard = [member for member in conditions.values() if isinstance(member, SceneGraphCondition)]
        if not heard:
            remedy = "start from a run of stage=vdm condition=[text,scene_graph]: init.vdm=<run>"
            raise ConfigError("this model hears no scene graphs", key="condition", got=list(conditions), remedy=remedy)
        self.planned, self.share, self.agreement, self.heard = planned, share, agreement, heard[0]
        self.asked = 0  # clips that were to come with a planned graph, on this rank
        self.without_plan = 0  # of these
        self.contradicted = 0  # of these: the true graphs say something else than the plan

    def losses(self, batch: VideoBatch) -> dict[str, Tensor]:
        batch, share = self.with_plans(batch)
        counts = {"planned_share": share} | {name: getattr(self, name) / max(self.asked, 1) for name in COUNTS[1:]}
        return super().losses(batch) | {name: torch.tensor(value, device=self.device) for name, value in counts.items()}

    def with_plans(self, batch: VideoBatch) -> tuple[VideoBatch, float]:
        """The batch with planned graphs in the place of some gold ones, and their share of it."""
        before = self.contradicted
        batch, asked, found = with_planned(batch, self.planned, self.heard, self.is_planned, self.is_true)
        self.asked, self.without_plan = self.asked + asked, self.without_plan + asked - found
        check_some_are_found(self.planned, self.asked, self.without_plan)
        return batch, (found - self.contradicted + before) / len(batch["key"])

    def is_planned(self, key: str) -> bool:
        """Drawn for (seed, step, key): whatever else is in the batch, on any rank and after a resume."""
        draw = torch.rand((), generator=generator_for(key, self.seed, "planned", self.step), dtype=torch.float64)
        return draw.item() < self.share.at(self.step)

    def is_true(self, key: str, planned: Any, gold: Any) -> bool:
        if self.agreement == 0 or gold is None:
            return True
        graphs = (scenes_of_clip(said, key, self.heard.reads) for said in (planned, gold))
        is_so = agreement(*graphs) >= self.agreement
        self.contradicted += not is_so
        return is_so

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["stage"] |= {name: getattr(self, name) for name in COUNTS}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for name in COUNTS:
            setattr(self, name, checkpoint["stage"].get(name, 0))
