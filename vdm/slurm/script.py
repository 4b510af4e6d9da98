"""The batch script of a sweep: what is asked of SLURM, and what each job of the array runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vdm.bounds import PositiveInt
from vdm.errors import ConfigError
from vdm.slurm.job import COMES_BACK
from vdm.slurm.signals import CHOICE

KEY = "hydra.launcher"
TIME = re.compile(r"\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}")  # minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s
MEMORY = re.compile(r"\d+[KMGT]?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a user chooses under hydra.launcher; conf/hydra/launcher/slurm.yaml says what each is."""

    folder: str
    name: str | None
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    time: int | str | None
    mem: int | str | None
    gpus: int | str
    gpu_type: str | None
    cpus_per_task: PositiveInt
    tasks_per_node: PositiveInt | None
    parallel: PositiveInt | None
    signal: str
    signal_seconds: PositiveInt
    requeue: bool
    after: list[int | str]
    lines: list[str]
    setup: list[str]
    srun: list[str]
    python: str | None
    dry_run: bool

    def check(self) -> None:
        """What a type does not say."""
        if self.time is not None and not TIME.fullmatch(str(self.time)):
            allowed = "minutes, h:m:s, d-h or d-h:m:s, such as 90, 24:00:00 or 7-0"
            raise ConfigError("this is not a time limit", key=f"{KEY}.time", got=self.time, allowed=allowed)
        if self.time is not None and seconds(str(self.time)) <= self.signal_seconds:
            raise ConfigError(
                "jobs would be warned of their end when they begin",
                key=f"{KEY}.signal_seconds",
                got=f"{self.signal_seconds} of {self.time}",
                remedy=f"raise {KEY}.time",
            )
        if self.mem is not None and not MEMORY.fullmatch(str(self.mem)):
            raise ConfigError("this is no memory", key=f"{KEY}.mem", got=self.mem, allowed="a number with K, M, G or T")
        if self.gpus != "auto" and not (isinstance(self.gpus, int) and self.gpus >= 0):
            raise ConfigError(
                "GPUs of a node are counted", key=f"{KEY}.gpus", got=self.gpus, allowed="auto, 0, 1, 2, ..."
            )
        if self.signal not in ("USR1", "USR2"):
            raise ConfigError("this signal does not warn", key=f"{KEY}.signal", got=self.signal, allowed="USR1, USR2")
        for line in self.lines:
            if not line.startswith("-"):
                raise ConfigError(
                    "a line is an option of sbatch", key=f"{KEY}.lines", got=line, allowed="--option=value"
                )


@dataclass(frozen=True, order=True)
class Shape:
    """What all jobs of an array have in common."""

    nodes: int
    tasks: int  # a node
    gpus: int  # a node


@dataclass(frozen=True)
class Job:
    number: int
    overrides: Sequence[str]
    folder: Path
    shape: Shape


def seconds(time: str) -> int:
    """Of a time limit as SLURM writes it."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def render(
    settings: Settings,
    jobs: Sequence[Job],
    *,
    name: str,
    program: Sequence[str],
    python: str,
    directory: Path,
    sweep: Path,
    dependency: str,
    looks: bool,
) -> str:
    """One array. `program` is what follows the interpreter, `directory` where the command was given; each job `looks`
    whether those before it have ended well."""
    shape = jobs[0].shape
    limit = f"%{settings.parallel}" if settings.parallel else ""
    options = {
        "job-name": name,
        "array": _ranges([job.number for job in jobs]) + limit,
        "nodes": shape.nodes,
        "ntasks-per-node": shape.tasks,
        "cpus-per-task": settings.cpus_per_task,
        "gres": (f"gpu:{settings.gpu_type}:" if settings.gpu_type else "gpu:") + str(shape.gpus)
        if shape.gpus
        else None,
        "mem": settings.mem,
        "time": settings.time,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "signal": f"{settings.signal}@{settings.signal_seconds}",
        "dependency": dependency or None,
        "output": f"{sweep}/%a/log.txt",
        "open-mode": "append",
    }
    lines = ["#!/usr/bin/env bash"]
    lines += [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    lines.append("#SBATCH --requeue" if settings.requeue else "#SBATCH --no-requeue")
    lines += [f"#SBATCH {line}" for line in settings.lines]
    lines += ["", "set -uo pipefail", f"cd {shlex.quote(str(directory))} || exit 1"]
    lines += [f"folder={shlex.quote(str(sweep))}/$SLURM_ARRAY_TASK_ID", 'rm -f "$folder/exit_code"']
    lines += [f"export {CHOICE}={settings.signal}", *settings.setup]
    lines += [f"python={shlex.quote(settings.python or python)}", ""]
    lines += ['case "$SLURM_ARRAY_TASK_ID" in']
    lines += [f"  {job.number}) set -- {shlex.join(job.overrides)} ;;" for job in jobs]
    root = shlex.quote(str(Path(__file__).parents[2]))
    look = f'PYTHONPATH={root}:"${{PYTHONPATH:-}}" "$python" -m vdm.slurm.after "$folder" && ' if looks else ""
    lines += ["esac", "", _BODY.format(
        look=look, srun=" ".join(map(shlex.quote, settings.srun)), program=shlex.join(program), again=COMES_BACK
    )]  # fmt: skip
    return "\n".join(lines)


# A node list may hold ranges. A warning that comes before Python has read its first line kills it: 128 + its number.
_BODY = """\
export MASTER_ADDR="${{MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}}"
{look}srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" {srun} \\
  "$python" {program} "$@"
code=$?
if [ $code -eq {again} ]; then  # it has been requeued
  exit $code
fi
if [ $code -eq 138 ] || [ $code -eq 140 ]; then  # warned before it could listen
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" && exit $code
fi
echo $code > "$folder/exit_code"
exit $code
"""


def _ranges(numbers: Sequence[int]) -> str:
    """0-2,5"""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
