"""DPM-Solver++ 2M (Lu et al. 2022): the ODE solved exactly but for the denoiser, which is drawn on in a straight line
through its last two answers. Good in 20 steps, at the price of one denoising each.
"""

from __future__ import annotations

from math import expm1
from typing import Literal

import torch
from torch import Tensor

from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.samplers.grid import Callback, Denoise, Schedule, StepNoise, at, grid

FEW_STEPS = 15  # a last step of second order is unstable with fewer


@torch.no_grad()
def dpm_solver(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    *,
    num_steps: PositiveInt,
    spacing: Literal["trailing", "leading", "linspace", "karras"],
    offset: NonNegativeInt,
    end: Literal["clean", "first"],
    lower_order_final: bool,
    step_noise: StepNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """`lower_order_final`: last step of first order when there are few. One that ends clean is of first order anyway."""
    levels = grid(schedule, num_steps, spacing=spacing, offset=offset, end=end, skip_first=True)
    half_log_snr = levels.half_log_snr()
    x, before = noise, None  # b c t h w
    for i, timestep in enumerate(levels.timesteps):
        alpha_t, (sigma_s, sigma_t) = levels.alphas[i + 1], levels.sigmas[i : i + 2]
        h = half_log_snr[i + 1] - half_log_snr[i]
        clean = denoise(x, at(timestep, x))
        is_last = i + 1 == num_steps
        lower_order = is_last and (sigma_t == 0 or (lower_order_final and num_steps < FEW_STEPS))
        expected = clean
        if before is not None and not lower_order:
            h_before = half_log_snr[i] - half_log_snr[i - 1]
            expected = clean + 0.5 * h / h_before * (clean - before)  # Algorithm 2
        x = sigma_t / sigma_s * x - alpha_t * expm1(-h) * expected
        before = clean
        if callback is not None:
            callback(step=i + 1, num_steps=num_steps, latent=x, clean=clean)
    return x
