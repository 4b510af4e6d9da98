"""Back to the last whole checkpoint when steps keep failing, and a look at whether all ranks began alike.

A step whose loss or gradient is not finite changes nothing that is trained. When many fail in a row, something that is not a
gradient has broken: statistics of a layer, a state of the optimizer, weights that have run away. Then weights, moving average,
optimizer and schedule go back to the last checkpoint, and the data goes on behind the samples it failed on: what is read next is
still a function of what a checkpoint holds, so a run that is killed after this and continued meets the same samples, goes back
at the same place, and ends with the same bits.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from vdm import checkpoint
from vdm.bounds import NonNegativeInt
from vdm.callbacks.checkpoint import Checkpoint
from vdm.errors import RunError
from vdm.runs import Run
from vdm.stages.base import Stage

log = logging.getLogger(__name__)


class Rollback(pl.Callback):
    """After `stage.max_skipped` failed steps in a row, at most `limit` times in a run; then the run ends with the reason."""

    def __init__(self, *, limit: NonNegativeInt):
        self.limit = limit
        self.done = 0
        self.run: Run | None = None
        self._asked: RunError | None = None

    def on_fit_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        assert self.run is not None, "training gives the callback its run folder"
        stage.rescue = self._ask

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        """Folders that are shared may show another file to every machine, and then nothing would add up."""
        steps = stage.all_gather(torch.tensor(stage.step, device=stage.device)).flatten().tolist()
        if len(set(steps)) > 1:
            remedy = "wait until all machines see the same run folder, then give the same command again"
            raise RunError("the processes of this run start from different checkpoints", key="resume", got=steps,
                           allowed="one step", remedy=remedy)  # fmt: skip

    def _ask(self, error: RunError) -> bool:
        """Asked in the middle of a step, when it would end the run. What is decided here is the same on all ranks."""
        if self.done >= self.limit:
            return False
        self._asked = error
        return True

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._asked is None:
            return
        error, self._asked = self._asked, None
        for part in trainer.callbacks:  # a checkpoint that is still being written is the one to go back to
            if isinstance(part, Checkpoint):
                part.settle(trainer)
        folder = trainer.strategy.broadcast(self._target() if trainer.is_global_zero else None)
        if folder is None:
            raise error
        self.done += 1
        log.warning("step %d: %s. Going back to %s, %d of %d times; the data goes on.", stage.step, error.what,
                    Path(folder).name, self.done, self.limit)  # fmt: skip
        self._restore(trainer, stage, folder)

    def _target(self) -> str | None:
        whole = (folder for folder in reversed(self.run.checkpoints()) if checkpoint.damage(folder) is None)
        return next(map(str, whole), None)

    def _restore(self, trainer: pl.Trainer, stage: Stage, folder: str) -> None:
        """What a run does that is continued, but for its place in the data and the random numbers that belong to that."""
        place = stage.batches_seen, stage.samples_seen, stage.skipped, self.done
        connector = (
            trainer._checkpoint_connector
        )  # each strategy reads its checkpoints in its own way, and this asks it to
        connector.resume_start(folder, weights_only=True)
        progress = connector._loaded_checkpoint["loops"]["fit_loop"]
        connector.restore_model()
        connector.restore_callbacks()
        connector.restore_precision_plugin_state()
        connector.restore_optimizers_and_schedulers()
        loop = trainer.fit_loop.epoch_loop.manual_optimization
        loop.optim_step_progress.load_state_dict(progress["epoch_loop.manual_optimization.optim_step_progress"])
        connector.resume_end()
        stage.batches_seen, stage.samples_seen, stage.skipped, self.done = place
        stage.skipped_in_row, stage.validated_step = 0, -1
        for part in [*trainer.callbacks, *trainer.loggers]:
            if hasattr(part, "on_rollback"):
                part.on_rollback(stage.step)

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
