"""Validation inside the step it belongs to: after the update, before the checkpoint, so that both see the same state."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from vdm.bounds import NonNegativeInt
from vdm.stages.base import Stage


class Validation(pl.Callback):
    """Every `every` steps and at the last one; 0 switches it off."""

    def __init__(self, *, every: NonNegativeInt):
        self.every = every
        self._loader = None
        self._done = -1

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, outputs: Any, batch: Any, batch_idx: int) -> None:
        due = self.every and (stage.step % self.every == 0 or stage.step >= trainer.max_steps)
        if due and stage.step > self._done:
            self._done = stage.step
            with stage.phases("validation"):
                if self._loader is None:
                    self._loader = trainer.datamodule.val_dataloader()
                stage.validate(stage.batches(self._loader))

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._done = stage.step

    def on_rollback(self, step: int) -> None:
        self._done = step
