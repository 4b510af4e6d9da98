"""A job's warnings: the signal of `sbatch --signal`, and SIGTERM, which comes before a job is requeued or preempted.

SLURM sends them to every process of a step, whatever it is doing, and the answer of a process that did not prepare is death. So
training blocks them with its first line: they wait in the kernel until a step has ended and somebody asks. They are never
unblocked, because all children (data workers, the fork server, a logger's service) inherit that and survive as well, and because
nothing may end a process that is writing its last checkpoint. Programs that can stop anywhere take them as Ctrl-C.

Light: the standard library only, because it is imported before everything else.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

CHOICE = "VDM_WARNING_SIGNAL"  # the name that --signal was given, in scripts that give another one than USR1

_taken: list[int] = []


def in_job() -> bool:
    return "SLURM_JOB_ID" in os.environ


def warnings() -> tuple[signal.Signals, ...]:
    name = os.environ.get(CHOICE, "USR1").removeprefix("SIG")
    chosen = getattr(signal, f"SIG{name}", signal.SIGUSR1)
    return (chosen, signal.SIGTERM)


def hold() -> None:
    """Keep the warnings of a job waiting, in this process and in all that it will start. Nothing outside of a job."""
    if in_job():
        signal.pthread_sigmask(signal.SIG_BLOCK, warnings())


def are_held() -> bool:
    return in_job() and set(warnings()) <= signal.pthread_sigmask(signal.SIG_BLOCK, ())


def interrupt() -> None:
    """Take the warnings of a job as Ctrl-C: for programs that go on where they were stopped, whenever that is."""
    if in_job():
        for number in warnings():
            signal.signal(number, _take)


def warned() -> int | None:
    """The warning that has come, if one has."""
    if _taken:
        return _taken[0]
    if not are_held():
        return None
    return next((int(number) for number in warnings() if number in signal.sigpending()), None)


def _take(number: int, frame: FrameType | Any) -> None:
    first = not _taken
    _taken.append(number)
    if first:  # a second one must not disturb the tidying up
        raise KeyboardInterrupt
