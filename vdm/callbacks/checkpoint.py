"""When a checkpoint is written, which ones stay, and how Lightning reads and writes our format."""

from __future__ import annotations

import copy
import logging
import math
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO

from vdm import checkpoint
from vdm.bounds import NonNegativeFloat, PositiveInt
from vdm.errors import ConfigError, RunError
from vdm.runs import Run
from vdm.slurm import signals
from vdm.stages.base import Stage

log = logging.getLogger(__name__)


class FolderCheckpointIO(CheckpointIO):
    """Lightning's checkpoint dictionary to and from a checkpoint folder, while training waits or beside it."""

    def __init__(self) -> None:
        self.in_background = False
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None

    def save_checkpoint(self, checkpoint_dict: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.wait()
        write = partial(checkpoint.save, Path(path), step=checkpoint_dict["global_step"])
        if self.in_background:
            self._writing = self._writer.submit(write, _copied(checkpoint_dict))
        else:
            write(checkpoint_dict)

    @property
    def is_writing(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def wait(self) -> None:
        """Until what was to be written is there. Its error is raised here, once."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        loaded = checkpoint.load(Path(path))
        if "stage" not in loaded:
            remedy = f"begin another run with its weights: init.vdm={Path(path).parents[1].name}"
            raise RunError("only weights are here, of a run that was merged", key="resume", got=path, remedy=remedy)
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        shutil.rmtree(path)


def _copied(value: Any) -> Any:
    """As it is now, on the CPU: training goes on in the same tensors."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry) for entry in value)
    return copy.deepcopy(value)


class Checkpoint(pl.Callback):
    """Every `every` steps, at the end, and when asked to stop (Ctrl-C once, SIGTERM, or the warning of a job).

    Args:
        background: training waits only until the state is copied; it is written, hashed and moved into its place beside the
            next steps. A process that is killed meanwhile goes on from the checkpoint before.
        monitor, mode: the checkpoint that is best by this metric stays.
        patience: so many validations without a better value end the run. Its last checkpoint is then the best one: those
            behind it are removed. None: it goes on, and ends with what it learned last.
        min_delta: a value that is better by no more than this does not count as one.
    """

    def __init__(
        self,
        *,
        every: PositiveInt,
        keep: PositiveInt,
        background: bool,
        monitor: str | None,
        mode: Literal["min", "max"],
        finish_batches: PositiveInt,
        patience: PositiveInt | None,
        min_delta: NonNegativeFloat,
    ):
        if mode not in ("min", "max"):
            raise ConfigError(
                "a metric is to be made small or large", key="callbacks.checkpoint.mode", got=mode, allowed="min, max"
            )
        self.every, self.keep, self.monitor, self.mode, self.finish_batches = every, keep, monitor, mode, finish_batches
        if patience is not None and monitor is None:
            raise ConfigError("patience needs a metric to look at", key="callbacks.checkpoint.monitor", got="null",
                              remedy="set callbacks.checkpoint.monitor=val/loss, or patience=null")  # fmt: skip
        self.patience, self.min_delta = patience, min_delta
        self.waited, self.reference = 0, None  # validations since the last value that counts, and this value
        self._judged_step = -1
        self.background = background
        self._unsettled: Callable[[], None] | None = None  # what is to be done when the last checkpoint is there
        self.ended_with: dict[str, Any] | None = None  # the best, where the run ends with it
        self.run: Run | None = None
        self.best: dict[str, Any] | None = None
        self.stop_signal: int | None = None
        self._saved_step = -1

    def on_fit_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        assert self.run is not None, "training gives the callback its run folder"
        if self.patience is not None and type(stage).finish is not Stage.finish:
            raise ConfigError("what this stage measures at its end is not in an earlier checkpoint",
                              key="callbacks.checkpoint.patience", got=self.patience, allowed="null")  # fmt: skip
        trainer.strategy.checkpoint_io.in_background = self.background
        self._previous = {s: signal.signal(s, self._ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if self.stop_signal is not None:  # asked twice: now
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.stop_signal = number
        log.warning("stopping after this step; a checkpoint is written. Once more to stop at once.")

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        for number in self._previous:  # Lightning has put another around ours, which talks to all ranks at any moment
            signal.signal(number, self._ask_to_stop)
        self._saved_step = stage.step
        trainer.should_stop = trainer.should_stop or self.stopped_early is not None

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.strategy.checkpoint_io.is_writing:
            self.settle(trainer)
        stop = self._is_to_stop(trainer, stage) and stage.batches_seen % stage.accumulate == 0
        self._judge(stage)  # before it is saved: a run that goes on decides alike
        due = self._is_best(stage) or stage.step % self.every == 0
        # The last step is saved by on_train_end, after the stage has finished.
        if (
            (due or stop)
            and self._saved_step < stage.step < trainer.max_steps
            and stage.batches_seen % stage.accumulate == 0
        ):
            self._save(trainer, stage)
        if stop or self.stopped_early is not None:
            trainer.should_stop = True

    def on_rollback(self, step: int) -> None:
        self._saved_step, self._judged_step = step, -1

    def _is_to_stop(self, trainer: pl.Trainer, stage: Stage) -> bool:
        """By a signal that this rank was sent, or any other."""
        before, self.stop_signal = self.stop_signal, self.stop_signal or signals.warned()
        if trainer.world_size > 1:
            number = torch.tensor(float(self.stop_signal or 0), device=stage.device)
            self.stop_signal = int(trainer.strategy.reduce(number, reduce_op="max")) or None
        if before is None and self.stop_signal is not None and trainer.is_global_zero:
            log.warning("signal %d: stopping after this step; a checkpoint is written", self.stop_signal)
        return self.stop_signal is not None

    @property
    def stopped_early(self) -> dict[str, Any] | None:
        """The settings that ended the run."""
        is_over = self.patience is not None and self.waited >= self.patience
        return {"patience": self.patience, "min_delta": self.min_delta} if is_over else None

    def _judge(self, stage: Stage) -> None:
        """Once for each validation."""
        value = stage.metrics.get(self.monitor) if self.monitor else None
        if value is None or stage.validated_step != stage.step or self._judged_step == stage.step:
            return
        self._judged_step = stage.step
        before = self.reference
        gain = math.inf if before is None else before - value if self.mode == "min" else value - before
        if math.isfinite(value) and gain > self.min_delta:
            self.waited, self.reference = 0, value
            return
        self.waited += 1
        if self.stopped_early is not None:
            log.info("step %d: %d validations without a better %s, the end", stage.step, self.waited, self.monitor)

    def _is_best(self, stage: Stage) -> bool:
        measured = stage.metrics.get(self.monitor, None) if self.monitor else None
        if measured is None or not math.isfinite(measured) or stage.validated_step != stage.step:
            return False
        if self.best is not None and (
            measured == self.best["value"] or (measured < self.best["value"]) != (self.mode == "min")
        ):
            return False
        self.best = {"step": stage.step, "value": measured, "metric": self.monitor}
        return True

    def on_train_end(self, trainer: pl.Trainer, stage: Stage) -> None:
        self.settle(trainer)
        if self.stopped_early is not None:
            self._end_with_best(trainer)
        elif stage.step >= trainer.max_steps and stage.step > 0:
            with stage.phases("finish"), stage.averaged_weights():
                stage.finish(stage.batches(trainer.datamodule.sample_dataloader(), self.finish_batches))
            self._is_best(stage)
            self._save(trainer, stage)
            self.settle(trainer)
            if self.patience is not None:
                self._end_with_best(trainer)

    def _end_with_best(self, trainer: pl.Trainer) -> None:
        """What comes last is what others take."""
        self.ended_with = self.best
        if self.best is None or not trainer.is_global_zero:
            return
        best = f"step-{self.best['step']:08d}"
        kept = [folder.name for folder in self.run.checkpoints()]
        for folder in self.run.checkpoints() if best in kept else ():
            if folder.name > best:
                shutil.rmtree(folder)
        self.run.update(best=self.best)

    def on_fit_end(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._restore_signals()

    def on_exception(self, trainer: pl.Trainer, stage: Stage, exception: BaseException) -> None:
        try:
            self.settle(trainer)
        except RunError as error:
            log.warning("%s", error)
        self._restore_signals()

    def _restore_signals(self) -> None:
        for number, handler in getattr(self, "_previous", {}).items():
            signal.signal(number, handler)

    def _save(self, trainer: pl.Trainer, stage: Stage) -> None:
        self.settle(trainer)
        self._saved_step = stage.step
        for logger in trainer.loggers:
            logger.save()  # what a checkpoint has seen must not be lost with the process
        folder = self.run.folder / "checkpoints" / f"step-{stage.step:08d}"
        with stage.phases("checkpoint"):
            trainer.save_checkpoint(folder)
        if trainer.is_global_zero:
            self._unsettled = partial(self._record, stage.step, self.best)
        if not self.background:
            self.settle(trainer)

    def settle(self, trainer: pl.Trainer) -> None:
        """Wait for the last checkpoint; then it is the run's newest, and older ones may leave."""
        trainer.strategy.checkpoint_io.wait()
        record, self._unsettled = self._unsettled, None
        if record is not None:
            record()

    def _record(self, step: int, best: dict[str, Any] | None) -> None:
        self.run.update(step=step, best=best)
        keep = {f"step-{best['step']:08d}"} if best else set()
        for old in self.run.checkpoints()[: -self.keep]:
            if old.name not in keep:
                shutil.rmtree(old)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "reference": self.reference}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
        self.waited, self.reference = state.get("waited", 0), state.get("reference")
