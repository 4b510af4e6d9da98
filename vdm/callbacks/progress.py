"""What a person sees while a run trains: a bar with loss, time left, clips per second and the share spent waiting for data."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vdm.bounds import PositiveInt
from vdm.stages.base import Stage

log = logging.getLogger(__name__)


class ProgressLine(pl.Callback):
    """A bar on a terminal, a line every `every` steps elsewhere; logs `perf/*` in both cases."""

    def __init__(self, *, every: PositiveInt):
        self.every = every
        self._bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._restart_clock(stage)
        self._first = (stage.step, time.perf_counter())
        self._batch_ended = time.perf_counter()
        if trainer.is_global_zero and sys.stderr.isatty():
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[news]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(
                type(stage).__name__, total=trainer.max_steps, completed=stage.step, news=""
            )
            self._bar.start()

    def on_train_batch_start(self, trainer: pl.Trainer, stage: Stage, batch: Any, batch_idx: int) -> None:
        self._waited += time.perf_counter() - self._batch_ended

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, outputs: Any, batch: Any, batch_idx: int) -> None:
        if stage.step % trainer.log_every_n_steps == 0 and stage.samples_seen > self._samples:
            self._report(trainer, stage)
        if self._bar is not None:
            self._bar.update(self._task, completed=stage.step)
        self._batch_ended = time.perf_counter()

    def _report(self, trainer: pl.Trainer, stage: Stage) -> None:
        elapsed = time.perf_counter() - self._since
        speed, waiting = (stage.samples_seen - self._samples) / elapsed, self._waited / elapsed
        stage.report({"perf/clips_per_second": speed, "perf/data_wait": waiting}, reduce=False)
        self._restart_clock(stage)
        loss = stage.metrics.get("train/loss", float("nan"))
        best = next((f" {name} {value:.2f}" for name, value in stage.metrics.items() if name == "val/psnr"), "")
        news = f"loss {loss:.4f}{best} {speed:.1f} clips/s data wait {waiting:.0%}"
        if self._bar is not None:
            self._bar.update(self._task, news=news)
        elif trainer.is_global_zero and (stage.step % self.every == 0 or stage.step == trainer.max_steps):
            done, begun = stage.step - self._first[0], self._first[1]
            left = (time.perf_counter() - begun) / max(done, 1) * (trainer.max_steps - stage.step)
            log.info("step %d/%d %s, %s left", stage.step, trainer.max_steps, news, timedelta(seconds=round(left)))

    def _restart_clock(self, stage: Stage) -> None:
        self._since, self._samples, self._waited = time.perf_counter(), stage.samples_seen, 0.0

    def on_train_end(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, stage: Stage, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
