"""Exponential moving average of what is trained: a float32 shadow beside the networks, swapped in for validation and
samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Shadow <- decay * shadow + (1 - decay) * weights, with decay warmed up as min(decay, (1 + n) / (10 + n)).

    `piece` is the tensor that this rank has of a parameter, where strategies cut them: shadows are cut alike.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], decay: float, piece: Callable[[nn.Parameter], Tensor] = Tensor.detach
    ):
        self.decay, self.updates, self._piece = decay, 0, piece
        self.parameters = {
            f"{net}.{name}": p for net, m in networks.items() for name, p in m.named_parameters() if p.requires_grad
        }
        self.shadow = {name: piece(p).clone().float() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        live = [self._piece(p).float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.shadow.values()), live, 1.0 - decay)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Within this block the networks hold the averaged weights."""
        backup = {name: self._piece(p).clone() for name, p in self.parameters.items()}
        self._copy(self.shadow)
        try:
            yield
        finally:
            self._copy(backup)

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        for name, p in self.parameters.items():
            self._piece(p).copy_(tensors[name])

    def state(self) -> dict[str, Tensor]:
        return dict(self.shadow)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        assert tensors.keys() == self.shadow.keys(), "the moving average is of other networks"
        for name, tensor in tensors.items():
            self.shadow[name].copy_(tensor)
        self.updates = updates
