"""Times every phase of a step and says what that is worth: clips and operations per second, use of the device, memory, and
the rank that the others wait for. It looks when the trainer logs; between that a phase costs microseconds.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from vdm.bounds import PositiveFloat
from vdm.phases import ORDER, OTHER
from vdm.stages.base import Stage
from vdm.watching.devices import measured_tflops, peak_bytes, peak_tflops, product_seconds
from vdm.watching.flops import FlopCounter, StepFlops
from vdm.watching.stopwatch import Stopwatch, stopwatch_for
from vdm.watching.stragglers import find_straggler

log = logging.getLogger(__name__)

PROBE = {"cuda": 4096, "cpu": 384}  # side of the product that every rank computes by itself
BETWEEN = ("validation", "checkpoint", "samples", "logging")  # no part of a training step
LEARNING = ("autoencoder", "encoding", "forward", "backward")


class Timing(pl.Callback):
    """Logs `perf/*`: means over the steps since it last did, and over the ranks.

    Args:
        peak_tflops: of one device, for `perf/mfu` and `perf/hfu`. None: from a table of GPUs, and no such numbers for a device
            that is not in it. measured: what a large matrix product reaches here.
        straggler: a rank is named when the others wait for it for more than this share of a step.
    """

    def __init__(self, *, peak_tflops: PositiveFloat | Literal["measured"] | None, straggler: PositiveFloat):
        self.peak_tflops, self.straggler = peak_tflops, straggler
        self.flops: dict[tuple, StepFlops | None] = {}  # by the shape of a batch
        self._counter: FlopCounter | None = None
        self._named: tuple[int, str] | None = None

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._peak = self._peak_of(trainer, stage)
        self._watch: Stopwatch = stopwatch_for(stage.device)
        stage.phases.observers += [self._watch, self._step_is_over]
        self._restart(stage)
        stage.phases.outside("data_wait")

    def on_rollback(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer: pl.Trainer, stage: Stage, batch: Any, batch_idx: int) -> None:
        stage.phases.outside(OTHER)
        self._shape = shape_of(batch)
        self._shapes[self._shape] += 1
        if self._shape not in self.flops:
            self._begin_counting(stage)

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, outputs: Any, batch: Any, batch_idx: int) -> None:
        was_counted = self._end_counting(stage)
        if stage.step % trainer.log_every_n_steps == 0 and stage.step > self._step:
            self._report(trainer, stage)
        elif was_counted:  # which took longer than a step does
            self._restart(stage)
        stage.phases.outside("data_wait")

    def _report(self, trainer: pl.Trainer, stage: Stage) -> None:
        seconds = self._watch.read()
        taken = max(
            (stage.batches_seen - self._batches) / stage.accumulate, 1
        )  # steps, those that were skipped as well
        mine = {name: seconds.get(name, 0.0) / taken for name in ORDER}
        mine[OTHER] += sum(value for name, value in seconds.items() if name not in ORDER) / taken
        ranks, probes, peaks = self._gathered(trainer, stage, mine)
        step = sum(sum(each.values()) for each in ranks) / len(ranks)
        means = {name: sum(each[name] for each in ranks) / len(ranks) for name in ORDER}
        values = {f"perf/time_{name}": seconds for name, seconds in means.items() if seconds}
        values |= {
            "perf/time_step": step,
            "perf/data_wait": means["data_wait"] / step,
            "perf/clips_per_second": (stage.samples_seen - self._samples) / taken / step,
            "perf/peak_memory_gb": max(peaks) / 1e9,
        }
        training = sum(seconds for name, seconds in means.items() if name not in BETWEEN)
        stage.report(values | self._speed(taken * training), reduce=False)
        if len(ranks) > 1:
            self._name_straggler(trainer, stage, ranks, probes, step)
        self._restart(stage)

    def _speed(self, seconds: float) -> dict[str, float]:
        """Of one device while it trains, where the operations of every batch have been counted."""
        counts = [(self.flops.get(shape), times) for shape, times in self._shapes.items()]
        if not counts or any(count is None for count, _ in counts):
            return {}
        model, hardware = (
            sum(getattr(count, kind) * times for count, times in counts) / seconds / 1e12
            for kind in ("model", "hardware")
        )
        of_peak = {} if self._peak is None else {"perf/mfu": model / self._peak, "perf/hfu": hardware / self._peak}
        return {"perf/tflops_per_second": model} | of_peak

    def _gathered(self, trainer: pl.Trainer, stage: Stage, mine: dict[str, float]) -> tuple[list, list, list]:
        """Of all ranks: seconds by phase, seconds for the same product, peak memory in bytes."""
        peak = float(peak_bytes(stage.device))
        if trainer.world_size == 1:
            return [mine], [0.0], [peak]
        size = PROBE.get(stage.device.type, 384)
        product = torch.ones(size, size, device=stage.device)
        probe = sorted(product_seconds(product) for _ in range(5))[2]
        row = torch.tensor([*mine.values(), probe, peak], dtype=torch.float64, device=stage.device)
        rows = stage.all_gather(row).tolist()
        ranks = [dict(zip(mine, each, strict=False)) for each in rows]
        return ranks, [each[-2] for each in rows], [each[-1] for each in rows]

    def _name_straggler(self, trainer: pl.Trainer, stage: Stage, ranks: list, probes: list, step: float) -> None:
        found = find_straggler(ranks, probes, step=step, threshold=self.straggler)
        stage.report({"perf/waiting_for_slowest": 0.0 if found is None else found.share}, reduce=False)
        named = None if found is None else (found.rank, found.phase)
        if named is not None and trainer.is_global_zero:
            say = log.info if named == self._named else log.warning  # the same again is no news
            say("steps %d to %d: %s", self._step + 1, stage.step, found)
        self._named = named

    def _restart(self, stage: Stage) -> None:
        self._watch.read()
        self._step, self._batches, self._samples = stage.step, stage.batches_seen, stage.samples_seen
        self._shapes: Counter[tuple] = Counter()

    def _peak_of(self, trainer: pl.Trainer, stage: Stage) -> float | None:
        if self.peak_tflops == "measured":
            peak = measured_tflops(stage.device, trainer.precision)
            log.info("a matrix product reaches %.3g TFLOP/s here: the peak of perf/mfu and perf/hfu", peak)
            return peak
        return self.peak_tflops or peak_tflops(stage.device, trainer.precision)

    def _begin_counting(self, stage: Stage) -> None:
        """A compiled network counts nothing: a step that is not compiled would not end with the same bits."""
        self.flops[self._shape] = None
        if not any(getattr(module, "_compiled_call_impl", None) is not None for module in stage.modules()):
            self._counter = FlopCounter(stage)
            stage.phases.observers.append(self._counter)
            self._counter.__enter__()

    def _step_is_over(self, phase: str) -> None:
        """Counting ends with the backward pass, before whatever an optimizer or a callback computes."""
        if self._counter is not None and self._counter.by_phase["backward"] and phase not in LEARNING:
            self._counter.__exit__(None, None, None)
            self.flops[self._shape] = self._counter.result()
            self._counter = None

    def _end_counting(self, stage: Stage) -> bool:
        """Whether this step was counted."""
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._counter = None
        others = [each for each in stage.phases.observers if not isinstance(each, FlopCounter)]
        was_counted = len(others) < len(stage.phases.observers)
        stage.phases.observers = others
        return was_counted

    def on_exception(self, trainer: pl.Trainer, stage: Stage, exception: BaseException) -> None:
        self._end_counting(stage)


def shape_of(batch: Any) -> tuple:
    """What decides how much is computed for a batch: its clips, or how many texts there are."""
    clips = next((batch[name] for name in ("latent", "video") if isinstance(batch.get(name), Tensor)), None)
    return tuple(clips.shape) if clips is not None else (len(batch["key"]),)
