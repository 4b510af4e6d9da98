"""Videos made during training from a fixed set of clips: mp4 files, and one picture with time from left to right."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.runs import Run
from vdm.stages.base import Stage
from vdm.video import save_mp4, save_png, sheet


class Samples(pl.Callback):
    """Every `every` steps and after the last one, `count` clips through `stage.preview`; 0 switches it off."""

    def __init__(self, *, every: NonNegativeInt, count: PositiveInt, scale: PositiveInt):
        self.every, self.count, self.scale = every, count, scale
        self.run: Run | None = None
        self._batch = None
        self._done = -1

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._done = stage.step

    def on_rollback(self, step: int) -> None:
        self._done = step

    def on_train_batch_end(self, trainer: pl.Trainer, stage: Stage, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.every and stage.step % self.every == 0 and self._done < stage.step < trainer.max_steps:
            with stage.phases("samples"):
                self.write(trainer, stage)

    def on_train_end(self, trainer: pl.Trainer, stage: Stage) -> None:
        is_interrupted = any(getattr(callback, "stop_signal", None) is not None for callback in trainer.callbacks)
        if self.every and self._done < stage.step and not is_interrupted:  # whoever stops it will not wait for videos
            with stage.phases("samples"):
                self.write(trainer, stage)

    @torch.no_grad()
    def write(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._done = stage.step
        with stage.averaged_weights():  # on all ranks: each may have a piece of them
            videos = self._videos(trainer, stage) if trainer.is_global_zero else {}
        if not videos:
            return
        folder = self.run.folder / "samples" / f"step-{stage.step:08d}"
        rows = []
        for position, key in enumerate(self._batch["key"]):
            clips = [video[position].float().cpu() for video in videos.values()]
            save_mp4(folder / f"{key}.mp4", torch.cat(clips, dim=-1), float(self._batch["fps"][position]))
            rows += clips
        save_png(folder / "sheet.png", sheet(rows, scale=self.scale))
        for logger in trainer.loggers:
            if hasattr(logger, "log_video"):  # wandb
                paths = [str(folder / f"{key}.mp4") for key in self._batch["key"]]
                captions = [str(caption) for caption in self._batch["caption"]]
                logger.log_video("samples", paths, step=stage.step, caption=captions, format=["mp4"] * len(paths))

    def _videos(self, trainer: pl.Trainer, stage: Stage) -> dict[str, Tensor]:
        if self._batch is None:
            self._batch = next(iter(stage.batches([trainer.datamodule.preview(self.count)])))
        training = stage.training
        stage.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            videos = stage.preview(self._batch)
        stage.train(training)
        return videos
