"""What a stage and its callbacks ask of a strategy, whether every rank holds whole weights or only pieces of them.

A piece is the tensor of a rank that is the truth about a parameter: the parameter itself, or this rank's part of it. Moving
averages and optimizer states are kept in such pieces. Checkpoints hold whole tensors, always: they are put together when one
is written and cut when it is read, so that a run goes on under any strategy, on any number of devices.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as distributed
from pytorch_lightning.overrides.distributed import _sync_module_states
from pytorch_lightning.plugins import Precision
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from vdm.errors import ConfigError

Piece = tuple[nn.Parameter, Tensor]  # what a rank has of something that is cut as this parameter is
CHUNK = 2**26  # numbers that are sent at once


class Whole:
    """One device, or DDP: every rank holds everything."""

    def losses(self, stage: Any, batch: Any, *, is_last: bool) -> dict[str, Tensor]:
        """Of a batch; `is_last` of those whose gradients make one step."""
        return stage.losses(batch)

    def clip(self, optimizer: Optimizer, limit: float | None) -> Tensor:
        """The norm of all gradients. Clips each group by itself, so that a discriminator cannot shrink its generator's step."""
        norms = []
        for group in optimizer.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            if with_grad:
                norms.append(torch.nn.utils.clip_grad_norm_(with_grad, math.inf if limit is None else limit))
        return torch.stack(norms).norm() if norms else torch.zeros(())

    def clear(self, optimizer: Optimizer) -> None:
        """Gradients have been used, or are not wanted."""
        optimizer.zero_grad(set_to_none=True)

    def piece(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach()

    def whole(self, pieces: Mapping[Any, Piece]) -> dict[Any, Tensor]:
        """Put together what the ranks hold: on the first rank, nothing of use elsewhere. All ranks ask, for the same names."""
        return {name: piece for name, (_, piece) in pieces.items()}

    def cut(self, parameter: nn.Parameter, whole: Tensor) -> Tensor:
        """This rank's piece."""
        return whole

    def whole_weights(self) -> AbstractContextManager:
        """Within this block networks may be called outside of a training step, by one rank alone as well."""
        return nullcontext()


WHOLE = Whole()


def shards_of(trainer: pl.Trainer) -> Whole:
    """What there is to ask of a trainer's strategy."""
    return trainer.strategy if isinstance(trainer.strategy, Sharded) else WHOLE


class Sharded(DDPStrategy, Whole):
    """Weights, gradients or optimizer states in pieces. Subclasses cut them in `shard` and answer what `Whole` does.

    Args:
        units: classes, by name, of modules whose weights are whole only while they are called. They are called by each rank
            in the same order, and nobody else reads their weights.
        timeout_minutes: how long a rank waits for the others.
    """

    precisions: Sequence[str] = ("32-true", "bf16-mixed")

    def __init__(self, *, units: Sequence[str], timeout_minutes: float):
        super().__init__(timeout=timedelta(minutes=timeout_minutes))
        self.units = tuple(units)
        self.is_sharded = False

    def _configure_launcher(self) -> None:
        """Processes are started by others: see `launching`."""
        self._launcher = None

    def setup(self, trainer: pl.Trainer) -> None:
        self._check(trainer)
        self.accelerator.setup(trainer)
        if self._layer_sync:
            self.model = self._layer_sync.apply(self.model)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        for parameter in self.lightning_module.parameters():  # pieces know no other order than this
            parameter.data = parameter.data.contiguous().flatten().view(parameter.shape)
        _sync_module_states(self.model)
        self.shard(trainer)
        self.is_sharded = True
        self.setup_precision_plugin()
        self.lightning_module.averaged_weights = self.whole_weights

    def _check(self, trainer: pl.Trainer) -> None:
        plugin: Precision = self.precision_plugin
        if plugin.precision not in self.precisions:
            raise ConfigError("this strategy does not know the precision", key="trainer.precision", got=plugin.precision,
                              allowed=self.precisions)  # fmt: skip

    @abstractmethod
    def shard(self, trainer: pl.Trainer) -> None:
        """Cut the weights of `self.model`, which are whole and on the device, and make the optimizer."""

    def modules_of_units(self) -> list[tuple[str, nn.Module]]:
        """The outermost modules of these classes that learn, with their names."""
        found: list[tuple[str, nn.Module]] = []
        for name, module in self.lightning_module.named_modules():
            is_inside = found and name.startswith(f"{found[-1][0]}.")
            learns = any(p.requires_grad for p in module.parameters())
            if type(module).__name__ in self.units and learns and not is_inside:
                found.append((name, module))
        return found

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors on the first rank. The others have the names only."""
        state, cut = self.lightning_module.state_dict(), {}
        for name, parameter in self.lightning_module.named_parameters(remove_duplicate=False):
            if name in state and self.is_cut(parameter):
                cut[name] = parameter, self.piece(parameter)
        whole = self.whole(cut)
        return {name: whole.get(name, torch.empty(0)) if name in cut else tensor for name, tensor in state.items()}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        if not self.is_sharded:
            return super().load_model_state_dict(checkpoint, strict)
        tensors = checkpoint["state_dict"]
        with torch.no_grad():
            for name, parameter in self.lightning_module.named_parameters():
                self.piece(parameter).copy_(self.cut(parameter, tensors[name]))
            for name, buffer in self.lightning_module.named_buffers():
                if name in tensors:
                    buffer.copy_(tensors[name])
        return self.refresh()

    @abstractmethod
    def is_cut(self, parameter: nn.Parameter) -> bool:
        """Whether this parameter is in pieces."""

    def refresh(self) -> None:
        """Pieces have been written to: bring along whatever is a copy of them."""

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        distributed.all_reduce(tensor)
        return tensor


def part_of(whole: Tensor, size: int, rank: int) -> Tensor:
    """The piece of a rank, filled up with zeros."""
    return filled(whole.flatten()[rank * size : (rank + 1) * size], size)


def filled(piece: Tensor, size: int) -> Tensor:
    flat = piece.flatten()
    return flat if len(flat) == size else torch.cat([flat, flat.new_zeros(size - len(flat))])


def put_together(pieces: Mapping[Any, tuple[Tensor, torch.Size]], device: torch.device) -> dict[Any, Tensor]:
    """Whole tensors of these shapes, on the CPU of the first rank, from pieces that are alike in size on all ranks."""
    found: dict[Any, Tensor] = {}
    for names in _together({name: piece.numel() for name, (piece, _) in pieces.items()}):
        rows = gathered(torch.cat([pieces[name][0].detach().flatten().to(device) for name in names]), device)
        begin = 0
        for name in names if rows is not None else ():
            piece, shape = pieces[name]
            whole = rows[:, begin : begin + piece.numel()].flatten()[: shape.numel()]
            found[name] = whole.clone().view(shape)
            begin += piece.numel()
    return found


def _together(sizes: Mapping[Any, int]) -> Iterator[list[Any]]:
    """Many small ones travel as one."""
    names, total = [], 0
    for name, size in sizes.items():
        if names and total + size > CHUNK:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    if names:
        yield names


def gathered(piece: Tensor, device: torch.device) -> Tensor | None:
    """Equal pieces of all ranks as rows `rank n` on the CPU of the first; None elsewhere."""
    world, is_first = distributed.get_world_size(), distributed.get_rank() == 0
    flat = piece.detach().flatten()
    rows = torch.empty(world, len(flat), dtype=flat.dtype) if is_first else None
    for begin in range(0, len(flat), CHUNK):
        own = flat[begin : begin + CHUNK].to(device).contiguous()
        parts = [torch.empty_like(own) for _ in range(world)] if is_first else None
        distributed.gather(own, parts, dst=0)
        for rank, part in enumerate(parts or ()):
            rows[rank, begin : begin + len(part)] = part.cpu()
    return rows


@contextmanager
def without_hooks(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules, and those in them, called within this block are no more than their `forward`."""
    names = ("_forward_pre_hooks", "_forward_hooks")
    inner = {id(module): module for root in modules for module in root.modules()}.values()
    kept = [(module, name, getattr(module, name)) for module in inner for name in names]
    try:
        for module, name, hooks in kept:
            setattr(module, name, type(hooks)())
        yield
    finally:
        for module, name, hooks in kept:
            setattr(module, name, hooks)
