"""Muon (Jordan et al. 2024) for the matrices of a network, AdamW for everything else, as one optimizer.

A step along a matrix is made orthogonal, so that directions with small gradients move as far as those with large ones. On
small networks it needs about half the steps of AdamW. Convolutions count as matrices, one row for each output channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vdm.bounds import Fraction, PositiveFloat, PositiveInt
from vdm.errors import ConfigError

# Quintics a x + b x^3 + c x^5 that follow each other, fitted so that singular values from 0.003 of the length of a matrix on
# end between 0.6 and 1.3. Published ones need five iterations for that.
NEWTON_SCHULZ = (
    (8.1492, -22.7659, 15.9836),
    (4.0698, -3.0326, 0.5706),
    (3.7257, -2.8542, 0.5705),
    (2.7010, -2.0696, 0.4724),
)


class Muon(torch.optim.AdamW):
    """Groups of parameters that say `matrices: True` are split: their matrices here, the rest to AdamW.

    Args:
        lr, betas, weight_decay, fused: of AdamW; a group may bring its own lr, which then scales `matrix_lr` as well.
        matrix_lr: length of a step along a matrix, in units of its rows.
        momentum: of the matrices.
        min_width: matrices with fewer inputs or outputs (the first and last layer of a U-Net) stay with AdamW.
        max_width: those with more of both as well, because a step costs the cube of the fewer; null for no bound.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: PositiveFloat,
        betas: tuple[Fraction, Fraction],
        weight_decay: float,
        matrix_lr: PositiveFloat,
        momentum: Fraction,
        min_width: PositiveInt,
        max_width: PositiveInt | None,
        fused: bool,
    ):
        groups = []
        for group in params:
            matrices = [p for p in group["params"] if group.get("matrices") and is_matrix(p, min_width, max_width)]
            taken = {id(p) for p in matrices}
            groups.append(group | {"params": [p for p in group["params"] if id(p) not in taken], "matrices": False})
            if matrices:
                own = matrix_lr * group.get("lr", lr) / lr
                groups.append(group | {"params": matrices, "matrices": True, "lr": own, "momentum": momentum})
        groups = [group for group in groups if group["params"]]
        super().__init__(groups, lr=lr, betas=tuple(betas), weight_decay=weight_decay, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices = [group for group in self.param_groups if group.get("matrices")]
        aside = [(p, p.grad) for group in matrices for p in group["params"]]
        for parameter, _ in aside:
            parameter.grad = None  # AdamW passes over what has no gradient
        super().step()
        for parameter, gradient in aside:
            parameter.grad = gradient
        for group in matrices:
            self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.dim() < 2:
                remedy = "use torch.optim.AdamW, or trainer=fsdp or ddp"
                raise ConfigError(
                    "this strategy has cut matrices into pieces, and Muon needs whole ones",
                    key="stage.optimizer._target_", got="vdm.stages.muon.Muon", remedy=remedy,
                )  # fmt: skip
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # that AdamW looks for when it loads a state
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            ahead = whole(parameter.grad.lerp(state["momentum"], group["momentum"])).flatten(1)  # Nesterov
            alike.setdefault(tuple(ahead.shape), []).append((parameter, ahead))
        for (rows, columns), pairs in alike.items():  # matrices of one shape in one call
            # Training loops step under autocast, and in bf16 steps of low rank come out far too long.
            with torch.autocast(pairs[0][1].device.type, enabled=False):
                steps = orthogonal(torch.stack([ahead for _, ahead in pairs]))
            length = group["lr"] * max(1.0, rows / columns) ** 0.5
            for (parameter, _), direction in zip(pairs, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(cut_like(parameter, direction.view(parameter.shape)), alpha=-length)


def whole(tensor: Tensor) -> Tensor:
    """Of a matrix in pieces, all of it: every rank then computes the same directions."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(parameter: Tensor, direction: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return direction
    return distribute_tensor(direction, parameter.device_mesh, parameter.placements, src_data_rank=None)


def is_matrix(parameter: Tensor, min_width: int, max_width: int | None) -> bool:
    """Something with enough inputs and outputs to have directions, and few enough to compute them."""
    if parameter.dim() < 2 or min(parameter.shape[:2]) < min_width:
        return False
    rows = len(parameter)
    return max_width is None or min(rows, parameter.numel() // rows) <= max_width


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrix of each, roughly: `k r c` -> `k r c`.

    Every iteration multiplies from the left with a polynomial of X X^T. They are multiplied with each other first, because
    convolutions are up to nine times as wide as high.
    """
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    square = wide @ wide.mT  # k r r
    identity = torch.eye(square.shape[-1], dtype=wide.dtype, device=wide.device)
    factors = None
    for left, (a, b, c) in zip(reversed(range(len(NEWTON_SCHULZ))), NEWTON_SCHULZ, strict=True):
        factor = a * identity + b * square + c * square @ square
        factors = factor if factors is None else factor @ factors
        if left:
            square = factor @ square @ factor
    wide = factors @ wide
    return wide.mT if matrices.shape[-2] > matrices.shape[-1] else wide
