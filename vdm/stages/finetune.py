"""stage=finetune: a video model goes on training on one dataset, all of it or a part (the paper's step 4)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vdm import adapters, checkpoint
from vdm.autoencoder.base import VideoAutoencoder
from vdm.bounds import Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from vdm.conditions.base import Condition
from vdm.diffusion.objective import Objective
from vdm.errors import ConfigError, RunError
from vdm.stages.diffusion import DiffusionStage, Previews
from vdm.stages.planned import Plans, check_some_are_found, with_planned
from vdm.stages.tuning import Tuning, trained
from vdm.types import VideoBatch

log = logging.getLogger(__name__)

GRAPHS = "scene_graph"  # the condition that planned graphs are told to


class FinetuneStage(DiffusionStage):
    """A clip hears the planned graphs of its caption where there are some, else those that its shard has, else none.

    Args:
        tuning: what is trained.
        planned, planned_val: plans of the captions of the training and the validation split.
    """

    def __init__(
        self,
        *,
        name: str,
        tuning: Tuning,
        planned: Plans | None,
        planned_val: Plans | None,
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
        if (planned is not None or planned_val is not None) and GRAPHS not in conditions:
            remedy = "leave out stage/planned, or start from a run that hears them: init.vdm=<run>"
            raise ConfigError("this model hears no scene graphs", key="stage.planned", got=list(conditions) or "nothing",
                              remedy=remedy)  # fmt: skip
        self.tuning, self.planned, self.planned_val = tuning, planned, planned_val
        self.needs_parents = tuning.needs_parent
        self.adapter: dict[str, Any] | None = None  # what adapter.json says
        self.asked = self.without_plan = 0  # clips on this rank, for a message

    def prepare(self, run_folder: Path) -> None:
        networks = {"backbone": self.backbone, "conditions": self.conditions}
        new = {name: origin.new for name, origin in self.origins.items()}
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.tuning.apply(networks, new)
        if self.tuning.scale is not None:
            self.adapter = self._beside_parent(run_folder)
        count = sum(p.numel() for p in trained(networks).values())
        whole = sum(p.numel() for network in networks.values() for p in network.parameters())
        log.info("%s: %s of %s parameters are trained (%.3g %%)", type(self.tuning).__name__, f"{count:,}", f"{whole:,}",
                 100 * count / max(whole, 1))  # fmt: skip

    def _beside_parent(self, run_folder: Path) -> dict[str, Any]:
        folders = {origin.folder for origin in self.origins.values()}
        if len(folders) != 1 or self.origins.keys() != {"autoencoder", "backbone", "conditions"}:
            remedy = "name it: init.vdm=<run>. Published weights become one with stage=vdm and a step of training"
            raise ConfigError("an adapter is kept beside the weights of one run", key="init.vdm", remedy=remedy)
        (parent,) = folders
        files = checkpoint.read_manifest(parent)["files"]
        return adapters.record(parent, files, run_folder=run_folder, scale=self.tuning.scale)

    # ---- what clips hear ------------------------------------------------------------------------------------------

    def losses(self, batch: VideoBatch) -> dict[str, Tensor]:
        if self.planned is None:
            return super().losses(batch)
        batch, asked, found = with_planned(batch, self.planned, self.conditions.members[GRAPHS])
        self.asked, self.without_plan = self.asked + asked, self.without_plan + asked - found
        check_some_are_found(self.planned, self.asked, self.without_plan)
        share = torch.tensor(self.without_plan / self.asked, device=self.device)
        return super().losses(batch) | {"without_plan": share}

    def validation_losses(self, batch: VideoBatch) -> dict[str, Tensor]:
        return super().validation_losses(self._told_in_validation(batch))

    def preview(self, batch: VideoBatch) -> dict[str, Tensor]:
        return super().preview(self._told_in_validation(batch))

    def _told_in_validation(self, batch: VideoBatch) -> VideoBatch:
        if self.planned_val is None:
            return batch
        return with_planned(batch, self.planned_val, self.conditions.members[GRAPHS])[0]

    # ---- what is kept ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["stage"] |= {"asked": self.asked, "without_plan": self.without_plan}
        if self.adapter is not None:
            checkpoint["adapter"] = self.adapter
            checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in self._trained()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.asked, self.without_plan = (checkpoint["stage"].get(name, 0) for name in ("asked", "without_plan"))
        if self.adapter is None:
            return
        before = checkpoint.pop("adapter", None)
        if before is None or before["files"] != self.adapter["files"] or before["scale"] != self.adapter["scale"]:
            remedy = "name the parent it began with: init.vdm=<run>, or start another run with run.id=<name>"
            raise RunError("this checkpoint is no adapter of the weights that this run begins with", key="init.vdm",
                           got=None if before is None else before["parent"], remedy=remedy)  # fmt: skip
        own, kept = self._trained(), checkpoint["state_dict"]
        if kept.keys() != own.keys():
            wrong = sorted(kept.keys() ^ own.keys())
            raise RunError("this checkpoint is an adapter of other layers", key="stage.tuning.layers",
                           got=f"{len(wrong)} tensors, such as {wrong[0]}")  # fmt: skip
        checkpoint["state_dict"] = self.state_dict() | kept

    def _trained(self) -> dict[str, Tensor]:
        return trained({"backbone": self.backbone, "conditions": self.conditions})
