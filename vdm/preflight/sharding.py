"""What a strategy leaves of each part of the memory on one of several processes.

For N processes, with P bytes of weights that are trained and frozen weights whole everywhere (ZeRO: Rajbhandari et al., 2020):

                 weights         gradients        optimizer    moving average   beside them
    one, DDP     P               P                all          all              DDP: gradients a second time, as they are sent
    ZeRO-1       P               P                all / N      all              float32 pieces, one bucket that is sent
    ZeRO-2       P               P / N            all / N      all              the same
    ZeRO-3       P / N           P / N            all / N      all / N          the same, and what is whole at once
    FSDP         P / N           P / N            all / N      all / N          what is whole at once
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vdm.preflight.simulate import Usage

KINDS = {"Zero": "zero", "FSDP": "fsdp"}  # by the last part of `trainer.strategy._target_`


@dataclass(frozen=True)
class Sharing:
    """How a job shares its model."""

    kind: str  # one | ddp | zero1 | zero2 | zero3 | fsdp
    processes: int = 1
    bucket: int = 0  # bytes that are sent at once
    whole_at_once: int = 0  # bytes of weights, where they are cut
    offloads_optimizer: bool = False
    offloads_parameters: bool = False

    @property
    def cuts_parameters(self) -> bool:
        return self.kind in ("zero3", "fsdp")

    @property
    def cuts_gradients(self) -> bool:
        return self.cuts_parameters or self.kind == "zero2"

    @property
    def cuts_optimizer(self) -> bool:
        return self.cuts_gradients or self.kind == "zero1"


def sharing_of(trainer: Mapping[str, Any], processes: int, stage: nn.Module) -> Sharing:
    """From the settings `trainer`, and the modules that these name as units."""
    strategy = trainer.get("strategy")
    target = str(strategy.get("_target_", "")) if isinstance(strategy, Mapping) else ""
    kind = KINDS.get(target.rpartition(".")[2])
    if kind is None:
        return Sharing("one" if processes == 1 else "ddp", processes)
    outside, units = weights_by_unit(stage, strategy["units"])
    if kind == "zero":
        live = min(sum(units), 4 * int(strategy["max_live_parameters"]))
        return Sharing(
            f"zero{strategy['stage']}", processes, bucket=4 * int(strategy["reduce_bucket_size"]),
            whole_at_once=outside + live, offloads_optimizer=bool(strategy["offload_optimizer"]),
            offloads_parameters=bool(strategy["offload_parameters"]),
        )  # fmt: skip
    live = 2 * max(units, default=0) if strategy["reshard"] else sum(units)
    offloads = bool(strategy["offload"])
    return Sharing("fsdp", processes, whole_at_once=outside + live, offloads_optimizer=offloads,
                   offloads_parameters=offloads)  # fmt: skip


def weights_by_unit(stage: nn.Module, classes: Sequence[str]) -> tuple[int, list[int]]:
    """Bytes of weights that are trained: outside of all units, and of each outermost module of these classes."""
    units: dict[str, int] = {}
    for name, module in stage.named_modules():
        if type(module).__name__ in classes and not any(name.startswith(f"{unit}.") for unit in units):
            units[name] = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    return sum(p.nbytes for p in stage.parameters() if p.requires_grad) - sum(units.values()), list(units.values())


def parts(usage: Usage, sharing: Sharing, *, on_host: bool) -> dict[str, int]:
    """Bytes on one process, by part, at the worst moment of a step. `on_host`: the device is the host, to which things
    would be moved, so nothing is.
    """
    n = sharing.processes
    weights = usage.parameters // n if sharing.cuts_parameters else usage.parameters
    optimizer = usage.optimizer // n if sharing.cuts_optimizer else usage.optimizer
    average = usage.average // n if sharing.cuts_parameters else usage.average
    beside = 0
    if sharing.kind == "ddp":
        beside = usage.gradients
    elif sharing.kind.startswith("zero"):
        beside = min(sharing.bucket, usage.gradients) + usage.parameters // n  # pieces in float32
    if sharing.cuts_parameters:
        beside += min(sharing.whole_at_once, usage.parameters)
    if not on_host:
        optimizer *= not sharing.offloads_optimizer
        weights *= not sharing.offloads_parameters
    gradients, working = _working(usage, sharing)
    return {
        "weights": weights, "frozen": usage.frozen, "optimizer": optimizer, "average": average, "gradients": gradients,
        "working": working, "sharing": beside,
    }  # fmt: skip


def total(usage: Usage, sharing: Sharing, *, on_host: bool) -> int:
    return sum(parts(usage, sharing, on_host=on_host).values())


def _working(usage: Usage, sharing: Sharing) -> tuple[int, int]:
    """Gradients, and activations with what kernels ask for, at the moment when both together are most."""
    if not sharing.cuts_gradients:
        most = max(usage.peaks.values(), key=lambda peak: peak.total)
        above = max(most.total - usage.states, 0)
        gradients = min(most.total - most.without_gradients, above)
        return gradients, above - gradients
    working = max(max(peak.without_gradients for peak in usage.peaks.values()) - usage.states, 0)
    return usage.gradients // sharing.processes, working
