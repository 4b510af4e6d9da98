"""Counts the bytes of tensors while they live, phase by phase, for a step on tensors that have shapes and no content.

Networks and clips are fake tensors (torch's own: every operation gives shape, type and device, and computes nothing); what
is small and decides the course of a step, such as timesteps or token ids, stays real. Where a step asks for the value of
a fake tensor it is told one that lets it go on.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
BLOCK = {"cuda": 512}  # what allocators round up to
# On a CPU tensors come from malloc, whose heap keeps gaps where aligned tensors of one size take turns; large ones have pages
# of their own. Measured with glibc: what a step takes, over the tensors in it.
LARGE, GAPS_OF_SMALL, GAPS_OF_LARGE = 4 << 20, 1.4, 1.1


@dataclass
class Peak:
    """The most bytes at once, with and without the gradients of parameters among them; on a CPU with malloc's gaps."""

    total: int = 0
    without_gradients: int = 0


class Ledger(TorchDispatchMode):
    """An observer of phases. Use as a context around the work."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.live = self.gradients = 0  # bytes
        self.has_gaps = False  # set where tensors come and go, and malloc leaves gaps between them
        self.peaks: defaultdict[str, Peak] = defaultdict(Peak)
        self._phase = "other"
        self._sizes: dict[int, tuple[weakref.ref, int]] = {}  # of storages, by identity
        self._gradients: set[int] = set()

    def __call__(self, phase: str) -> None:
        self._phase = phase
        self._note()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = _answer(func, args, kwargs or {})
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out

    def add(self, tensor: Tensor) -> None:
        """Count its storage, once."""
        if tensor.device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._sizes:
            return
        block = BLOCK.get(self.device.type, 1)
        size = -(-storage.nbytes() // block) * block
        if self.has_gaps and self.device.type == "cpu":
            size = int(size * (GAPS_OF_SMALL if size < LARGE else GAPS_OF_LARGE))
        self._sizes[key] = (weakref.ref(storage, lambda _, key=key: self._free(key)), size)
        self.live += size
        self._note()

    def add_gradient(self, parameter: Tensor) -> None:
        """A hook behind the gradient of a parameter."""
        key = id(parameter.grad.untyped_storage())
        if key in self._sizes and key not in self._gradients:
            self._gradients.add(key)
            self.gradients += self._sizes[key][1]

    def _free(self, key: int) -> None:
        size = self._sizes.pop(key)[1]
        self.live -= size
        if key in self._gradients:
            self._gradients.remove(key)
            self.gradients -= size

    def _note(self) -> None:
        peak = self.peaks[self._phase]
        peak.total = max(peak.total, self.live)
        peak.without_gradients = max(peak.without_gradients, self.live - self.gradients)


def _answer(func: Any, args: tuple, kwargs: dict) -> Any:
    """What an operation gives; for those that need values, what would keep a training step going."""
    packet = func._overloadpacket
    if packet in (aten._local_scalar_dense, aten.is_nonzero, aten.equal) and _is_fake(args[0]):
        kind = args[0].dtype
        return (
            True
            if kind is torch.bool or packet is not aten._local_scalar_dense
            else 0.0
            if kind.is_floating_point
            else 0
        )
    if func.namespace == "mkldnn" and "_linear_pointwise" in func.__name__ and _is_fake(args[0]):
        return args[0].new_empty(len(args[0]), len(args[2 if "binary" in func.__name__ else 1]))
    if func.__name__.startswith("_fused_ada"):  # in place, and nobody needs a value
        return None
    if packet is aten.index and any(isinstance(each, Tensor) and each.dtype is torch.bool for each in args[1]):
        return func(args[0], [part for each in args[1] for part in _positions(each)], **kwargs)
    if packet is aten.nonzero and _is_fake(args[0]):
        return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.long)
    return func(*args, **kwargs)


def _positions(index: Tensor | None) -> list[Tensor | None]:
    """A mask as the positions where it is true; of one that has no values, all."""
    if index is None or index.dtype is not torch.bool:
        return [index]
    if _is_fake(index):
        return [index.new_empty(index.numel(), dtype=torch.long) for _ in range(index.dim())]
    return list(index.nonzero().unbind(1))


def _is_fake(tensor: Any) -> bool:
    return isinstance(tensor, FakeTensor)
