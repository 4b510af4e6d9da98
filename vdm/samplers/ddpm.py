"""Ancestral sampling (Ho et al. 2020, Algorithm 2), over all timesteps or fewer: every step guesses the clean latent and
draws from what the forward process would have passed through on its way from there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.samplers.grid import Callback, Denoise, Schedule, StepNoise, ancestral_variance, at, grid


@torch.no_grad()
def ddpm(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    *,
    num_steps: PositiveInt,
    spacing: Literal["trailing", "leading", "linspace", "karras"],
    offset: NonNegativeInt,
    variance: Literal["small", "large"],
    step_noise: StepNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """`variance` of the noise added: small is right for data that is one point, large for data that is all noise."""
    assert step_noise is not None, "ddpm draws noise at every step: give it step_noise"
    levels = grid(schedule, num_steps, spacing=spacing, offset=offset)
    x = noise  # b c t h w
    for i, timestep in enumerate(levels.timesteps):
        (alpha_s, alpha_t), (sigma_s, sigma_t) = levels.alphas[i : i + 2], levels.sigmas[i : i + 2]
        clean = denoise(x, at(timestep, x))
        small, large = ancestral_variance((alpha_s, sigma_s), (alpha_t, sigma_t))
        # Ho et al. 2020, Eq. 7
        x = alpha_s / alpha_t * (sigma_t / sigma_s) ** 2 * x + alpha_t * large / sigma_s**2 * clean
        if i + 1 < num_steps:
            x = x + (small if variance == "small" else large) ** 0.5 * step_noise(i + 1)
        if callback is not None:
            callback(step=i + 1, num_steps=num_steps, latent=x, clean=clean)
    return x
