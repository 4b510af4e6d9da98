"""Euler's method on the straight line between data and noise: one denoising a step, made for flow matching.

Any other schedule is read as the same line, walked at another pace and scaled: z = x / (alpha + sigma) is
(1 - s) clean + s noise with s = sigma / (alpha + sigma).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.samplers.grid import Callback, Denoise, Schedule, StepNoise, at, grid


@torch.no_grad()
def euler(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    *,
    num_steps: PositiveInt,
    spacing: Literal["trailing", "leading", "linspace", "karras"],
    step_noise: StepNoise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    levels = grid(schedule, num_steps, spacing=spacing)
    scales, places = levels.on_the_line()
    z = noise / scales[0]  # b c t h w
    for i, timestep in enumerate(levels.timesteps):
        x = scales[i] * z
        clean = denoise(x, at(timestep, x))
        z = z + (places[i + 1] - places[i]) * (z - clean) / places[i]
        if callback is not None:
            callback(step=i + 1, num_steps=num_steps, latent=scales[i + 1] * z, clean=clean)
    return scales[-1] * z
