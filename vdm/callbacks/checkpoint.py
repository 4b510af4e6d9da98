"""When a checkpoint is written, which ones stay, and how Lightning reads and writes our format."""

from __future__ import annotations

import logging
import shutil
import signal
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO

from vdm import checkpoint
from vdm.bounds import PositiveInt
from vdm.errors import ConfigError
from vdm.runs import Run
from vdm.stages.base import Stage

log = logging.getLogger(__name__)


class FolderCheckpointIO(CheckpointIO):
    """Lightning's checkpoint dictionary to and from a checkpoint folder."""

    def save_checkpoint(self, checkpoint_dict: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        checkpoint.save(Path(path), checkpoint_dict, step=checkpoint_dict["global_step"])

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return checkpoint.load(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        shutil.rmtree(path)


class Checkpoint(pl.Callback):
    """Every `every` steps, at the end, and when asked to stop (Ctrl-C once, or SIGTERM)."""

    def __init__(
        self,
        *,
        every: PositiveInt,
        keep: PositiveInt,
        monitor: str | None,
        mode: Literal["min", "max"],
        finish_batches: PositiveInt,
    ):
        if mode not in ("min", "max"):
            raise ConfigError(
                "a metric is to be made small or large", key="callbacks.checkpoint.mode", got=mode, allowed="min, max"
            )
        self.every, self.keep, self.monitor, self.mode, self.finish_batches = every, keep, monitor, mode, finish_batches
        self.run: Run | None = None
        self.best: dict[str, Any] | None = None
        self.stop_signal: int | None = None
        self._saved_step = -1

    def on_fit_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        assert self.run is not None, "training gives the callback its run folder"
        self._previous = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if self.stop_signal is not None:  # asked twice: now
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.stop_signal = number
        log.warning("stopping after this step; a checkpoint is written. Once more to stop at once.")

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._saved_step = stage.step

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, outputs: Any, batch: Any, batch_idx: int) -> None:
        stop = self.stop_signal is not None
        if trainer.world_size > 1:  # a signal may reach one rank only
            stop = bool(trainer.strategy.reduce(torch.tensor(float(stop), device=stage.device), reduce_op="sum"))
        due = stage.step % self.every == 0 or self._is_best(stage)
        # The last step is saved by on_train_end, after the stage has finished.
        if (
            (due or stop)
            and self._saved_step < stage.step < trainer.max_steps
            and stage.batches_seen % stage.accumulate == 0
        ):
            self._save(trainer, stage)
        if stop:
            trainer.should_stop = True

    def _is_best(self, stage: Stage) -> bool:
        measured = stage.metrics.get(self.monitor, None) if self.monitor else None
        if measured is None or stage.validated_step != stage.step:
            return False
        if self.best is not None and (
            measured == self.best["value"] or (measured < self.best["value"]) != (self.mode == "min")
        ):
            return False
        self.best = {"step": stage.step, "value": measured, "metric": self.monitor}
        return True

    def on_train_end(self, trainer: pl.Trainer, stage: Stage) -> None:
        if stage.step >= trainer.max_steps and stage.step > 0:
            with stage.averaged_weights():
                stage.finish(stage.batches(trainer.datamodule.sample_dataloader(), self.finish_batches))
            self._is_best(stage)
            self._save(trainer, stage)

    def on_fit_end(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._restore_signals()

    def on_exception(self, trainer: pl.Trainer, stage: Stage, exception: BaseException) -> None:
        self._restore_signals()

    def _restore_signals(self) -> None:
        for number, handler in getattr(self, "_previous", {}).items():
            signal.signal(number, handler)

    def _save(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._saved_step = stage.step
        for logger in trainer.loggers:
            logger.save()  # what a checkpoint has seen must not be lost with the process
        folder = self.run.folder / "checkpoints" / f"step-{stage.step:08d}"
        trainer.save_checkpoint(folder)
        if trainer.is_global_zero:
            self.run.update(step=stage.step, best=self.best)
            keep = {f"step-{self.best['step']:08d}"} if self.best else set()
            for old in self.run.checkpoints()[: -self.keep]:
                if old.name not in keep:
                    shutil.rmtree(old)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
