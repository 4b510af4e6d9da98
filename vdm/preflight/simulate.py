"""One training step without content: how much memory it takes at most in each phase, and how much it computes.

The optimizer's state, the moving average and gradients are made by the very code that makes them in training, so nothing
has to be known of a stage, an optimizer or a network. What kernels take for themselves is not seen: see docs/watching.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from vdm.ema import EMA
from vdm.preflight.fakes import fake_batch, fake_stage
from vdm.preflight.ledger import Ledger, Peak
from vdm.stages.base import Stage
from vdm.types import VideoBatch
from vdm.watching.flops import FlopCounter, StepFlops

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Setting:
    """How a step is taken."""

    device: torch.device
    precision: str
    accumulate: int
    last_step: int
    has_average: bool
    previews: int = 1  # clips of a preview
    checkpoint_levels: tuple[int, ...] | None = None  # of the backbone, in the place of its own


@dataclass
class Usage:
    """Bytes of one process that shares nothing with others."""

    parameters: int  # that are trained
    frozen: int  # parameters that are not, and buffers
    gradients: int
    optimizer: int
    average: int
    kept: int  # by autograd at the end of the forward pass
    peaks: dict[str, Peak] = field(default_factory=dict)  # by phase, of everything above and what a phase needs
    flops: StepFlops | None = None

    @property
    def states(self) -> int:
        return self.parameters + self.frozen + self.optimizer + self.average

    @property
    def peak(self) -> int:
        return max(peak.total for peak in self.peaks.values())

    @property
    def worst_phase(self) -> str:
        return max(self.peaks, key=lambda name: self.peaks[name].total)


def simulate(
    stage: Stage, batch: VideoBatch, *, shape: Sequence[int], count: int, setting: Setting, others: bool
) -> Usage:
    """A step on `count` clips of `shape`; `others`: validation and samples as well, as far as they differ in memory."""
    device, precision = setting.device, setting.precision
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made = fake_stage(stage, mode, device=device, precision=precision, last_step=setting.last_step)
    if setting.checkpoint_levels is not None:
        made.backbone.checkpoint_levels = frozenset(setting.checkpoint_levels)
    ledger, counter = Ledger(device), FlopCounter(made)
    fixed = _register(made, ledger)
    made.phases.observers += [ledger, counter]
    told = functools.partial(fake_batch, batch, mode, shape=shape, device=device, precision=precision)
    with torch.random.fork_rng(), torch.autocast(
        device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST
    ), ledger:  # fmt: skip
        average = EMA(made.averaged(), 0.5) if setting.has_average else None
        averaged = ledger.live - sum(fixed)
        optimizer, gradients = _optimizer(made, ledger)
        state = ledger.live - sum(fixed) - averaged
        ledger.has_gaps = True
        clips = told(count=count)
        for tensor in tree_leaves(clips):
            if isinstance(tensor, Tensor):
                ledger.add(tensor)
        made.train()
        batches = min(setting.accumulate, 2)  # from the second one on, gradients are there before the forward pass
        for _ in range(batches):
            with counter:
                counter.by_phase.clear()
                counter.again, before = 0, ledger.live
                with made.phases("forward"):
                    losses = made.losses(clips)
                kept = ledger.live - before
                with made.phases("backward"):
                    (losses["loss"] / setting.accumulate).backward()
            del losses
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            with made.phases("ema"):
                average.update()
        if others:
            _others(made, clips, told(count=max(setting.previews, 1)), average)
    return Usage(
        parameters=fixed[0], frozen=fixed[1], gradients=gradients, optimizer=state, average=averaged,
        kept=kept, peaks=dict(ledger.peaks), flops=counter.result(),
    )  # fmt: skip


def networks_of(stage: Stage) -> list[nn.Module]:
    """The stage, and the networks that a condition keeps for itself."""
    return [stage, *(net for module in stage.modules() for net in getattr(module, "_frozen", ()))]


def _register(made: Stage, ledger: Ledger) -> tuple[int, int]:
    """Bytes that are trained, and that are not; networks that a condition keeps for itself are among these."""
    trained = frozen = 0
    for network in networks_of(made):
        for tensor in (*network.parameters(), *network.buffers()):
            before = ledger.live
            ledger.add(tensor)
            trained += (ledger.live - before) * tensor.requires_grad
            frozen += (ledger.live - before) * (not tensor.requires_grad)
            if tensor.requires_grad:
                tensor.register_post_accumulate_grad_hook(ledger.add_gradient)
    return trained, frozen


def _optimizer(made: Stage, ledger: Ledger) -> tuple[Any, int]:
    """With its state, which it makes at its first step; and the bytes of all gradients."""
    groups = made.parameter_groups()
    optimizer = made.make_optimizer(groups)
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.empty_like(parameter)
                ledger.add_gradient(parameter)
        gradients = sum(p.grad.nbytes for group in optimizer.param_groups for p in group["params"])
        with made.phases("optimizer"):
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer, gradients


@torch.no_grad()
def _others(made: Stage, clips: VideoBatch, previewed: VideoBatch, average: EMA | None) -> None:
    made.eval()
    backup = average.in_place if average is not None else torch.no_grad
    with made.phases("validation"), backup():
        made.validation_losses(clips)
    previews = getattr(made, "previews", None)
    if previews is not None:  # two steps of a sampler take what fifty do
        sampler = previews.sampler
        if isinstance(sampler, functools.partial) and "num_steps" in sampler.keywords:
            short = functools.partial(sampler.func, *sampler.args, **{**sampler.keywords, "num_steps": 2})
            made.previews = type(previews)(sampler=short, guidance=previews.guidance, rescale=previews.rescale)
    with made.phases("samples"), backup():
        made.preview(previewed)
