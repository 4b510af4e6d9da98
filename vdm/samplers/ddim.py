"""DDIM (Song et al. 2021): the clean latent guessed, then as much of the guessed noise put back as the next level has.

`eta` replaces a part of that noise by a fresh draw, up to ancestral sampling at 1. Without it the path is an ODE, which
`ddim_invert` follows the other way, from a latent to the noise that gives it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vdm.bounds import NonNegativeFloat, NonNegativeInt, PositiveInt
from vdm.samplers.grid import Callback, Denoise, Schedule, StepNoise, ancestral_variance, at, grid


@torch.no_grad()
def ddim(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    *,
    num_steps: PositiveInt,
    spacing: Literal["trailing", "leading", "linspace", "karras"],
    offset: NonNegativeInt,
    end: Literal["clean", "first"],
    eta: NonNegativeFloat,
    step_noise: StepNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    assert eta == 0 or step_noise is not None, "ddim with eta draws noise at every step: give it step_noise"
    levels = grid(schedule, num_steps, spacing=spacing, offset=offset, end=end)
    x = noise  # b c t h w
    for i, timestep in enumerate(levels.timesteps):
        (alpha_s, alpha_t), (sigma_s, sigma_t) = levels.alphas[i : i + 2], levels.sigmas[i : i + 2]
        clean = denoise(x, at(timestep, x))
        epsilon = (x - alpha_s * clean) / sigma_s
        fresh = eta * ancestral_variance((alpha_s, sigma_s), (alpha_t, sigma_t))[0] ** 0.5  # Eq. 16
        x = alpha_t * clean + max(sigma_t**2 - fresh**2, 0.0) ** 0.5 * epsilon  # Eq. 12
        if fresh > 0:
            x = x + fresh * step_noise(i + 1)
        if callback is not None:
            callback(step=i + 1, num_steps=num_steps, latent=x, clean=clean)
    return x


@torch.no_grad()
def ddim_invert(
    denoise: Denoise,
    latent: Tensor,
    schedule: Schedule,
    *,
    num_steps: PositiveInt,
    spacing: Literal["trailing", "leading", "linspace", "karras"],
    offset: NonNegativeInt,
    end: Literal["clean", "first"],
    callback: Callback | None = None,
) -> Tensor:
    """The noise from which `ddim` with the same settings and eta 0 comes back to `latent`, up to the size of the steps."""
    levels = grid(schedule, num_steps, spacing=spacing, offset=offset, end=end)
    x = latent  # b c t h w
    for i in reversed(range(num_steps)):
        (alpha_s, alpha_t), (sigma_s, sigma_t) = levels.alphas[i : i + 2], levels.sigmas[i : i + 2]
        # The noise is read at the level the step goes to: there is none to be read in a clean latent.
        epsilon = (x - alpha_s * denoise(x, at(levels.timesteps[i], x))) / sigma_s
        clean = (x - sigma_t * epsilon) / alpha_t
        x = alpha_s * clean + sigma_s * epsilon
        if callback is not None:
            callback(step=num_steps - i, num_steps=num_steps, latent=x, clean=clean)
    return x
