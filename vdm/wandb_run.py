"""Weights & Biases: a run and all its restarts under one id, each number and video at the training step it belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only


class WandbRun(WandbLogger):
    """Its counter of rows is the training step. By itself it would begin at 0 in each folder that an offline run leaves, and
    steps that are computed again after a crash would be there twice."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log({**metrics, "trainer/global_step": step}, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is not None:
            import wandb  # late: optional

            self._experiment.finish(exit_code=int(status == "failed"))  # the next job of a sweep is another run
            wandb.teardown()  # its service, before SLURM ends all processes of a job
