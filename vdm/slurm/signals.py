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
from multiprocessing import resource_tracker
from types import FrameType

CHOICE = "VDM_WARNING_SIGNAL"  # the name that --signal was given, in scripts that give another one than USR1

_holding = False
_taken: list[int] = []


def in_job() -> bool:
    return "SLURM_JOB_ID" in os.environ


def warnings() -> tuple[signal.Signals, ...]:
    name = os.environ.get(CHOICE, "USR1").removeprefix("SIG")
    chosen = getattr(signal, f"SIG{name}", signal.SIGUSR1)
    return (chosen, signal.SIGTERM)


def hold() -> None:
    """Keep the warnings of a job waiting, in this process and in all that it will start. Nothing outside of a job."""
    global _holding  # noqa: PLW0603  # as the mask, a fact of the process
    if in_job():
        _holding = True
        for number in warnings():
            signal.signal(number, _remember)  # where some library unblocks it after all
        signal.pthread_sigmask(signal.SIG_BLOCK, warnings())
        resource_tracker.ensure_running()  # unblocks SIGTERM when it starts, so it starts now
        signal.pthread_sigmask(signal.SIG_BLOCK, warnings())


def are_held() -> bool:
    return _holding


def interrupt() -> None:
    """Take the warnings of a job as Ctrl-C: for programs that go on where they were stopped, whenever that is."""
    if in_job():
        for number in warnings():
            signal.signal(number, _take)


def warned() -> int | None:
    """The warning that has come, if one has."""
    if _taken:
        return _taken[0]
    return next((int(number) for number in warnings() if number in signal.sigpending()), None) if _holding else None


def _remember(number: int, frame: FrameType | None) -> None:
    _taken.append(number)


def _take(number: int, frame: FrameType | None) -> None:
    _taken.append(number)
    if len(_taken) == 1:  # a second one must not disturb the tidying up
        raise KeyboardInterrupt
