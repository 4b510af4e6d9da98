"""REINFORCE (Williams, 1992) with a moving baseline: choices that were worth more than usual become more probable."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vdm.bounds import Fraction


class MovingBaseline(nn.Module):
    """What a reward usually is: an exponential moving average, kept in checkpoints.

    Args:
        decay: share of the old value that stays; from the first reward on, without a bias to 0.
    """

    def __init__(self, *, decay: Fraction):
        super().__init__()
        self.decay = decay
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    @property
    def value(self) -> Tensor:
        return self.total / self.weight.clamp(min=1e-8)

    @torch.no_grad()
    def update(self, rewards: Tensor) -> None:
        self.total.mul_(self.decay).add_((1 - self.decay) * rewards.mean())
        self.weight.mul_(self.decay).add_(1 - self.decay)


def advantages(rewards: Tensor, baseline: Tensor, *, is_normalised: bool) -> Tensor:
    """b: rewards less what is usual, or that in units of its own spread, as far as there is any."""
    found = rewards - baseline
    if is_normalised and len(found) > 1:
        found = found / found.std().clamp(min=1e-3)
    return found


def policy_loss(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """Its gradient is that of the expected reward, with the opposite sign."""
    return -(advantage.detach() * log_prob).mean()


class RunningMean(nn.Module):
    """The mean of everything since it was cleared, kept in checkpoints."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    @property
    def value(self) -> Tensor:
        return self.total / self.count.clamp(min=1)

    def add(self, values: Tensor) -> None:
        self.total += values.sum()
        self.count += values.numel()

    def clear(self) -> None:
        self.total.zero_()
        self.count.zero_()
