"""What SLURM is asked on the machine where jobs are submitted: to take a script, and what has become of a job."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vdm.errors import ConfigError

PATIENCE = 60.0  # seconds a controller may take


@dataclass(frozen=True)
class Standing:
    state: str  # as SLURM calls it: PENDING, RUNNING, ...
    reason: str


def require() -> None:
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "SLURM is not here: sbatch is not on the PATH",
            key="hydra/launcher",
            got="slurm",
            remedy="run this on a login node; hydra.launcher.dry_run=true shows the script; without hydra/launcher=slurm "
            "the jobs of a sweep run here, one after the other",
        )


def submit(script: Path) -> str:
    """The number of the job."""
    command = ["sbatch", "--parsable", str(script)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError("SLURM does not answer", key="hydra/launcher", got=f"sbatch, for {PATIENCE:.0f} s") from None
    if done.returncode:
        reason = " ".join(line.removeprefix("sbatch: error: ") for line in done.stderr.splitlines() if line)
        raise ConfigError(
            "SLURM refuses these jobs", key="hydra.launcher", got=reason, remedy=f"the script is {script}"
        )
    return done.stdout.strip().split(";")[0]  # a federation adds the name of a cluster


def standings(jobs: Collection[str]) -> dict[str, Standing] | None:
    """Of those of the jobs that are in the queue; None where nobody can be asked."""
    if not jobs or shutil.which("squeue") is None:
        return None
    arrays = sorted({job.split("_")[0] for job in jobs})
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", "--jobs", ",".join(arrays)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None
    rows = [line.split("|", 2) for line in done.stdout.splitlines()]
    return {row[0]: Standing(row[1], row[2]) for row in rows if len(row) == 3}
