"""What a person sees while a run trains: a bar with loss and time left, and what is known of its speed."""

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

SHOWN = (  # metric, its name, its form
    ("train/loss", "loss", "{:.4f}"),
    ("val/psnr", "val/psnr", "{:.2f}"),
    ("perf/clips_per_second", "", "{:.1f} clips/s"),
    ("perf/data_wait", "data wait", "{:.0%}"),
    ("perf/mfu", "MFU", "{:.0%}"),
)


class ProgressLine(pl.Callback):
    """A bar on a terminal, a line every `every` steps elsewhere. Shows what `Timing` measured, so it comes behind it."""

    def __init__(self, *, every: PositiveInt):
        self.every = every
        self._bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._first, self._shown = (stage.step, time.perf_counter()), stage.step
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

    def on_rollback(self, step: int) -> None:
        self._shown = step

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, outputs: Any, batch: Any, batch_idx: int) -> None:
        if stage.step % trainer.log_every_n_steps == 0 and stage.step > self._shown:
            self._shown = stage.step
            self._show(trainer, stage)
        if self._bar is not None:
            self._bar.update(self._task, completed=stage.step)

    def _show(self, trainer: pl.Trainer, stage: Stage) -> None:
        shown = [f"{name} {form.format(stage.metrics[key])}" for key, name, form in SHOWN if key in stage.metrics]
        news = " ".join(text.strip() for text in shown)
        if self._bar is not None:
            self._bar.update(self._task, news=news)
        elif trainer.is_global_zero and (stage.step % self.every == 0 or stage.step == trainer.max_steps):
            done, begun = stage.step - self._first[0], self._first[1]
            left = (time.perf_counter() - begun) / max(done, 1) * (trainer.max_steps - stage.step)
            log.info("step %d/%d %s, %s left", stage.step, trainer.max_steps, news, timedelta(seconds=round(left)))

    def on_train_end(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, stage: Stage, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
