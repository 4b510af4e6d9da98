"""The example policy of Dysen-VDM: frozen text features, one linear layer, a softmax over the pool, shots without replacement.

    p(c | x) = softmax_c(<W f(x), W f(c)> / temperature)

Shots are drawn one after the other, so the probability of an ordered choice is exact (Plackett and Luce).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dysen.demonstrations import Demonstration
from dysen.icl.features import TextFeatures
from dysen.names import clean
from vdm.bounds import PositiveFloat, PositiveInt
from vdm.errors import ConfigError


class Choice(NamedTuple):
    """Positions in the pool `b shots`, the most relevant first, and the log-probability `b` of drawing them so."""

    positions: Tensor
    log_prob: Tensor


class ExamplePolicy(nn.Module):
    """Keeps its pool as a buffer, so that a checkpoint is all a planner needs.

    Args:
        pool: the candidates.
        features: what is known of a caption; not trained.
        width: of the space in which captions are compared.
        temperature: of the softmax; the lower, the surer.
    """

    def __init__(
        self,
        *,
        pool: Sequence[Demonstration],
        features: TextFeatures,
        width: PositiveInt,
        temperature: PositiveFloat,
    ):
        super().__init__()
        if not pool:
            raise ConfigError("a policy chooses from a pool, and this one is empty", key="pool", got="no demonstration")
        self.pool, self.features, self.temperature = tuple(pool), features, temperature
        captions = [one.caption for one in self.pool]
        features.fit(captions)
        self.project = nn.Linear(features.width, width, bias=False)
        nn.init.normal_(self.project.weight, std=width**-0.5)  # keeps inner products: it begins as `nearest`
        self._same = [_spelling(caption) for caption in captions]
        self.register_buffer("candidates", features(captions), persistent=False)  # c d
        self.register_buffer("stored_pool", to_bytes(self.pool))

    def logits(self, captions: Sequence[str]) -> Tensor:
        """b c; a caption is never its own demonstration."""
        queries = self.features(captions).to(self.candidates)
        logits = self.project(queries) @ self.project(self.candidates).T / self.temperature
        return logits.masked_fill(self._is_itself(captions).to(logits.device), -torch.inf)

    def draw(self, captions: Sequence[str], shots: int) -> Choice:
        """A random choice, from the random numbers of torch."""
        logits = self.logits(captions)
        self._check_shots(logits, shots)
        noise = -torch.empty_like(logits).exponential_().log()  # Gumbel: its order is a draw without replacement
        positions = (logits.detach() + noise).topk(shots, dim=-1).indices
        return Choice(positions, log_prob(logits, positions))

    @torch.no_grad()
    def best(self, captions: Sequence[str], shots: int) -> Tensor:
        """b shots: the most probable ones, of equal ones the first in the pool."""
        logits = self.logits(captions)
        self._check_shots(logits, shots)
        return logits.argsort(dim=-1, descending=True, stable=True)[:, :shots]

    def entropy(self, captions: Sequence[str]) -> Tensor:
        """b: of the first shot, in nats."""
        log_p = self.logits(captions).log_softmax(-1)
        return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(-1)

    def _is_itself(self, captions: Sequence[str]) -> Tensor:
        own = [_spelling(caption) for caption in captions]
        return torch.tensor([[a == b for b in self._same] for a in own], dtype=torch.bool)

    @staticmethod
    def _check_shots(logits: Tensor, shots: int) -> None:
        most = int(logits.isfinite().sum(-1).min())
        if shots > most:
            raise ConfigError("more demonstrations than the pool has for a caption", key="selector.shots", got=shots,
                              allowed=f"<= {most}", remedy="make a larger pool, or take fewer shots")  # fmt: skip


def log_prob(logits: Tensor, positions: Tensor) -> Tensor:
    """b: of an ordered choice `b shots` without replacement: each shot among those that are left."""
    total, left = 0.0, logits
    for shot in positions.unbind(-1):
        chosen = shot[:, None]
        total = total + left.gather(1, chosen).squeeze(1) - left.logsumexp(-1)
        left = left.scatter(1, chosen, -torch.inf)
    return total


def to_bytes(pool: Sequence[Demonstration]) -> Tensor:
    """A pool as numbers, the form in which a checkpoint can hold it."""
    lines = "\n".join(json.dumps(one.to_json()) for one in pool)
    return torch.tensor(list(lines.encode("ascii")), dtype=torch.uint8)


def from_bytes(stored: Tensor) -> tuple[Demonstration, ...]:
    """The inverse of `to_bytes`."""
    lines = bytes(stored.tolist()).decode("ascii").split("\n")
    return tuple(Demonstration.from_json(json.loads(line)) for line in lines)


def _spelling(caption: str) -> str:
    return clean(caption).casefold()
