"""Heun's method on the straight line between data and noise (Karras et al. 2022, Algorithm 1): every step but the last is
made with the mean of the directions at its two ends, at two denoisings each.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.samplers.grid import Callback, Denoise, Schedule, StepNoise, at, grid


@torch.no_grad()
def heun(
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
        step, direction = places[i + 1] - places[i], (z - clean) / places[i]
        ahead = z + step * direction
        if i + 1 < num_steps:
            x = scales[i + 1] * ahead
            clean = denoise(x, at(levels.timesteps[i + 1], x))
            ahead = z + step * 0.5 * (direction + (ahead - clean) / places[i + 1])
        z = ahead
        if callback is not None:
            callback(step=i + 1, num_steps=num_steps, latent=scales[i + 1] * z, clean=clean)
    return scales[-1] * z
