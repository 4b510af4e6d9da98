"""The job that this process belongs to: its name, whether it may come back, and how it asks to."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

from vdm.errors import ConfigError, RunError
from vdm.slurm import signals

log = logging.getLogger(__name__)

T = TypeVar("T")
COMES_BACK = 75  # exit code of a process whose job was requeued: EX_TEMPFAIL, "try again"
ATTEMPTS, PAUSE = 5, 2.0  # a controller that is busy or being replaced does not answer the first time
LOCK_PATIENCE = 600.0  # seconds; what a lost node was doing ends when its daemon is back or its locks expire


def name() -> str | None:
    """As scontrol calls this job: 12, or 10_2 in an array; None outside of one."""
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def is_leader() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def name_processes() -> None:
    """Let the tasks of `srun` be found under the names that torchrun gives its processes."""
    count = os.environ.get("SLURM_STEP_NUM_TASKS")
    if count is None or int(count) < 2 or "RANK" in os.environ:
        return
    os.environ["RANK"], os.environ["WORLD_SIZE"] = os.environ["SLURM_PROCID"], count
    os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
    os.environ.setdefault("MASTER_ADDR", _first_node(os.environ.get("SLURM_STEP_NODELIST", "127.0.0.1")))
    os.environ.setdefault("MASTER_PORT", str(15000 + int(os.environ["SLURM_JOB_ID"]) % 10000))


def _first_node(listed: str) -> str:
    """n[03-08],m1 begins with n03."""
    return re.sub(r"\[([^,\-\]]*)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", listed)[0])


def leave(number: int) -> NoReturn:
    """End a process that was asked to stop by a signal, and is ready to: its job comes back where it may."""
    if not signals.in_job() or number == signal.SIGINT:
        sys.exit(128 + number)  # what a shell, a sweep or a scheduler expects of a process that was told to stop
    if not is_leader():
        sys.exit(0)  # another code would end the one that requeues
    sys.exit(COMES_BACK if requeue() else 128 + number)


def requeue() -> bool:
    """Have SLURM start this job again. False, with the reason logged, where it will not."""
    own = name()
    if own is None or shutil.which("scontrol") is None:
        log.warning("scontrol is not found: give the same command again, it goes on")
        return False
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * attempt)
        facts = _facts(own)
        if int(facts.get("Restarts", 0)) > restarts():
            log.info("job %s is requeued already", own)
            return True
        if facts.get("JobState") == "CANCELLED" or (
            facts.get("JobState") == "COMPLETING" and facts.get("Reason") != "TimeLimit"
        ):  # requeueing would bring back what somebody has cancelled
            log.info("job %s was cancelled: the same command, submitted again, goes on", own)
            return False
        if facts.get("BatchFlag") == "0":
            log.info("job %s is interactive and cannot be requeued: give the same command again, it goes on", own)
            return False
        done = _scontrol("requeue", own)
        if done.returncode == 0:
            log.info("job %s is requeued and goes on from its checkpoint", own)
            return True
        reason = (done.stderr or done.stdout).strip()
        if facts.get("Requeue") == "0":
            break
    log.error("job %s could not be requeued (%s): give the same command again, it goes on", own, reason)
    return False


def patiently(action: Callable[[], T]) -> T:
    """What fails because the process of an earlier start still holds the run is tried again for a while."""
    begun, told = time.monotonic(), False
    while True:
        try:
            return action()
        except RunError as error:
            waited = time.monotonic() - begun
            if not restarts() or waited > LOCK_PATIENCE or signals.warned() is not None:
                raise
            if not told:
                log.info("this job was started before, and %s still runs: waiting for it to end", error.got)
                told = True
            time.sleep(min(5.0, PAUSE))


@contextmanager
def coming_back() -> Iterator[None]:
    """Around a program that can stop anywhere: stopped by a warning, its job is requeued."""
    if signals.are_held():  # training, which says itself when it has stopped
        yield
        return
    signals.interrupt()
    try:
        yield
    except BaseException:  # whatever the signal broke
        if (number := signals.warned()) is not None:
            leave(number)
        raise
    if (number := signals.warned()) is not None:
        leave(number)


def _facts(own: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S*)", _scontrol("show", "job", "-o", own).stdout))


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


# Named by `checks` in conf/: said before anything is built.


def has_the_tasks(*, devices: int | str | list[int], num_nodes: int) -> None:
    """`srun` has started as many processes as training wants; more would write over each other."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    if (
        tasks is None
        or "TORCHELASTIC_RUN_ID" in os.environ
        or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    ):
        return
    each = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else None
    if each is not None and int(tasks) > 1 and int(tasks) != each * num_nodes:  # one starts the others by itself
        raise ConfigError(
            "srun starts one process for each device",
            key="trainer.devices",
            got=f"{each} on {num_nodes} nodes, in {tasks} tasks",
            remedy=f"sbatch --nodes={num_nodes} --ntasks-per-node={each}, or other trainer.devices and trainer.num_nodes",
        )
