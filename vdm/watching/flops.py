"""Floating point operations of one training step, counted once while the step runs: matrix products, convolutions, attention.

Two numbers. *Hardware* is everything that was computed. *Model* leaves out what activation checkpointing computed a second
time in the backward pass, so that it does not depend on how memory is saved. Divided by time and peak they are HFU and MFU
(Chowdhery et al., 2022, appendix B).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

COUNTED = (
    "autoencoder",
    "encoding",
    "forward",
    "backward",
    "other",
)  # phases; an optimizer's products are not the model's

aten = torch.ops.aten
# On a CPU attention has kernels of its own.
OF_A_CPU = {
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


@dataclass(frozen=True)
class StepFlops:
    """Of one batch on one rank."""

    model: int
    hardware: int
    phases: dict[str, int]


class FlopCounter(TorchDispatchMode):
    """Counts what runs inside it; an observer of phases, so that each operation belongs to one."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.by_phase: Counter[str] = Counter()
        self.again = 0  # operations of a forward pass inside a backward pass
        self._phase, self._depth = "other", 0
        self._hooks: list[Any] = []

    def __call__(self, phase: str) -> None:
        self._phase = phase

    def __enter__(self) -> FlopCounter:
        for module in self.network.modules():
            self._hooks.append(module.register_forward_pre_hook(self._begin))
            # Checkpointing leaves a module by an exception once it has what it wants.
            self._hooks.append(module.register_forward_hook(self._end, always_call=True))
        return super().__enter__()

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = _count(func, args, kwargs or {}, out)
        if count:
            self.by_phase[self._phase] += count
            self.again += count * (self._depth > 0)
        return out

    def result(self) -> StepFlops:
        phases = {name: count for name, count in self.by_phase.items() if name in COUNTED}
        hardware = sum(phases.values())
        return StepFlops(model=hardware - self.again, hardware=hardware, phases=phases)

    def _begin(self, module: nn.Module, args: Any) -> None:
        if self._depth or _is_in_backward():
            self._depth += 1

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._depth:
            self._depth -= 1


def _count(func: Any, args: tuple, kwargs: dict, out: Any) -> int:
    packet = func._overloadpacket
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=out)
    if packet in OF_A_CPU:
        shapes = [each.shape for each in args if isinstance(each, torch.Tensor)]
        return OF_A_CPU[packet](*shapes[: 4 if "backward" in func.__name__ else 3])
    if func.namespace == "mkldnn" and "_linear_pointwise" in func.__name__:  # vdm.layers.product
        return 2 * args[0].shape[-1] * out.numel()
    return 0


def _is_in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
