"""UniPC of order 2 with B_2(h) = e^h - 1 (Zhao et al. 2023): a multistep solver whose every step is corrected by the
denoiser's answer at its end, which the next step needs anyway.
"""

from __future__ import annotations

from math import expm1, isinf
from typing import Literal

import torch
from torch import Tensor

from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.samplers.grid import Callback, Denoise, Schedule, StepNoise, at, grid


@torch.no_grad()
def unipc(
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
    """`lower_order_final`: last step of first order. One that ends clean is of first order anyway."""
    levels = grid(schedule, num_steps, spacing=spacing, offset=offset, end=end, skip_first=True)
    half_log_snr = levels.half_log_snr()
    steps = [after - before for before, after in zip(half_log_snr[:-1], half_log_snr[1:], strict=True)]

    def follow(x: Tensor, i: int, expected: Tensor) -> Tensor:
        """The exact solution of step i for a denoiser that keeps saying the same."""
        return levels.sigmas[i + 1] / levels.sigmas[i] * x - levels.alphas[i + 1] * expm1(-steps[i]) * expected

    x = noise  # b c t h w
    start, before, slope = (
        x,
        None,
        None,
    )  # of the step just made: where it began, the answer there; of the one before it
    for i, timestep in enumerate(levels.timesteps):
        clean = denoise(x, at(timestep, x))
        if before is not None:
            h = steps[i - 1]
            if slope is None:
                expected = before + 0.5 * (clean - before)
            else:
                old, own = _weights(h, steps[i - 2])
                expected = before + old * h * slope + own * (clean - before)
            x = follow(start, i - 1, expected)
            slope = (clean - before) / h
        lower_order = i + 1 == num_steps and (lower_order_final or isinf(steps[i]))
        expected = clean if slope is None or lower_order else clean + 0.5 * steps[i] * slope
        start, before, x = x, clean, follow(x, i, expected)
        if callback is not None:
            callback(step=i + 1, num_steps=num_steps, latent=x, clean=clean)
    return x


def _weights(h: float, h_before: float) -> tuple[float, float]:
    """How much the corrector trusts the slope of the step before, and that of its own step (Algorithm 1, p = 2)."""
    whole = expm1(-h)
    first = -whole / h - 1
    second = 2 * (-first / h - 0.5)
    old = (first - second) / whole / (1 + h_before / h)
    return old, first / whole - old
