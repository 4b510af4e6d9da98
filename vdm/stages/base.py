"""What all training stages share: one optimizer step, written once, that is a pure function of what a checkpoint holds.

A stage owns networks and turns a batch into named losses. Everything random in a step is keyed by (seed, batch number,
rank), so an interrupted run continues with the very numbers it would have drawn.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vdm.bounds import PositiveFloat, PositiveInt
from vdm.errors import ConfigError, RunError
from vdm.phases import Phases
from vdm.strategies.base import shards_of
from vdm.types import VideoBatch

log = logging.getLogger(__name__)

_NAMED = 64  # samples of failed steps that a message names


@dataclass(frozen=True)
class Origin:
    """Where the first weights of a network come from."""

    folder: Path  # the checkpoint of a run
    new: tuple[str, ...]  # beginnings of the names of tensors that it does not have


def _nobody(error: RunError) -> bool:
    return False


class Stage(pl.LightningModule, ABC):
    """Subclasses write `losses` and, where they differ from the default, the other small methods below."""

    def __init__(
        self,
        *,
        name: str,
        optimizer: Callable[[Iterable], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        grad_clip: PositiveFloat | None,
        accumulate: PositiveInt,
        max_skipped: PositiveInt,
        seed: int,
    ):
        super().__init__()
        self.name = name
        self.automatic_optimization = False  # two losses and skipped steps need the say over backward and step
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.grad_clip, self.accumulate, self.max_skipped, self.seed = grad_clip, accumulate, max_skipped, seed
        self.batches_seen = 0  # on this rank, over all restarts
        self.samples_seen = 0
        self.skipped_in_row = 0
        self.skipped = 0
        self.skipped_keys: list[str] = []  # of these steps in a row
        self.rescue: Callable[[RunError], bool] = _nobody  # whoever can go back to an earlier state replaces it
        self.validated_step = -1
        self.phases = Phases()
        self.metrics: dict[str, float] = {}  # the newest value of everything logged: for callbacks and sweepers
        self.averaged_weights: Callable[[], AbstractContextManager] = nullcontext  # the moving average replaces it
        self.origins: dict[str, Origin] = {}  # of the networks that began with weights of a run
        self.needs_parents = False  # also when a run goes on, because its checkpoints say not all

    # ---- what a stage is ------------------------------------------------------------------------------------------

    @abstractmethod
    def losses(self, batch: VideoBatch) -> dict[str, Tensor]:
        """Scalars by name. `loss` is what is minimised, the others are logged beside it."""

    def prepare(self, run_folder: Path) -> None:
        """Called once before training, when the weights of parents are in place."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the one optimizer; keys beside `params` override its settings."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def averaged(self) -> dict[str, nn.Module]:
        """Networks of which an exponential moving average is kept, by attribute name."""
        return {}

    def validation_losses(self, batch: VideoBatch) -> dict[str, Tensor]:
        """Per-sample values `b` (or scalars) by name, averaged over the validation clips of all ranks."""
        return self.losses(batch)

    def preview(self, batch: VideoBatch) -> dict[str, Tensor]:
        """Videos `b 3 T H W` by name, written beside each other during training."""
        return {}

    def finish(self, batches: Iterable[VideoBatch]) -> None:
        """Called once after the last step, with averaged weights in place, before the final checkpoint."""

    # ---- how a step is taken --------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.global_step

    @final
    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameter_groups())
        if self.make_scheduler is None:
            return optimizer
        try:
            scheduler = self.make_scheduler(optimizer)
        except (ValueError, ZeroDivisionError) as error:  # torch's own, such as a warm-up of exactly one step
            remedy = "change trainer.max_steps or the settings of stage.scheduler; null keeps the rate as it is"
            raise ConfigError("this schedule cannot be made", key="stage.scheduler", got=error, remedy=remedy) from None
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    @final
    def training_step(self, batch: VideoBatch, batch_idx: int) -> None:
        self._seed_batch()
        shards = shards_of(self.trainer)
        with self.phases("forward"):
            losses = shards.losses(self, batch, is_last=(self.batches_seen + 1) % self.accumulate == 0)
        with self.phases("backward"):
            self.manual_backward(losses["loss"] / self.accumulate)
        self.batches_seen += 1
        self.samples_seen += len(batch["key"]) * self.trainer.world_size
        if self.batches_seen % self.accumulate:
            return
        optimizer = self.optimizers()
        with self.phases("optimizer"):
            norm = shards.clip(optimizer.optimizer, self.grad_clip)
            if torch.isfinite(norm):  # gradients are shared between ranks, so all ranks decide alike
                optimizer.step()
                if self.make_scheduler is not None:
                    self.lr_schedulers().step()
                self.skipped_in_row = 0
                self.skipped_keys.clear()
            else:
                self._skip(batch, losses, norm)
            shards.clear(optimizer)
        if self.step % self.trainer.log_every_n_steps == 0:
            values = {f"train/{name}": value.detach() for name, value in losses.items()}
            values |= {"train/grad_norm": norm, "train/lr": optimizer.optimizer.param_groups[0]["lr"]}
            self.report({**values, "train/skipped": self.skipped})

    def _skip(self, batch: VideoBatch, losses: dict[str, Tensor], norm: Tensor) -> None:
        self.skipped += 1
        self.skipped_in_row += 1
        shown = ", ".join(f"{name}={value.item():.4g}" for name, value in losses.items())
        keys = ", ".join(batch["key"])
        self.skipped_keys = (self.skipped_keys + batch["key"])[-_NAMED:]
        log.warning("step %d skipped: gradient norm %s, %s; samples: %s", self.step, norm.item(), shown, keys)
        if self.skipped_in_row >= self.max_skipped:
            error = RunError(
                f"{self.skipped_in_row} steps in a row had a loss or gradient that is not finite",
                key="stage.max_skipped",
                got=f"{shown}; last samples: {', '.join(self.skipped_keys)}",
                remedy="lower stage.optimizer.lr or set stage.grad_clip; the last checkpoint is untouched",
            )
            if not self.rescue(error):
                raise error

    def _seed_batch(self) -> None:
        # Large odd multipliers keep the streams of neighbouring batches and ranks apart.
        key = (
            self.seed * 0x9E3779B97F4A7C15
            + self.batches_seen * 0xBF58476D1CE4E5B9
            + self.global_rank * 0x94D049BB133111EB
        )
        torch.manual_seed(key % (1 << 63))

    # ---- validation and logging -----------------------------------------------------------------------------------

    @final
    @torch.no_grad()
    def validate(self, batches: Iterable[VideoBatch]) -> None:
        """Mean of `validation_losses` over the clips of all ranks, each counted once, with averaged weights."""
        training = self.training
        self.eval()
        with self.averaged_weights():
            means = self.means(batches, self.validation_losses)
        self.train(training)
        self.validated_step = self.step
        self.report({f"val/{name}": value for name, value in means.items()}, reduce=False)

    @final
    def means(
        self, batches: Iterable[VideoBatch], measure: Callable[[VideoBatch], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Of what is measured, `b` each or a scalar, over the samples of all ranks. A rank may have none."""
        sums: dict[str, Tensor] = {}
        count = torch.zeros((), dtype=torch.float64, device=self.device)
        with torch.random.fork_rng():
            for number, batch in enumerate(batches):
                torch.manual_seed(number)
                size = len(batch["key"])
                for name, value in measure(batch).items():
                    total = value.double().sum() if value.dim() else value.double() * size
                    sums[name] = sums.get(name, 0.0) + total
                count += size
        strategy = self.trainer.strategy
        names = strategy.broadcast(list(sums))  # the first rank is never the one without
        nothing = torch.zeros_like(count)
        total = strategy.reduce(count, reduce_op="sum")
        return {name: strategy.reduce(sums.get(name, nothing), reduce_op="sum") / total for name in names}

    @final
    def batches(self, loader: Iterable[VideoBatch], limit: int | None = None) -> Iterable[VideoBatch]:
        """Batches of a loader that is not the trainer's own, on this device and through the data module's hooks."""
        for number, batch in enumerate(loader):
            if limit is not None and number >= limit:
                break
            self.phases.alive()
            yield self.trainer.datamodule.on_after_batch_transfer(
                self.transfer_batch_to_device(batch, self.device, 0), 0
            )

    @final
    def report(self, values: dict[str, Any], *, reduce: bool = True) -> None:
        """Send numbers to every logger under the step they belong to, averaged over the ranks."""
        with self.phases("logging"):
            plain = {}
            for name, value in values.items():
                if isinstance(value, Tensor):
                    value = (self.trainer.strategy.reduce(value, reduce_op="mean") if reduce else value).item()
                plain[name] = float(value)
            self.metrics.update(plain)
            for logger in self.loggers:
                logger.log_metrics(plain, step=self.step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["stage"] = {
            "batches": self.batches_seen, "samples": self.samples_seen, "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        counts = checkpoint["stage"]
        self.batches_seen, self.samples_seen = counts["batches"], counts["samples"]
        self.skipped, self.skipped_in_row = counts["skipped"], counts.get("skipped_in_row", 0)
