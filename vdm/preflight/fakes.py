"""A stage and a batch without content: the copy takes no memory and no time, whatever the size of the networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from vdm.phases import Phases
from vdm.stages.base import Stage
from vdm.types import VideoBatch

SMALL = 1 << 16  # bytes: tables of schedules and the like keep their values
HALF = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
CLIPS = ("video", "latent")


class _Copying(TorchFunctionMode):
    """Within `deepcopy`, parameters and large tensors become fake ones on a device."""

    def __init__(self, fake: Callable[[Tensor], Tensor], device: torch.device):
        super().__init__()
        self.fake, self.device = fake, device

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch._C.TensorBase.clone:  # of a parameter, which copies itself
            return self.fake(args[0])
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                is_large = tensor.nbytes > SMALL
                memo[id(tensor)] = self.fake(tensor) if is_large else tensor.detach().clone().to(self.device)
            return memo[id(tensor)]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def fake_stage(stage: Stage, mode: FakeTensorMode, *, device: torch.device, precision: str, last_step: int) -> Stage:
    """A copy that believes it is at its last step, when everything that a schedule switches on is on."""

    def fake(tensor: Tensor) -> Tensor:
        dtype = _dtype(tensor.dtype, precision)
        with mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device=device)

    trainer, stage._trainer = stage._trainer, None
    try:
        with _Copying(fake, device):
            made = copy.deepcopy(stage, _shared(stage))
    finally:
        stage._trainer = trainer
    made._device = device
    made.__class__ = type(type(made).__name__, (type(made),), {"step": property(lambda self: last_step)})
    for module in made.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None
    return made


def _shared(stage: Stage) -> dict[int, Any]:
    """What a copy need not have for itself, as `deepcopy` remembers it: tokenizers, plans of a whole dataset, factories."""
    own = (nn.Module, Tensor, Phases, list, tuple, dict, set, int, float, str, type(None))
    found = [value for module in stage.modules() for value in vars(module).values()]
    return {id(value): value for value in found if not isinstance(value, own)}


def fake_batch(
    batch: VideoBatch, mode: FakeTensorMode, *, shape: Sequence[int], count: int, device: torch.device, precision: str
) -> VideoBatch:
    """`count` clips of a shape (without the batch) that say what the clips of a real batch say, again and again."""
    rows = [number % len(batch["key"]) for number in range(count)]
    made = {name: _taken(value, rows, device) for name, value in batch.items() if name not in CLIPS}
    with mode:
        for name in CLIPS:
            if name in batch:
                made[name] = torch.empty(count, *shape, dtype=_dtype(torch.float32, precision), device=device)
    return made


def _taken(value: Any, rows: list[int], device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value[rows].to(device)
    if isinstance(value, list):
        return [value[row] for row in rows]
    if isinstance(value, Mapping):
        return {name: _taken(each, rows, device) for name, each in value.items()}
    return value


def _dtype(dtype: torch.dtype, precision: str) -> torch.dtype:
    return HALF.get(str(precision), dtype) if dtype.is_floating_point else dtype
