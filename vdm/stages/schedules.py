"""Learning rates over a run, as shares of what the optimizer was given: each group of parameters keeps its own rate."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vdm.bounds import Fraction, PositiveInt


def one_cycle(optimizer: Optimizer, *, total_steps: PositiveInt, pct_start: Fraction) -> LambdaLR:
    """Up along half a cosine for the share `pct_start` of the steps, then down along another, to nothing at the last."""
    rise = pct_start * total_steps

    def share(step: int) -> float:
        if step < rise:
            return _half_cosine(step / rise)
        return 1 - _half_cosine(min(1.0, (step - rise) / max(1.0, total_steps - rise)))

    return LambdaLR(optimizer, share)


def _half_cosine(place: float) -> float:
    """From 0 to 1."""
    return (1 - math.cos(math.pi * place)) / 2
