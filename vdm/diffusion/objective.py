"""The training objective: add noise, ask the backbone, compare. And the way back: a backbone as a denoiser.

One class for epsilon (Ho et al. 2020), v (Salimans and Ho 2022) and flow matching (Lipman et al. 2023): they differ in
schedule, prediction, density of the timesteps and weight of the loss, which are its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdm.bounds import Fraction, NonNegativeFloat, PositiveFloat
from vdm.diffusion.density import Density
from vdm.diffusion.noise import noise_for, training_noise
from vdm.diffusion.prediction import target, to_x0
from vdm.diffusion.schedule import Schedule
from vdm.errors import ConfigError
from vdm.types import Controls, LatentShape

Predict = Callable[[Tensor, Tensor], Tensor]  # x b c t h w, timestep b -> what the network predicts
Denoise = Callable[[Tensor, Tensor], Tensor]  # x b c t h w, timestep b -> clean latent b c t h w


class Backbone(Protocol):
    def __call__(self, x: Tensor, timestep: Tensor, controls: Controls) -> Tensor: ...


class Draw(NamedTuple):
    """The random part of a training step."""

    noise: Tensor  # b c t h w
    timestep: Tensor  # b
    quantile: Tensor  # b in (0, 1): how much of training happens at less noise than here


class Objective(nn.Module):
    """Loss of a backbone on a latent, and the denoiser that the trained backbone is."""

    def __init__(
        self,
        *,
        schedule: Schedule,
        prediction: Literal["epsilon", "v", "x0", "velocity"],
        density: Density,
        loss: Literal["l1", "l2", "huber"],
        huber_delta: PositiveFloat,
        min_snr_gamma: PositiveFloat | None,
        offset_noise: NonNegativeFloat,
        shared_noise: Fraction,
    ):
        """
        Args:
            schedule: how much noise at which timestep.
            prediction: what the backbone's output means.
            density: which noise levels are trained how often.
            loss: l1, l2, or huber: l2 for errors below `huber_delta`, l1 above.
            huber_delta: where the huber loss turns straight.
            min_snr_gamma: largest weight of a timestep's error in x0, 5 in the paper (Hang et al. 2023); None: no weights.
            offset_noise: this much extra noise per channel, constant over a clip, so that brightness can be learned.
            shared_noise: part of the noise's variance that all frames of a clip have in common, in training and in
                sampling (the mixed noise of PYoCo, Ge et al. 2023, with alpha^2 / (1 + alpha^2)).
        """
        super().__init__()
        self.schedule, self.prediction, self.density = schedule, prediction, density
        self.loss, self.huber_delta = loss, huber_delta
        self.min_snr_gamma, self.offset_noise, self.shared_noise = min_snr_gamma, offset_noise, shared_noise
        self._refuse_what_cannot_be_learned()

    def draw(self, keys: Sequence[str], seed: int, step: int, shape: LatentShape, device: torch.device | str) -> Draw:
        """Noise and timesteps of an optimizer step: each sample's own, whatever else is in the batch."""
        quantile, noise = training_noise(keys, seed, step, shape, self.offset_noise, self.shared_noise)
        timestep = self.schedule.at_resolution(shape).training_timestep(self.density(quantile))
        return Draw(noise.to(device), timestep.to(device, torch.float32), quantile.to(device, torch.float32))

    def noise(
        self, keys: Sequence[str], seed: int, shape: LatentShape, device: torch.device | str, *, step: int = 0
    ) -> Tensor:
        """Noise of each sample outside of training: what a sampler starts from (step 0) or adds at a step."""
        return noise_for(keys, seed, shape, device, step=step, shared=self.shared_noise)

    def forward(
        self, backbone: Backbone, latent: Tensor, controls: Controls, *, noise: Tensor, timestep: Tensor
    ) -> Tensor:
        """Loss of each sample, in float32. `noise` and `timestep` come from `draw`."""
        alpha, sigma = self._levels(timestep, latent)
        x = (alpha * latent + sigma * noise).to(latent.dtype)  # b c t h w
        predicted = backbone(x, timestep, controls).float()
        error = self._error(predicted, target(self.prediction, latent, noise, alpha, sigma).float())
        return error.mean(dim=tuple(range(1, error.ndim))) * self.weight(timestep)  # b

    def weight(self, timestep: Tensor) -> Tensor:
        """Weight of the loss at each timestep (Hang et al. 2023): min(SNR, gamma) in terms of the error in x0."""
        if self.min_snr_gamma is None:
            return torch.ones_like(timestep, dtype=torch.float32)
        alpha, sigma = self.schedule.levels(timestep)
        # An error of the prediction times this is the error of the x0 that it means.
        to_x0_error = {
            "epsilon": sigma / alpha,
            "x0": torch.ones_like(alpha),
            "v": sigma / (alpha**2 + sigma**2),
            "velocity": sigma / (alpha + sigma),
        }[self.prediction]
        snr = (alpha / sigma) ** 2
        return (snr.clamp(max=self.min_snr_gamma) * to_x0_error**2).float()

    def denoiser(self, backbone: Backbone, controls: Controls) -> Denoise:
        """The backbone as a map from a noisy latent to a clean one."""
        return self.denoiser_of(lambda x, timestep: backbone(x, timestep, controls))

    def denoiser_of(self, predict: Predict) -> Denoise:
        """The same for any prediction, such as a guided one."""

        def denoise(x: Tensor, timestep: Tensor) -> Tensor:
            alpha, sigma = self._levels(timestep, x)
            return to_x0(self.prediction, x, predict(x, timestep), alpha, sigma).to(x.dtype)

        return denoise

    @staticmethod
    def noise_level(quantile: Tensor, bins: int) -> Tensor:
        """Which of `bins` equally frequent ranges of noise a sample was trained at, for logging the loss of each."""
        return (quantile * bins).long().clamp(0, bins - 1)

    def _levels(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (like.ndim - 1))
        dtype = torch.promote_types(like.dtype, torch.float32)  # half precision cannot tell 0.999 from 1
        return tuple(level.to(dtype).view(shape) for level in self.schedule.levels(timestep))

    def _error(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        if self.loss == "l1":
            return F.l1_loss(predicted, wanted, reduction="none")
        if self.loss == "huber":
            return F.huber_loss(predicted, wanted, reduction="none", delta=self.huber_delta)
        return F.mse_loss(predicted, wanted, reduction="none")

    def _refuse_what_cannot_be_learned(self) -> None:
        last = torch.tensor(float(self.schedule.first + self.schedule.num_timesteps - 1))
        alpha, _ = self.schedule.levels(last)
        if self.prediction == "epsilon" and alpha == 0:
            raise ConfigError(
                "this schedule ends in pure noise, where a prediction of the noise says nothing about the clip",
                key="objective.prediction",
                got=self.prediction,
                allowed=["v", "x0", "velocity"],
                remedy="set objective.prediction=v, or objective.schedule.zero_terminal_snr=false",
            )
