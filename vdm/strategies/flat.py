"""Gradients and optimizer states of DeepSpeed's ZeRO: flat tensors that are cut without regard to parameters.

Stages 1 and 2 lay the parameters of a group one behind the other and give every rank an equal part. Stage 3 cuts each parameter
into equal parts, and lays those of one rank one behind the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from vdm.strategies.base import gathered

COUNT = "step"  # what optimizers call the number of their steps
NO_BATCH = -1  # DeepSpeed's count of the batches of a step, before the first


@dataclass(frozen=True)
class Part:
    """A flat tensor that the optimizer steps."""

    tensor: Tensor
    group: int
    numbers: tuple[int, ...]  # of its parameters, in the order of the groups


class Flat:
    """`shapes` are those that parameters had, by their id."""

    def __init__(
        self, zero: Any, groups: Sequence[Sequence[nn.Parameter]], shapes: Mapping[int, torch.Size], *, stage: int
    ):
        self._seen: list[list[Tensor]] = []
        self.zero, self.shapes = zero, [shapes[id(p)] for group in groups for p in group]
        self.by_parameter = stage == 3
        self.parameters = [p for group in groups for p in group]
        self.sizes = [len(group) for group in groups]
        number_of = {id(p): number for number, p in enumerate(self.parameters)}
        if self.by_parameter:
            self.parts = [
                Part(tensor, zero.sub_group_to_group_id[i], tuple(number_of[id(p)] for p in zero.fp16_groups[i]))
                for i, tensor in enumerate(zero.fp32_partitioned_groups_flat)
            ]
        else:
            self.parts = [
                Part(tensor, i, tuple(number_of[id(p)] for p in zero.bit16_groups[i]))
                for i, tensor in enumerate(zero.single_partition_of_fp32_groups)
            ]

    # ---- gradients ------------------------------------------------------------------------------------------------

    def gradients(self) -> list[list[Tensor]]:
        """What this rank has of the averaged gradients, by group."""
        self._seen = [[] for _ in self.sizes]
        for i, part in enumerate(self.parts):
            kept = [part.tensor.grad] if self._is_offloaded else self.zero.averaged_gradients.get(i) or []
            self._seen[part.group] += kept
        return self._seen

    def clear_gradients(self) -> None:
        """What DeepSpeed does after a step, or after one that it skips."""
        if self.by_parameter or self._is_offloaded:  # into buffers that keep old values where a gradient is absent
            for gradient in (one for group in self._seen for one in group):
                gradient.zero_()
        self._seen = []
        self.zero.zero_grad(set_to_none=True)
        if self._is_offloaded:
            self.zero.reset_cpu_buffers()
        if self.by_parameter:
            self.zero.averaged_gradients = {}
            return
        self.zero.micro_step_id = NO_BATCH
        for i in self.zero.averaged_gradients:
            self.zero.averaged_gradients[i] = self.zero.all_grad_tensors[i] = None

    @property
    def _is_offloaded(self) -> bool:
        return self.zero.offload_optimizer if self.by_parameter else self.zero.cpu_offload

    # ---- states ---------------------------------------------------------------------------------------------------

    def whole_state(self, device: torch.device) -> dict[str, Any]:
        """As `torch.optim.Optimizer.state_dict` of the same groups on one device: on the first rank."""
        state: dict[int, dict[str, Any]] = {}
        for part in self.parts:
            for key, value in self.zero.optimizer.state.get(part.tensor, {}).items():
                if not isinstance(value, Tensor) or value.numel() != part.tensor.numel() or not value.dim():
                    for number in part.numbers:  # such as the count of steps
                        state.setdefault(number, {})[key] = value.cpu().clone() if isinstance(value, Tensor) else value
                    continue
                rows = gathered(value, device)
                for number, whole in self._split(part, rows) if rows is not None else ():
                    state.setdefault(number, {})[key] = whole
        return {"state": dict(sorted(state.items())), "param_groups": self._saved_groups()}

    def load_state(self, saved: dict[str, Any]) -> None:
        rank = distributed.get_rank()
        for part in self.parts:
            known = {number: saved["state"][number] for number in part.numbers if number in saved["state"]}
            own = self.zero.optimizer.state[part.tensor]
            own.clear()
            group = self.zero.optimizer.param_groups[part.group]
            for key in dict.fromkeys(key for entry in known.values() for key in entry):
                values = {number: entry[key] for number, entry in known.items() if key in entry}
                number, first = next(iter(values.items()))
                if not isinstance(first, Tensor):
                    own[key] = first
                elif key == COUNT or first.shape != self.shapes[number]:
                    on_device = group.get("fused") or group.get("capturable")
                    own[key] = torch.stack(list(values.values())).max().to(part.tensor.device if on_device else "cpu")
                else:
                    own[key] = self._joined(part, values, rank).to(part.tensor)
            if not own:
                del self.zero.optimizer.state[part.tensor]
        for group, before in zip(self.zero.optimizer.param_groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in before.items() if key != "params"})

    def _saved_groups(self) -> list[dict[str, Any]]:
        groups, begin = [], 0
        for group, size in zip(self.zero.optimizer.param_groups, self.sizes, strict=True):
            rest = {key: value for key, value in group.items() if key != "params"}
            groups.append({**rest, "params": list(range(begin, begin + size))})
            begin += size
        return groups

    def _split(self, part: Part, rows: Tensor) -> list[tuple[int, Tensor]]:
        """`rank n`, what the ranks have of a part, as the tensors of its parameters."""
        found, begin = [], 0
        for number in part.numbers:
            size, shape = self.shapes[number].numel(), self.shapes[number]
            if self.by_parameter:
                own = self.parameters[number].partition_numel()
                values = rows[:, begin : begin + own].flatten()[:size]
                begin += own
            else:
                values = rows.flatten()[begin : begin + size]
                begin += size
            found.append((number, values.clone().view(shape)))
        return found

    def _joined(self, part: Part, values: dict[int, Tensor], rank: int) -> Tensor:
        """This rank's part of whole tensors, zero where there is none."""
        flat, begin = torch.zeros(part.tensor.numel()), 0
        first = 0 if self.by_parameter else rank * len(flat)
        for number in part.numbers:
            size = self.shapes[number].numel()
            whole = values[number].flatten() if number in values else torch.zeros(size)
            if self.by_parameter:
                own = self.parameters[number].partition_numel()
                piece = whole[rank * own : (rank + 1) * own]
                flat[begin : begin + len(piece)] = piece
                begin += own
                continue
            low, high = max(begin, first), min(begin + size, first + len(flat))
            if low < high:
                flat[low - first : high - first] = whole[low - begin : high - begin]
            begin += size
        return flat
