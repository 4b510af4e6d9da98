"""Keeps the moving average of a stage's networks and puts it in place for validation, samples and the final measurements."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from vdm.bounds import Fraction
from vdm.ema import EMA
from vdm.stages.base import Stage


class MovingAverage(pl.Callback):
    """Averages what `stage.averaged()` names and lends the result to the stage as `averaged_weights()`."""

    def __init__(self, *, decay: Fraction):
        self.decay = decay
        self.ema: EMA | None = None
        self._last_step = 0

    def setup(self, trainer: pl.Trainer, module: Stage, stage: str) -> None:
        self.ema = EMA(module.averaged(), self.decay)

    def on_fit_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        if self.ema.updates == 0:  # weights of a parent may have been loaded, and devices changed, since setup
            self.ema = EMA(stage.averaged(), self.decay)
        stage.averaged_weights = self.ema.in_place

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._last_step = stage.step  # of a run that goes on, Lightning knows it only from here

    def on_rollback(self, step: int) -> None:
        self._last_step = step

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, outputs: Any, batch: Any, batch_idx: int) -> None:
        if stage.step > self._last_step:
            self._last_step = stage.step
            with stage.phases("ema"):
                self.ema.update()

    def on_save_checkpoint(self, trainer: pl.Trainer, stage: Stage, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self.ema.state()
        checkpoint["ema_updates"] = self.ema.updates

    def on_load_checkpoint(self, trainer: pl.Trainer, stage: Stage, checkpoint: dict[str, Any]) -> None:
        self.ema.restore(checkpoint["ema"], checkpoint["ema_updates"])
