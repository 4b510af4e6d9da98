"""The preflight of a job: in full when it is asked for, and in short at the beginning of every run.

The full one simulates each bucket, looks for settings with which what does not fit would, and takes a real step where it does
fit. The short one gives a crude upper bound, which is enough for most runs, and simulates only where that bound comes near
the memory there is. A job is stopped only when it is certain to fail.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vdm.errors import ConfigError
from vdm.preflight import report
from vdm.preflight.limits import Limit, limit_of
from vdm.preflight.report import Bucket, Cost, Remedy, Shape, predicted
from vdm.preflight.sharding import Sharing, sharing_of, total
from vdm.preflight.simulate import AUTOCAST, Setting, Usage, networks_of, simulate
from vdm.stages.base import Stage
from vdm.types import VideoBatch
from vdm.watching.devices import peak_tflops, resident, resident_peak

log = logging.getLogger(__name__)

ASSUMED_USE = 0.35  # of the peak, where no step can be taken
COPIES = 6  # times what a layer gives, in the crude bound: it, what its norm and activation give, their gradients
USUAL = 30_000_000  # bytes that building any stage loads, which report.LOADED counts; peft loads as much again
AT_MOST = 150_000_000  # more is what building has used and will be used again
GUESSED = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)  # of a simulation


class Preflight:
    """Of one job.

    Args:
        settings: the resolved configuration.
        before: bytes that this process had before it built anything.
    """

    def __init__(self, *, stage: Stage, datamodule: Any, settings: Mapping[str, Any], before: int):
        self.stage, self.datamodule, self.settings, self.before = stage, datamodule, settings, before
        self.processes, local = processes_of(settings["trainer"])
        trainer = settings["trainer"]
        wants_gpu = trainer["accelerator"] in ("gpu", "cuda", "auto") and torch.cuda.is_available()
        self.device = torch.device("cuda" if wants_gpu else "cpu")
        self.sharing = sharing_of(trainer, self.processes, stage)
        self.limit: Limit = limit_of(self.device, processes=local, resident=resident())
        tensors = sum(t.nbytes for net in networks_of(stage) for t in (*net.parameters(), *net.buffers()))
        self.loaded = min(max(resident() - before - tensors - USUAL, 0), AT_MOST)
        self.setting = Setting(
            device=self.device, precision=str(trainer["precision"]), accumulate=stage.accumulate,
            last_step=trainer["max_steps"] - 1, has_average=settings["callbacks"].get("moving_average") is not None,
            previews=int((settings["callbacks"].get("samples") or {}).get("count", 1)),
        )  # fmt: skip

    @functools.cached_property
    def batch(self) -> VideoBatch:
        """Real clips, for what they say; their pictures are not looked at."""
        if getattr(self.stage, "cached", None) is not None:
            self.datamodule.use_cache(self.stage.cached, self.stage.made_by)
        workers = getattr(self.datamodule, "num_workers", 0)
        self.datamodule.num_workers = 0  # one batch is not worth processes
        try:
            batch = next(iter(self.datamodule.sample_dataloader()))
        finally:
            self.datamodule.num_workers = workers
        return self.datamodule.on_after_batch_transfer(batch, 0)

    @property
    def reads_texts(self) -> bool:
        return self.settings.get("texts") is not None

    @property
    def resident(self) -> int:
        """What counts beside tensors: on a CPU the interpreter and its libraries, those of this stage as well."""
        return self.before + self.loaded if self.device.type == "cpu" else 0

    def short(self) -> None:
        """One line, or a ConfigError for a job that is certain to fail."""
        bound = max(self.bound(shape, sizes) for shape, sizes in self.shapes())
        if self.resident + bound < 0.5 * self.limit.bytes:
            log.info("memory: at most %.3g GB of %.3g GB %s", (self.resident + bound) / 1e9, self.limit.bytes / 1e9,
                     self.limit.name)  # fmt: skip
            return
        try:
            buckets = self.buckets(others=False)
        except GUESSED as error:
            log.info("memory cannot be foretold for this stage: %s", str(error).splitlines()[0])
            return
        worst = max(buckets, key=lambda bucket: bucket.bytes)
        if worst.bytes > report.CERTAIN * self.limit.bytes:
            raise ConfigError(
                f"a batch of clips of {worst.shape.name} does not fit into memory", key=worst.shape.key,
                got=f"{worst.shape.count}: about {worst.bytes / 1e9:.3g} GB a process",
                allowed=f"{self.limit.bytes / 1e9:.3g} GB {self.limit.name}",
                remedy="; ".join(report.advice([worst], self.limit)) + ". More: preflight=true. Without: preflight=false",
            )  # fmt: skip
        say = log.warning if worst.bytes > report.CLOSE * self.limit.bytes else log.info
        say("memory: about %.3g GB a process for clips of %s, which %s: %.3g GB %s", worst.bytes / 1e9,
            worst.shape.name, report.verdict(worst.bytes, self.limit), self.limit.bytes / 1e9, self.limit.name)  # fmt: skip

    def full(self) -> str:
        """Everything, as text."""
        try:
            buckets = self.buckets(others=True)
        except GUESSED as error:
            return f"memory cannot be foretold for this stage: {str(error).splitlines()[0]}"
        lines = [
            f"memory of each of {self.processes} process(es) on {self.device.type}, in GB:",
            report.table(buckets, self.limit),
        ]
        lines += report.advice(buckets, self.limit)
        lines.append(report.cost(self.cost(buckets)))
        return "\n".join(lines)

    # ---- memory ---------------------------------------------------------------------------------------------------

    def shapes(self) -> Iterator[tuple[Shape, tuple[int, ...]]]:
        """Of all buckets, and what a clip is on its way into the stage, without the batch."""
        data = self.settings["data"]
        if self.reads_texts:
            yield Shape("texts", "texts.batch_size", int(self.settings["texts"]["batch_size"])), ()
            return
        for number, bucket in enumerate(data.get("buckets") or [None]):
            clip = bucket or data["clip"]
            size = tuple(int(clip[name]) for name in ("frames", "height", "width"))
            count = int((bucket or data)["batch_size"])
            key = "data.batch_size" if bucket is None else f"data.buckets[{number}].batch_size"
            yield Shape("x".join(map(str, size)), key, count), (3, *size)

    def buckets(self, *, others: bool) -> list[Bucket]:
        if getattr(self.stage, "planner", None) is not None:
            raise NotImplementedError("its steps ask a language model")
        found = []
        for shape, sizes in self.shapes():
            usage = self._usage(sizes, shape.count, others=others)
            bucket = Bucket(shape, usage, self.sharing, self.device.type, self.resident)
            if bucket.bytes > report.CLOSE * self.limit.bytes:
                bucket.remedies = self._remedies(bucket, sizes)
            found.append(bucket)
        return found

    def _usage(self, sizes: Sequence[int], count: int, *, others: bool = False, **changed: Any) -> Usage:
        setting, shape = replace(self.setting, **changed), self._of_batch(sizes)
        return simulate(self.stage, self.batch, shape=shape, count=count, setting=setting, others=others)

    def _of_batch(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """What a clip is on its way into the stage: a video, or its latent from a cache."""
        return tuple(self.stage.autoencoder.latent_shape(*sizes[1:])) if "latent" in self.batch else tuple(sizes)

    def _remedies(self, bucket: Bucket, sizes: Sequence[int]) -> list[Remedy]:
        """Each setting by itself, from those that cost nothing to those that cost time."""

        def remedy(setting: str, usage: Usage, sharing: Sharing = self.sharing) -> Remedy:
            taken = total(usage, sharing, on_host=self.device.type == "cpu")
            return Remedy(setting, self.resident + predicted(taken, self.device.type))

        found, count = [], bucket.shape.count
        if count > 1:
            half = self._usage(sizes, max(count // 2, 1))
            found.append(self._smaller_batch(bucket, remedy("", half).bytes, max(count // 2, 1)))
        levels = getattr(getattr(self.stage, "backbone", None), "widths", ())
        if levels and set(range(len(levels))) - set(self.stage.backbone.checkpoint_levels):
            every = tuple(range(len(levels)))
            text = f"backbone.checkpoint_levels={list(every)}".replace(" ", "")
            found.append(remedy(text, self._usage(sizes, count, checkpoint_levels=every)))
        if self.processes > 1:
            for name, sharing in _strategies(self.sharing, bucket.usage):
                found.append(remedy(f"trainer={name}", bucket.usage, sharing))
        if bucket.usage.worst_phase in ("autoencoder", "validation", "samples") and "video" in self.batch:
            rest = {name: peak for name, peak in bucket.usage.peaks.items() if name != bucket.usage.worst_phase}
            how = {
                "autoencoder": "latents from a cache (python -m data.precompute), or smaller tiles (autoencoder.tiling.tile)",
                "validation": "smaller tiles (autoencoder.tiling.tile), or callbacks.validation.every=0",
                "samples": "callbacks.samples.count=1, or smaller tiles (autoencoder.tiling.tile)",
            }[bucket.usage.worst_phase]
            found.append(remedy(how, replace(bucket.usage, peaks=rest)))
        return found

    def _smaller_batch(self, bucket: Bucket, half: int, halved: int) -> Remedy:
        """The largest part of a batch that fits, on the line through two that were simulated."""
        each = max((bucket.bytes - half) / (bucket.shape.count - halved), 1)
        fixed = bucket.bytes - each * bucket.shape.count
        most = max(int((report.CLOSE * self.limit.bytes - fixed) / each), 1)
        whole = bucket.shape.count  # the batch of a step stays as large as it is
        count = max(part for part in range(1, whole) if whole % part == 0 and (part <= most or part == 1))
        times = whole // count * self.stage.accumulate
        setting = f"{bucket.shape.key}={count} stage.accumulate={times}"
        return Remedy(setting, int(fixed + each * count))

    def bound(self, shape: Shape, sizes: Sequence[int]) -> int:
        """More than a process will take, whatever the layers are: as if each was as large as the clip it is given."""
        stage, count = self.stage, max(shape.count, 1)
        numbers = sum(p.nbytes for p in stage.parameters()) * 6
        if not sizes:  # sequences, of no length that is known here
            return numbers + count * 64_000_000
        positions = count
        for size in sizes[1:]:
            positions *= size
        if hasattr(stage, "backbone"):
            each = stage.autoencoder.latent_shape(*sizes[1:])
            latents = count * each.frames * each.height * each.width
            one_clip = positions // count * _widths(stage.autoencoder)
            return numbers + 4 * COPIES * (latents * _widths(stage.backbone) + one_clip) + 64 * positions
        return numbers + 4 * COPIES * positions * _widths(stage)

    # ---- time -----------------------------------------------------------------------------------------------------

    def cost(self, buckets: Sequence[Bucket]) -> Cost:
        """Of an optimizer step, the mean of the buckets by their weights."""
        trainer, steps = self.settings["trainer"], int(self.settings["trainer"]["max_steps"])
        weights = [float(each["weight"]) for each in self.settings["data"].get("buckets") or [{"weight": 1.0}]]
        weights = weights if len(weights) == len(buckets) else [1.0] * len(buckets)
        flops = [bucket.usage.flops.hardware * self.stage.accumulate for bucket in buckets]
        mean = sum(w * f for w, f in zip(weights, flops, strict=True)) / sum(weights)
        fits = [
            total(b.usage, Sharing("one"), on_host=self.device.type == "cpu") < 0.8 * self.limit.bytes for b in buckets
        ]
        if any(fits) and (trainer["accelerator"] not in ("gpu", "cuda") or self.device.type == "cuda"):
            place = fits.index(True)
            shape, sizes = list(self.shapes())[place]
            try:
                seconds = take_step(self.stage, self.batch, self._of_batch(sizes), shape.count, self.setting)
            except torch.OutOfMemoryError:
                return Cost(
                    None, steps, self.processes, False, "a real step ran out of memory: the prediction is too low"
                )
            return Cost(seconds * mean / max(flops[place], 1), steps, self.processes, is_measured=True)
        given = (self.settings["callbacks"].get("timing") or {}).get("peak_tflops")
        peak = given if isinstance(given, int | float) else peak_tflops(self.device, self.setting.precision)
        if peak is None:
            return Cost(
                None, steps, self.processes, False, "the peak of the device is not known (callbacks.timing.peak_tflops)"
            )
        assumed = f"at {ASSUMED_USE:.0%} of {peak:.4g} TFLOP/s"
        return Cost(mean / (ASSUMED_USE * peak * 1e12), steps, self.processes, False, assumed)


def processes_of(trainer: Mapping[str, Any]) -> tuple[int, int]:
    """How many a job has, and how many of them share a machine."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    devices = trainer["devices"]
    if isinstance(devices, list):
        local = len(devices)
    elif str(devices) in ("auto", "-1"):
        local = max(torch.cuda.device_count(), 1) if trainer["accelerator"] in ("gpu", "cuda") else 1
    else:
        local = int(devices) if str(devices).isdigit() else len(str(devices).strip(",").split(","))
    return local * int(trainer.get("num_nodes", 1)), local


