"""Where a sampler stops on its way from noise to data, and what it needs to know of a schedule to find out.

The spacings are those of Lin et al. 2024, Table 2, and of Karras et al. 2022, Eq. 5, with the roundings that people's
samples were made with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from vdm.errors import ConfigError

Spacing = Literal["trailing", "leading", "linspace", "karras"]
End = Literal["clean", "first"]
Denoise = Callable[[Tensor, Tensor], Tensor]  # x b c t h w, timestep b -> clean latent b c t h w
StepNoise = Callable[[int], Tensor]  # number of the step, from 1 -> noise b c t h w

SMALLEST_ALPHA = 2.0**-12  # the multistep solvers need a finite SNR; the network still sees pure noise


class Schedule(Protocol):
    """x = alpha clean + sigma noise; timesteps run from `first` over `num_timesteps`."""

    num_timesteps: int
    first: int
    is_discrete: bool

    def levels(self, timestep: Tensor) -> tuple[Tensor, Tensor]: ...

    def timestep_of(self, ratio: Tensor) -> Tensor: ...

    def shifted(self, timestep: Tensor) -> Tensor: ...


class Callback(Protocol):
    """Told after every step, for progress bars and previews."""

    def __call__(self, *, step: int, num_steps: int, latent: Tensor, clean: Tensor) -> None: ...


class Grid(NamedTuple):
    """One timestep per step; one alpha and sigma more, since a step goes from one level to the next."""

    timesteps: list[float]
    alphas: list[float]
    sigmas: list[float]

    def half_log_snr(self) -> list[float]:
        """lambda of the DPM-Solver papers, infinite at the clean end."""
        return [
            math.log(max(alpha, SMALLEST_ALPHA) / sigma) if sigma > 0 else math.inf
            for alpha, sigma in zip(self.alphas, self.sigmas, strict=True)
        ]

    def on_the_line(self) -> tuple[list[float], list[float]]:
        """Each level as scale * ((1 - s) clean + s noise): the scales, and the places s."""
        scales = [alpha + sigma for alpha, sigma in zip(self.alphas, self.sigmas, strict=True)]
        return scales, [sigma / scale for sigma, scale in zip(self.sigmas, scales, strict=True)]


def grid(
    schedule: Schedule,
    num_steps: int,
    *,
    spacing: Spacing,
    offset: int = 0,
    end: End = "clean",
    skip_first: bool = False,
) -> Grid:
    """Levels of noise in the order they are visited.

    Args:
        schedule: the noise schedule.
        num_steps: how often the denoiser's answer is followed.
        spacing: trailing counts down from the last timestep, leading ends at the first, linspace has both in it;
            karras spaces sigma / alpha evenly in its seventh root.
        offset: added to the timesteps of leading (1 in Stable Diffusion and ModelScope).
        end: whether the last step arrives at the clean latent, or at the noise of the schedule's first timestep.
        skip_first: multistep solvers leave out the last stop of leading and linspace: they take it for the end.
    """
    _check(schedule, num_steps, spacing, offset, skip_first)
    if spacing == "karras":
        timestep = _karras(schedule, num_steps)
    else:
        timestep = schedule.shifted(_evenly(schedule, num_steps, spacing, offset, skip_first))
    alpha, sigma = schedule.levels(timestep)
    last = schedule.levels(torch.tensor(float(schedule.first), dtype=torch.float64)) if end == "first" else (1.0, 0.0)
    return Grid(timestep.tolist(), [*alpha.tolist(), float(last[0])], [*sigma.tolist(), float(last[1])])


def at(timestep: float, x: Tensor) -> Tensor:
    """The timestep for each sample of a batch, as a denoiser takes it."""
    return torch.full((len(x),), timestep, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def ancestral_variance(noisy: tuple[float, float], cleaner: tuple[float, float]) -> tuple[float, float]:
    """Of a step between two (alpha, sigma): the variance of its noise given the clean latent, and without knowing it.

    Ho et al. 2020, Eq. 7, for any alpha and sigma (Kingma et al. 2021, Eq. 25): the `small` and the `large` variance.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = noisy, cleaner
    large = max(sigma_s**2 - (alpha_s / alpha_t * sigma_t) ** 2, 0.0)
    return large * (sigma_t / sigma_s) ** 2, large


def _evenly(schedule: Schedule, num_steps: int, spacing: Spacing, offset: int, skip_first: bool) -> Tensor:
    total = schedule.num_timesteps
    stops = num_steps + 1 if skip_first else num_steps
    if spacing == "trailing":
        places = total - torch.arange(num_steps, dtype=torch.float64) * (total / num_steps)
        places = (places.round() if schedule.is_discrete else places) - 1
    elif spacing == "leading":
        places = torch.arange(stops, dtype=torch.float64).flip(0) * (total // stops) + offset
    else:
        places = torch.linspace(total - 1, 0, stops, dtype=torch.float64)
        places = places.round() if schedule.is_discrete else places
    places = places[:num_steps]
    if places[0] > total - 1:
        raise ConfigError(
            "the offset leads out of the schedule", key="sampler.offset", got=offset, remedy="set it to 0"
        )
    return places + schedule.first


def _karras(schedule: Schedule, num_steps: int) -> Tensor:
    ends = torch.tensor([schedule.first + schedule.num_timesteps - 1.0, schedule.first], dtype=torch.float64)
    alpha, sigma = schedule.levels(ends)
    high, low = (sigma / alpha.clamp(min=SMALLEST_ALPHA)) ** (1 / 7)
    return schedule.timestep_of((high + torch.linspace(0, 1, num_steps, dtype=torch.float64) * (low - high)) ** 7)


def _check(schedule: Schedule, num_steps: int, spacing: Spacing, offset: int, skip_first: bool) -> None:
    if spacing not in get_args(Spacing):
        raise ConfigError("unknown spacing", key="sampler.spacing", got=spacing, allowed=get_args(Spacing))
    whole = schedule.is_discrete or spacing == "leading"
    most = schedule.num_timesteps - (1 if skip_first and spacing in ("leading", "linspace") else 0)
    if num_steps < 1 or (whole and num_steps > most):
        raise ConfigError(
            "a sampler takes at least one step, and no more than there are timesteps",
            key="sampler.num_steps",
            got=num_steps,
            allowed=f"1 to {most}" if whole else ">= 1",
        )
    if offset and spacing != "leading":
        raise ConfigError(
            "an offset moves the timesteps of leading only", key="sampler.offset", got=offset, remedy="set it to 0"
        )
