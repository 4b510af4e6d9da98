"""Fully sharded data parallel (Zhao et al., 2023) as PyTorch has it today, `fully_shard`: weights, gradients and optimizer states
in pieces, each cut along its first axis.

Units are gathered one at a time; all other weights that learn for the whole of a step. Frozen weights stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vdm.bounds import PositiveFloat
from vdm.strategies.base import Piece, Sharded, filled, put_together, without_hooks


class FSDP(Sharded):
    """
    Args:
        units: see `Sharded`.
        gather: precision of weights that are gathered. bfloat16 halves traffic and memory; sums of gradients stay float32.
        reshard: weights of a unit are given up after the forward pass and gathered again; false needs more memory, and less
            traffic by a third.
        offload: pieces live, and steps are taken, in the memory of the host.
        timeout_minutes: how long a rank waits for the others.
    """

    def __init__(
        self,
        *,
        units: Sequence[str],
        gather: Literal["float32", "bfloat16"],
        reshard: bool,
        offload: bool,
        timeout_minutes: PositiveFloat,
    ):
        super().__init__(units=units, timeout_minutes=timeout_minutes)
        self.gather, self.reshard, self.offload = gather, reshard, offload

    def shard(self, trainer: pl.Trainer) -> None:
        stage = self.lightning_module
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        settings = {
            "mesh": mesh,
            "mp_policy": half if self.gather == "bfloat16" else MixedPrecisionPolicy(cast_forward_inputs=False),
            "offload_policy": CPUOffloadPolicy() if self.offload and mesh.device_type != "cpu" else OffloadPolicy(),
            "ignored_params": {p for p in stage.parameters() if not (p.requires_grad and p.dim())},
        }
        self._units = [module for _, module in self.modules_of_units()]
        for unit in self._units:
            fully_shard(unit, reshard_after_forward=self.reshard, **settings)
        self._sharing = fully_shard(Sharing(stage), reshard_after_forward=False, **settings)
        self._scalars = [p for p in stage.parameters() if p.requires_grad and not p.dim()]  # there is nothing to cut
        self.setup_optimizers(trainer)
        if self.root_device.type == "cuda":
            self._step_together()

    def _step_together(self) -> None:
        """What torch chooses by itself for tensors that are whole."""
        (optimizer,) = self.optimizers
        for group in optimizer.param_groups:
            chosen = group.get("foreach"), group.get("fused")
            if "foreach" in group and chosen in ((None, None), (None, False)) and all(p.dim() for p in group["params"]):
                group["foreach"] = True

    # ---- a step ---------------------------------------------------------------------------------------------------

    def losses(self, stage: Any, batch: Any, *, is_last: bool) -> dict[str, Tensor]:
        return self._sharing(batch)

    def clip(self, optimizer: Optimizer, limit: float | None) -> Tensor:
        self._average_scalars()
        groups = [[p.grad for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
        local = [[g.to_local() if isinstance(g, DTensor) else g for g in group] for group in groups]
        # Of what is whole on every rank one counts.
        counted = [
            [own for g, own in zip(*pair, strict=True) if isinstance(g, DTensor) or self.is_global_zero]
            for pair in zip(groups, local, strict=True)
        ]
        zero = torch.zeros((), device=self.root_device)
        squares = [sum((g.float().square().sum().to(zero.device) for g in group), zero) for group in counted]
        norms = self.reduce_sum(torch.stack(squares)).sqrt()
        for group, norm in zip(local, norms, strict=True):
            if group and limit is not None:
                scale = (limit / (norm + 1e-6)).clamp(max=1.0)
                torch._foreach_mul_(group, scale.to(group[0].device))
        return norms.norm()

    def _average_scalars(self) -> None:
        with_grad = [p for p in self._scalars if p.grad is not None]
        if with_grad:
            total = self.reduce_sum(torch.stack([p.grad for p in with_grad])) / self.world_size
            for parameter, gradient in zip(with_grad, total, strict=True):
                parameter.grad.copy_(gradient)

    # ---- pieces ---------------------------------------------------------------------------------------------------

    def is_cut(self, parameter: nn.Parameter) -> bool:
        return isinstance(parameter, DTensor)

    def piece(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().to_local() if isinstance(parameter, DTensor) else parameter.detach()

    def whole(self, pieces: Mapping[Any, Piece]) -> dict[Any, Tensor]:
        cut = {
            name: (filled(piece, -(-len(p) // self.world_size) * (p.numel() // max(len(p), 1))), p.shape)
            for name, (p, piece) in pieces.items()
            if isinstance(p, DTensor)
        }
        found = put_together(cut, self.root_device)
        return {name: found.get(name, torch.empty(0)) if name in cut else piece for name, (_, piece) in pieces.items()}

    def cut(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return whole
        parts = whole.chunk(self.world_size)
        return parts[self.global_rank] if self.global_rank < len(parts) else whole[:0]

    def whole_weights(self) -> AbstractContextManager:
        return self._gathered()

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        modules = [self._sharing, *self._units]
        for module in modules:
            module.unshard()
        try:
            with without_hooks(self._units):
                yield
        finally:
            for module in modules:
                module.reshard()

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        saved = getattr(optimizer, "_optimizer", optimizer).state_dict()  # its tensors are those in use
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        cut = {
            (number, key): (parameters[number], value.to_local())
            for number, entry in saved["state"].items()
            for key, value in entry.items()
            if isinstance(value, DTensor)
        }
        whole = self.whole(cut)
        state = {
            number: {key: whole.get((number, key), value) for key, value in entry.items()}
            for number, entry in saved["state"].items()
        }
        return {**saved, "state": state}

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        (saved,), (optimizer,) = checkpoint["optimizer_states"], self.optimizers
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state = {
            number: {key: self._cut_state(parameters[number], value) for key, value in entry.items()}
            for number, entry in saved["state"].items()
        }
        optimizer.load_state_dict({**saved, "state": state})

    def _cut_state(self, parameter: nn.Parameter, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape != parameter.shape or not value.dim():
            return value
        return _as(parameter, self.cut(parameter, value).to(parameter.device))


class Sharing(nn.Module):
    """Its call is the forward pass of a step."""

    def __init__(self, stage: pl.LightningModule):
        super().__init__()
        self.stage = stage

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self.stage.losses(batch)


def _as(parameter: DTensor, piece: Tensor) -> DTensor:
    """A piece with the place that the parameter's own has."""
    return DTensor.from_local(
        piece,
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
        run_check=False,
    )
