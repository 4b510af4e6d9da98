"""Stage 1: the video autoencoder, with its discriminator in the same optimizer as a second parameter group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vdm.autoencoder.base import VideoAutoencoder
from vdm.autoencoder.loss import AutoencoderLoss
from vdm.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from vdm.diffusion.noise import generator_for
from vdm.stages.base import Stage
from vdm.types import VideoBatch


class AutoencoderStage(Stage):
    """Trains on posterior samples, validates on posterior means."""

    def __init__(
        self,
        *,
        name: str,
        autoencoder: VideoAutoencoder,
        loss: AutoencoderLoss,
        discriminator_lr: PositiveFloat | None,
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
        self.autoencoder = autoencoder
        self.loss = loss
        self.discriminator_lr = discriminator_lr

    def losses(self, batch: VideoBatch) -> dict[str, Tensor]:
        video = batch["video"]
        posterior = self.autoencoder.posterior(video)
        raw = posterior.mean + self._noise(batch["key"], like=posterior.mean) * (0.5 * posterior.logvar).exp()
        reconstruction = self.autoencoder.reconstruct(raw)
        return self.loss(video, reconstruction, posterior, step=self.step, last_layer=self.autoencoder.last_layer)

    def _noise(self, keys: Sequence[str], like: Tensor) -> Tensor:
        """Of each clip at this step, whatever else is in the batch: any number of processes trains the same model."""
        generators = (generator_for(key, self.seed, "posterior", self.step) for key in keys)
        return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators]).to(like)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Before its start step the discriminator has no gradient at all, and optimizers pass over such parameters."""
        groups = [{"params": list(self.autoencoder.parameters()), "name": "autoencoder"}]
        if self.loss.adversarial is not None:
            group = {"params": list(self.loss.adversarial.parameters()), "name": "discriminator"}
            groups.append(group if self.discriminator_lr is None else group | {"lr": self.discriminator_lr})
        return groups

    def averaged(self) -> dict[str, nn.Module]:
        return {"autoencoder": self.autoencoder}

    def validation_losses(self, batch: VideoBatch) -> dict[str, Tensor]:
        """Of the posterior's mean, which is what later stages see; `psnr` in dB. The loss has no adversarial term, so
        that it can be compared between steps.
        """
        video = batch["video"]
        posterior = self.autoencoder.posterior(video)
        reconstruction = self.autoencoder.reconstruct(posterior.mode())
        terms = self.loss.terms(video, reconstruction, posterior)
        return {"loss": sum(self.loss.weighted(terms, video)), "psnr": psnr(reconstruction, video)} | terms

    def preview(self, batch: VideoBatch) -> dict[str, Tensor]:
        video = batch["video"]
        latent = self.autoencoder.encode(video)
        return {"video": video, "reconstruction": self.autoencoder.decode(latent).float().clamp(-1.0, 1.0)}

    def finish(self, batches: Iterable[VideoBatch]) -> None:
        """Measure the latent's mean and deviation; they travel with the weights."""
        training = self.autoencoder.training
        self.autoencoder.eval()
        sums = self.autoencoder.latent_sums(batch["video"] for batch in batches)
        self.autoencoder.normalise(self.trainer.strategy.reduce(sums, reduce_op="sum"))
        self.autoencoder.train(training)


def psnr(video: Tensor, reference: Tensor) -> Tensor:
    """Peak signal to noise ratio of each clip in dB, `b`; both in [-1, 1]."""
    error = (video.float().clamp(-1.0, 1.0) - reference.float()).square().flatten(1).mean(1)
    return 10.0 * (4.0 / error.clamp_min(1e-10)).log10()
