"""Noise schedules: x = alpha(timestep) clean + sigma(timestep) noise, from float64 tables.

Timesteps run from `first` (hardly any noise) to `first + num_timesteps - 1` (hardly anything else). The variance
preserving schedules are tables of `num_timesteps` entries counted from 0 (Ho et al. 2020; Nichol and Dhariwal 2021), read
between their entries too; the flow is the straight line alpha = 1 - sigma, sigma = timestep / num_timesteps, counted from
1 (Lipman et al. 2023; Liu et al. 2023).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vdm.bounds import PositiveFloat, PositiveInt
from vdm.errors import ConfigError
from vdm.types import LatentShape


class Schedule(ABC):
    """How much of the clean latent and how much noise there is at a timestep. All results are float64."""

    num_timesteps: int
    first: int  # the timestep with the least noise that a network is trained on
    is_discrete: bool  # whether networks only ever see whole timesteps

    @abstractmethod
    def levels(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma, in the shape and on the device of `timestep`."""

    @abstractmethod
    def timestep_of(self, ratio: Tensor) -> Tensor:
        """The timestep where sigma / alpha is `ratio`."""

    @abstractmethod
    def training_timestep(self, quantile: Tensor) -> Tensor:
        """Map (0, 1), from little noise to much, to the timesteps of training."""

    def shifted(self, timestep: Tensor) -> Tensor:
        """Where sampling puts an evenly spaced timestep."""
        return timestep

    def at_resolution(self, shape: LatentShape) -> Schedule:
        """The schedule for latents of this shape: larger ones need more noise to hide as much."""
        return self


class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1, from betas: the variance of the noise that each step of the forward process adds."""

    first = 0
    is_discrete = True

    def __init__(self, *, betas: Tensor, zero_terminal_snr: bool):
        assert betas.dtype == torch.float64, "schedules are computed in float64"
        alphas = torch.cumprod(1 - betas, dim=0).sqrt()
        if zero_terminal_snr:
            # Lin et al. 2024, Algorithm 1: shift the last entry to zero, scale so that the first stays as it was
            alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
        self.num_timesteps = len(betas)
        self.alphas = alphas
        self.sigmas = (1 - alphas**2).sqrt()
        self._copies: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def levels(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        alphas, sigmas = self._tables(timestep.device)
        timestep = timestep.double()
        below = timestep.floor().clamp(0, self.num_timesteps - 2).long()
        part = (timestep - below).clamp(0, 1)
        alpha = torch.lerp(alphas[below], alphas[below + 1], part)
        sigma = torch.lerp(sigmas[below], sigmas[below + 1], part)
        norm = torch.hypot(alpha, sigma)  # between entries, go along the circle and not across it
        return alpha / norm, sigma / norm

    def timestep_of(self, ratio: Tensor) -> Tensor:
        alphas, sigmas = self._tables(ratio.device)
        ratio = ratio.double()
        below = torch.searchsorted(sigmas / alphas, ratio, right=True).sub(1).clamp(0, self.num_timesteps - 2)
        left = sigmas[below] - ratio * alphas[below]  # zero at the answer, and straight in between
        right = sigmas[below + 1] - ratio * alphas[below + 1]
        timestep = below + (left / (left - right)).clamp(0, 1)
        return torch.where(ratio.isinf(), self.num_timesteps - 1.0, timestep)

    def training_timestep(self, quantile: Tensor) -> Tensor:
        return (quantile * self.num_timesteps).floor().clamp(max=self.num_timesteps - 1)

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._copies:
            self._copies[device] = self.alphas.to(device), self.sigmas.to(device)
        return self._copies[device]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_copies": {}}


class Flow(Schedule):
    """The straight line from data to noise. A shift above 1 spends more of training and sampling near the noise."""

    first = 1
    is_discrete = False

    def __init__(self, *, num_timesteps: PositiveInt, shift: PositiveFloat, base_tokens: PositiveInt | None):
        """
        Args:
            num_timesteps: the timestep that the network is told at pure noise.
            shift: the time shift.
            base_tokens: latent positions (t h w) that `shift` is meant for; latents of n positions get
                shift * sqrt(n / base_tokens) (Esser et al. 2024, Eq. 23). None: the same shift for all.
        """
        self.num_timesteps, self.shift, self.base_tokens = num_timesteps, shift, base_tokens

    def levels(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        sigma = timestep.double() / self.num_timesteps
        return 1 - sigma, sigma

    def timestep_of(self, ratio: Tensor) -> Tensor:
        ratio = ratio.double()
        return self.num_timesteps * torch.where(ratio.isinf(), 1.0, ratio / (1 + ratio))

    def training_timestep(self, quantile: Tensor) -> Tensor:
        return self.shifted(quantile * self.num_timesteps)

    def shifted(self, timestep: Tensor) -> Tensor:
        sigma = timestep / self.num_timesteps
        return self.num_timesteps * self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def at_resolution(self, shape: LatentShape) -> Flow:
        if self.base_tokens is None:
            return self
        tokens = shape.frames * shape.height * shape.width
        shift = self.shift * math.sqrt(tokens / self.base_tokens)
        return Flow(num_timesteps=self.num_timesteps, shift=shift, base_tokens=None)


def linear(
    *, num_timesteps: PositiveInt, beta_start: PositiveFloat, beta_end: PositiveFloat, zero_terminal_snr: bool
) -> VariancePreserving:
    """Betas on a straight line (Ho et al. 2020)."""
    _check_betas(num_timesteps, beta_start, beta_end)
    betas = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
    return VariancePreserving(betas=betas, zero_terminal_snr=zero_terminal_snr)


def scaled_linear(
    *, num_timesteps: PositiveInt, beta_start: PositiveFloat, beta_end: PositiveFloat, zero_terminal_snr: bool
) -> VariancePreserving:
    """Square roots of the betas on a straight line: the schedule of latent diffusion (Rombach et al. 2022)."""
    _check_betas(num_timesteps, beta_start, beta_end)
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2
    return VariancePreserving(betas=betas, zero_terminal_snr=zero_terminal_snr)


def cosine(
    *, num_timesteps: PositiveInt, offset: PositiveFloat, max_beta: PositiveFloat, zero_terminal_snr: bool
) -> VariancePreserving:
    """alpha falls like a cosine (Nichol and Dhariwal 2021, Eq. 17), no single step adding more than `max_beta`."""
    _check_betas(num_timesteps, max_beta, max_beta)
    time = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64)
    kept = torch.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
    betas = (1 - kept[1:] / kept[:-1]).clamp(max=max_beta)
    return VariancePreserving(betas=betas, zero_terminal_snr=zero_terminal_snr)


def _check_betas(num_timesteps: int, start: float, end: float) -> None:
    if num_timesteps < 2:
        raise ConfigError(
            "a schedule has a beginning and an end", key="schedule.num_timesteps", got=num_timesteps, allowed=">= 2"
        )
    if not 0 < start <= end < 1:
        raise ConfigError(
            "betas are shares of variance and do not fall",
            key="schedule.beta_start, schedule.beta_end",
            got=f"{start}, {end}",
            allowed="0 < beta_start <= beta_end < 1",
        )
