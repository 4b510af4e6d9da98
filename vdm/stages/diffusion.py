"""Stage 2: the video diffusion model, on the latents of a frozen autoencoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vdm.autoencoder.base import VideoAutoencoder
from vdm.bounds import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from vdm.conditions.base import Condition, ConditionSet
from vdm.diffusion.guidance import classifier_free, guided
from vdm.diffusion.objective import Objective
from vdm.errors import ConfigError, DataError
from vdm.stages.base import Stage
from vdm.types import Controls, LatentShape, VideoBatch

FIXED_SEED = 0  # of validation and samples: the same noise in every run, so that runs can be compared


@dataclass(frozen=True, kw_only=True)
class Previews:
    """How videos are sampled during training."""

    sampler: Callable[..., Tensor]
    guidance: NonNegativeFloat
    rescale: Fraction


class DiffusionStage(Stage):
    """Trains the backbone and what is trained of the conditions. The autoencoder is frozen; it is saved with them, so that
    a checkpoint needs nothing else to make videos.
    """

    def __init__(
        self,
        *,
        name: str,
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
            optimizer=optimizer,
            scheduler=scheduler,
            grad_clip=grad_clip,
            accumulate=accumulate,
            max_skipped=max_skipped,
            seed=seed,
        )
        if autoencoder.latent_channels != backbone.latent_channels:
            raise ConfigError(
                "backbone and autoencoder disagree on the channels of a latent",
                key="backbone.latent_channels",
                got=backbone.latent_channels,
                allowed=autoencoder.latent_channels,
                remedy="leave it at ${autoencoder.latent_channels}",
            )
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.conditions = ConditionSet(
            members=conditions, joint_drop_prob=joint_drop_prob, joint_keep_prob=joint_keep_prob
        )
        backbone.open_doors(
            streams=self.conditions.streams,
            concat_channels=self.conditions.concat_channels,
            embed_width=self.conditions.embed_width,
        )
        self.backbone, self.objective = backbone, objective
        self.noise_levels, self.previews, self.cached = noise_levels, previews, cached
        self.conditions_lr = conditions_lr
        self.level_losses = [float("nan")] * noise_levels  # running means, from the clean end to noise

    def train(self, mode: bool = True) -> DiffusionStage:
        super().train(mode)
        self.autoencoder.eval()
        return self

    def on_fit_start(self) -> None:
        """Weights are in place by now, of a parent or of the checkpoint that is continued: a cache must be theirs."""
        if self.cached is not None and self.trainer.datamodule is not None:
            self.trainer.datamodule.use_cache(self.cached, self.made_by)

    def made_by(self) -> dict[str, Any]:
        """What decides latents and embeddings, less what is still being trained."""
        return {"autoencoder": self.autoencoder.fingerprint(), "conditions": self.conditions.fingerprint()}

    def losses(self, batch: VideoBatch) -> dict[str, Tensor]:
        with self.phases("autoencoder"):
            latent = self.latent_of(batch)
        shape = LatentShape(*latent.shape[1:])
        draw = self.objective.draw(batch["key"], self.seed, self.step, shape, latent.device)
        with self.phases("encoding"):
            controls = self.conditions(batch, shape, seed=self.seed, step=self.step)
        losses = self.objective(self.backbone, latent, controls, noise=draw.noise, timestep=draw.timestep)  # b
        self._note_levels(losses.detach(), self.objective.noise_level(draw.quantile, self.noise_levels))
        levels = {f"loss_level_{i}": latent.new_tensor(value) for i, value in enumerate(self.level_losses)}
        return {"loss": losses.mean()} | levels

    @torch.no_grad()
    def latent_of(self, batch: VideoBatch) -> Tensor:
        """Normalised latents `b c t h w`: the batch's own, or what the autoencoder makes of its videos."""
        if "latent" in batch:
            latent = batch["latent"]
            if latent.dim() != 5 or latent.shape[1] != self.autoencoder.latent_channels:
                allowed = f"clips, {self.autoencoder.latent_channels}, frames, height, width"
                raise DataError("these latents are not of this autoencoder", key="latent", got=tuple(latent.shape),
                                allowed=allowed)  # fmt: skip
            return latent.float()
        return self.autoencoder.latents(batch["video"])

    def _note_levels(self, losses: Tensor, levels: Tensor) -> None:
        """A batch holds few samples of a noise level, so what is logged of each is a running mean."""
        pairs = list(zip(levels.tolist(), losses.float().tolist(), strict=True))
        for level, old in enumerate(self.level_losses):
            fresh = [loss for at, loss in pairs if at == level]
            if fresh:
                mean = sum(fresh) / len(fresh)
                self.level_losses[level] = 0.95 * old + 0.05 * mean if old == old else mean  # nan: nothing so far

    def parameter_groups(self) -> list[dict[str, Any]]:
        own = {} if self.conditions_lr is None else {"lr": self.conditions_lr}
        groups = [
            {"params": _learning(self.backbone), "name": "backbone", "matrices": True},
            {"params": _learning(self.conditions), "name": "conditions", **own},
        ]
        return [group for group in groups if group["params"]]

    def averaged(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "conditions": self.conditions}

    def validation_losses(self, batch: VideoBatch) -> dict[str, Tensor]:
        """At the middle of each range of noise, with everything said and with noise that belongs to the clip."""
        latent = self.latent_of(batch)
        shape = LatentShape(*latent.shape[1:])
        schedule, losses = self.objective.schedule.at_resolution(shape), {}
        with self._trainers_precision():
            controls = self.conditions.encode(batch, shape)
            for level in range(self.noise_levels):
                quantile = torch.full((len(latent),), (level + 0.5) / self.noise_levels, dtype=torch.float64)
                timestep = schedule.training_timestep(self.objective.density(quantile)).to(latent.device, torch.float32)
                noise = self.objective.noise(batch["key"], FIXED_SEED, shape, latent.device, step=level)
                losses[f"loss_level_{level}"] = self.objective(
                    self.backbone, latent, controls, noise=noise, timestep=timestep
                )
        return {"loss": torch.stack(list(losses.values())).mean(0)} | losses

    def preview(self, batch: VideoBatch) -> dict[str, Tensor]:
        """The clip, and what the model makes of its caption."""
        latent = self.latent_of(batch)
        video = batch["video"] if "video" in batch else self.decode(latent)
        return {"video": video, "sample": self.sample(batch, LatentShape(*latent.shape[1:]))}

    @torch.no_grad()
    def sample(self, batch: VideoBatch, shape: LatentShape) -> Tensor:
        """Videos `b 3 T H W` for what a batch says; its `video` is not looked at."""
        with self._trainers_precision():
            predict = guided(
                self._predictor,
                self.conditions.controls_for(batch, shape),
                classifier_free(
                    self.conditions.names, self.previews.guidance, rescale=self.previews.rescale, interval=(0.0, 1.0)
                ),
                num_timesteps=self.objective.schedule.num_timesteps,
                shared=True,
            )
            keys = batch["key"]
            latent = self.previews.sampler(
                self.objective.denoiser_of(predict),
                self.objective.noise(keys, FIXED_SEED, shape, self.device),
                self.objective.schedule.at_resolution(shape),
                step_noise=lambda step: self.objective.noise(keys, FIXED_SEED, shape, self.device, step=step),
            )
        return self.decode(latent)

    def decode(self, latent: Tensor) -> Tensor:
        """Latents -> videos in [-1, 1], in full precision as they were encoded."""
        with torch.autocast(self.device.type, enabled=False):
            return self.autoencoder.decode(latent.float()).float().clamp(-1.0, 1.0)

    def _predictor(self, controls: Controls) -> Callable[[Tensor, Tensor], Tensor]:
        return functools.partial(self.backbone, controls=self.backbone.prepare(controls))

    def _trainers_precision(self) -> AbstractContextManager:
        """Validation and samples happen in callbacks, outside the context that Lightning puts around a step."""
        trainer = self._trainer
        return nullcontext() if trainer is None else trainer.precision_plugin.forward_context()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        levels = torch.tensor(self.level_losses, dtype=torch.float64, device=self.device)
        checkpoint["stage"]["level_losses"] = self.all_gather(levels).reshape(-1, len(levels)).tolist()  # a row a rank

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        rows = checkpoint["stage"]["level_losses"]
        same = self._trainer is not None and self.trainer.world_size == len(rows)
        mean = torch.tensor(rows, dtype=torch.float64).nanmean(0).tolist()
        self.level_losses = list(rows[self.global_rank]) if same else mean


def _learning(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]
