"""What Lightning is told about SLURM: that srun has started all processes, and that requeueing is not its business."""

from __future__ import annotations

import os

from lightning_fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment


def plugins() -> list[ClusterEnvironment]:
    """For processes that srun has started; none elsewhere, where Lightning finds out by itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_STEP_ID" not in os.environ:
        return []
    if SLURMEnvironment.job_name() in ("bash", "interactive"):
        return []
    return [SLURMEnvironment(auto_requeue=False)]
