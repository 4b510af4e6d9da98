"""Keeps the moving average of a stage's networks and puts it in place for validation, samples and the final measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from vdm.bounds import Fraction
from vdm.ema import EMA
from vdm.stages.base import Stage
from vdm.strategies.base import shards_of


class MovingAverage(pl.Callback):
    """Averages what `stage.averaged()` names and lends the result to the stage as `averaged_weights()`."""

    def __init__(self, *, decay: Fraction):
        self.decay = decay
        self.ema: EMA | None = None
        self._loaded: tuple[Mapping[str, Tensor], int] | None = None  # of a checkpoint, whole, until there are pieces
        self._last_step = 0

    def on_fit_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        """Weights are in place by now, on their devices, and cut if the strategy cuts them."""
        shards = shards_of(trainer)
        self.ema = EMA(stage.averaged(), self.decay, shards.piece)
        if self._loaded is not None:
            self._restore(trainer, *self._loaded)
            self._loaded = None

        @contextmanager
        def averaged_weights() -> Iterator[None]:
            with self.ema.in_place(), shards.whole_weights():
                yield

        stage.averaged_weights = averaged_weights

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
        pieces = {name: (self.ema.parameters[name], piece) for name, piece in self.ema.state().items()}
        checkpoint["ema"] = shards_of(trainer).whole(pieces)
        checkpoint["ema_updates"] = self.ema.updates

    def on_load_checkpoint(self, trainer: pl.Trainer, stage: Stage, checkpoint: dict[str, Any]) -> None:
        if self.ema is None:
            self._loaded = checkpoint["ema"], checkpoint["ema_updates"]
        else:
            self._restore(trainer, checkpoint["ema"], checkpoint["ema_updates"])

    def _restore(self, trainer: pl.Trainer, tensors: Mapping[str, Tensor], updates: int) -> None:
        assert tensors.keys() == self.ema.shadow.keys(), "the moving average is of other networks"
        cut, parameters = shards_of(trainer).cut, self.ema.parameters
        self.ema.restore({name: cut(parameters[name], tensor) for name, tensor in tensors.items()}, updates)
