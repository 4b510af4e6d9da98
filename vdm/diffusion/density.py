"""Which noise levels training spends its time on: maps of an even quantile in (0, 1) to a place in the schedule."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vdm.bounds import PositiveFloat


class Density(Protocol):
    """Drawn through its quantiles, so that one uniform number per sample is all the randomness there is."""

    def __call__(self, quantile: Tensor) -> Tensor: ...


class Uniform:
    """All noise levels alike."""

    def __call__(self, quantile: Tensor) -> Tensor:
        return quantile


class LogitNormal:
    """The logit of the place is Gaussian (Esser et al. 2024, Eq. 19): more of the middle; `mean` > 0 leans to noise."""

    def __init__(self, *, mean: float, std: PositiveFloat):
        self.mean, self.std = mean, std

    def __call__(self, quantile: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(quantile.double()))