def take_step(stage: Stage, batch: VideoBatch, sizes: Sequence[int], count: int, setting: Setting) -> float:
    """Seconds of a real optimizer step on this device, with nothing of the trainer around it: the second of two."""
    device, precision = setting.device, setting.precision
    stage.to(device).train()
    rows = [number % len(batch["key"]) for number in range(count)]
    clips: dict[str, Any] = {
        name: [value[row] for row in rows] if isinstance(value, list) else value for name, value in batch.items()
    }
    clips["fps"] = batch["fps"][rows].to(device) if "fps" in batch else None
    clips["extras"] = _rows(batch.get("extras", {}), rows, device)
    for name in ("video", "latent"):
        if name in batch:
            clips[name] = torch.zeros(count, *sizes, device=device)
    optimizer = stage.make_optimizer(stage.parameter_groups())
    seconds = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        for _ in range(stage.accumulate):
            with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
                losses = stage.losses(clips)
            (losses["loss"] / stage.accumulate).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begun
    log.info("a real step: %.3g s; the process has had %.3g GB", seconds, resident_peak() / 1e9)
    return seconds


def _rows(value: Any, rows: list[int], device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value[rows].to(device)
    if isinstance(value, Mapping):
        return {name: _rows(each, rows, device) for name, each in value.items()}
    return [value[row] for row in rows] if isinstance(value, list) else value


def _widths(network: nn.Module) -> int:
    """Sum of what its layers give for each position."""
    return sum(p.shape[0] for p in network.parameters() if p.dim() > 1)


def _strategies(sharing: Sharing, usage: Usage) -> Iterator[tuple[str, Sharing]]:
    order = ("one", "ddp", "zero1", "zero2", "zero3", "fsdp")
    for kind in order[2:5]:
        if order.index(kind) > order.index(sharing.kind):
            whole = usage.parameters // 4 if kind == "zero3" else 0
            bucket = 4 * 200_000_000
            yield f"deepspeed_{kind}", replace(sharing, kind=kind, bucket=bucket, whole_at_once=whole)
