"""Group-relative policy optimisation (Shao et al., 2024): answers to one prompt are judged against each other.

    A = (r - mean) / (std + eps)         loss = -min(ratio A, clip(ratio, 1 - c, 1 + c) A) + weight KL(p || frozen)

The ratio is that of the probability of a draw now and when it was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dysen.llm.log_probs import Drawn

EPSILON = 1e-4  # below this, differences between rewards count for less


@dataclass(frozen=True)
class Group:
    """Answers to one prompt and what each is worth beside the others, `g`."""

    drawn: tuple[Drawn, ...]
    advantage: Tensor

    @property
    def lengths(self) -> list[int]:
        """Draws of each answer."""
        return [len(one.chosen) for one in self.drawn]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"drawn": [one.state() for one in self.drawn], "advantage": self.advantage.cpu()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Group:
        return cls(tuple(Drawn.from_state(one) for one in state["drawn"]), state["advantage"])


def group_advantages(rewards: Tensor, *, is_normalised: bool) -> Tensor:
    """g: rewards of one group less their mean, or that in units of their standard deviation (of the group, divided by g)."""
    found = rewards - rewards.mean()
    return found / (rewards.std(correction=0) + EPSILON) if is_normalised else found


def clipped_loss(log_prob: Tensor, drawn_with: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """k: of each draw. What has become more or less probable by more than `clip` in the wanted direction is left alone."""
    ratio = (log_prob - drawn_with).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def mean_of_answers(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mean over answers of the mean over the draws of each, so that an answer counts once however long it is."""
    return torch.stack([part.mean() for part in values.split(list(lengths))]).mean()


def graded(value: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A number without its graph, and its gradients: what led to it may be let go of."""
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return value.detach(), gradients


def with_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A number whose gradients are the given ones."""
    linear = sum((p * g).sum() for p, g in zip(parameters, gradients, strict=True))
    return value.detach() + linear - linear.detach()
