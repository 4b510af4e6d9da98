"""The example policy of Dysen-VDM: frozen text features, one linear layer, a softmax over the pool, shots without replacement.

    p(c | x) = softmax_c(<W f(x), W f(c)> / temperature)

Shots are drawn one after the other, so the probability of an ordered choice is exact (Plackett and Luce). As published, a shot
does not know those before it, and the most probable ones often explain the same word. With `covered` they do: the caption
loses its part along each shot, so the next one is chosen for what is not yet explained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dysen.demonstrations import Demonstration
from dysen.icl.features import TextFeatures
from dysen.names import clean
from vdm.bounds import Fraction, PositiveFloat, PositiveInt
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
        covered: the share that a caption loses of its part along a shot; 0: shots do not know each other.
    """

    def __init__(
        self,
        *,
        pool: Sequence[Demonstration],
        features: TextFeatures,
        width: PositiveInt,
        temperature: PositiveFloat,
        covered: Fraction,
    ):
        super().__init__()
        if not pool:
            raise ConfigError("a policy chooses from a pool, and this one is empty", key="pool", got="no demonstration")
        self.pool, self.features, self.temperature, self.covered = tuple(pool), features, temperature, covered
        captions = [one.caption for one in self.pool]
        features.fit(captions)
        self.project = nn.Linear(features.width, width, bias=False)
        nn.init.normal_(self.project.weight, std=width**-0.5)  # keeps inner products: it begins as `nearest`
        self._same = [_spelling(caption) for caption in captions]
        self.register_buffer("candidates", features(captions), persistent=False)  # c d
        self.register_buffer("stored_pool", to_bytes(self.pool))

    def logits(self, captions: Sequence[str]) -> Tensor:
        """b c, of the first shot; a caption is never its own demonstration."""
        return self._logits(self._projected(captions), self.project(self.candidates), self._allowed(captions))

    def draw(self, captions: Sequence[str], shots: int, random: Sequence[torch.Generator]) -> Choice:
        """A random choice, each caption's from random numbers of its own: on the CPU, so that they are those of any device."""

        def pick(logits: Tensor, shot: int) -> Tensor:
            waits = [torch.empty(logits.shape[1]).exponential_(generator=one) for one in random]
            return (logits - torch.stack(waits).to(logits).log()).argmax(-1)

        return self._shots(captions, shots, pick)

    @torch.no_grad()
    def best(self, captions: Sequence[str], shots: int) -> Tensor:
        """b shots: the most probable one each time, of equal ones the first in the pool."""
        return self._shots(
            captions, shots, lambda logits, _: logits.argsort(dim=-1, descending=True, stable=True)[:, 0]
        ).positions

    def log_prob(self, captions: Sequence[str], positions: Tensor) -> Tensor:
        """b: of an ordered choice `b shots`."""
        return self._shots(captions, positions.shape[1], lambda _, shot: positions[:, shot]).log_prob

    def _shots(self, captions: Sequence[str], shots: int, pick: Callable[[Tensor, int], Tensor]) -> Choice:
        """`pick` takes the logits `b c` and the number of a shot."""
        query, candidates, allowed = self._projected(captions), self.project(self.candidates), self._allowed(captions)
        self._check_shots(allowed, shots)
        positions, total = [], query.new_zeros(len(captions))
        for shot in range(shots):
            logits = self._logits(query, candidates, allowed)
            chosen = pick(logits.detach(), shot)[:, None]
            total = total + logits.log_softmax(-1).gather(1, chosen).squeeze(1)
            allowed = allowed.scatter(1, chosen, False)
            shown = F.normalize(candidates[chosen.squeeze(1)], dim=-1)  # b e
            query = query - self.covered * (query * shown).sum(-1, keepdim=True) * shown
            positions.append(chosen)
        return Choice(torch.cat(positions, dim=1), total)

    def _projected(self, captions: Sequence[str]) -> Tensor:
        return self.project(self.features(captions).to(self.candidates))  # b e

    def _logits(self, query: Tensor, candidates: Tensor, allowed: Tensor) -> Tensor:
        return (query @ candidates.T / self.temperature).masked_fill(~allowed, -torch.inf)  # b c

    def _allowed(self, captions: Sequence[str]) -> Tensor:
        own = [_spelling(caption) for caption in captions]
        return torch.tensor([[a != b for b in self._same] for a in own], device=self.candidates.device)  # b c

    def entropy(self, captions: Sequence[str]) -> Tensor:
        """b: of the first shot, in nats."""
        log_p = self.logits(captions).log_softmax(-1)
        return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(-1)

    @staticmethod
    def _check_shots(allowed: Tensor, shots: int) -> None:
        most = int(allowed.sum(-1).min())
        if shots > most:
            raise ConfigError("more demonstrations than the pool has for a caption", key="selector.shots", got=shots,
                              allowed=f"<= {most}", remedy="make a larger pool, or take fewer shots")  # fmt: skip


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
