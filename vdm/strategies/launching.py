"""Starts the processes of a job that needs several and was started as one.

A job that has one device runs in the process that composed it. `torchrun` and `srun` start several, which find each other by
themselves. A plain `python train.py trainer=ddp_sim` starts its own, here: they get the composed configuration, so none of them
composes it again, and each job of a sweep has its own set. Signals are passed on, and when one process fails so does the job.

Light: the standard library only, because a job that is one process asks as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vdm import errors
from vdm.errors import ConfigError, RunError, UserError

JOB, CONTEXT, RESULT, ERROR = "job.yaml", "context.yaml", "result.json", "error-{rank}.json"
PASSED_ON = (signal.SIGINT, signal.SIGTERM)
OF_THEIR_OWN = (*(128 + number for number in PASSED_ON), 75)  # all end so when they are asked to
GRACE = 10.0  # seconds that the others have when one has failed: they may be waiting for it
PAUSE = 0.05


def is_started() -> bool:
    """Whether somebody else has started this process among others."""
    return "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1


def started(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a trainer in a process among others: whoever started it (torchrun, `run`) knows how many they are."""
    world, local = int(os.environ.get("WORLD_SIZE") or 1), int(os.environ.get("LOCAL_WORLD_SIZE") or 0)
    if world > 1 and settings["strategy"] == "auto":
        settings = settings | {
            "strategy": "ddp_find_unused_parameters_true"
        }  # a discriminator rests until its start step
    if not local:
        return settings
    return settings | {"num_nodes": world // local} | ({"devices": local} if local > 1 else {})


def count(trainer: DictConfig) -> int:
    """How many processes a job has to start by itself; 1: none."""
    if is_started():
        return 1
    if trainer.get("num_nodes", 1) > 1:
        remedy = "srun with one task a device, or torchrun --nnodes <nodes> --nproc_per_node <devices> on every node"
        raise ConfigError("several nodes are started by others", key="trainer.num_nodes", got=trainer.num_nodes,
                          allowed=1, remedy=remedy)  # fmt: skip
    devices = trainer.devices
    if OmegaConf.is_list(devices):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if str(devices) not in ("auto", "-1"):
        return int(devices)
    if trainer.accelerator == "cpu":
        return 1
    import torch

    return max(torch.cuda.device_count(), 1)


def run(cfg: DictConfig, processes: int) -> float | None:
    """What the first of the processes returns. What stops one of them stops all, and is raised here."""
    with tempfile.TemporaryDirectory(prefix="vdm-job-") as name:
        folder = Path(name)
        OmegaConf.save(cfg, folder / JOB)
        known = {"hydra": HydraConfig.get()} if HydraConfig.initialized() else {}
        OmegaConf.save({"typed": sys.orig_argv, **known}, folder / CONTEXT)
        children = [_start(folder, rank, processes, port) for port in [_free_port()] for rank in range(processes)]
        with _passing_on(children):
            code = _wait(children)
        if code == 0:
            return json.loads((folder / RESULT).read_text())
        _raise_theirs(folder, processes)
    if code < 0:
        remedy = "look for memory that ran out; the same command continues the run from its last checkpoint"
        raise RunError("a process of this job was killed", got=f"signal {-code}", remedy=remedy)
    sys.exit(code)


def _start(folder: Path, rank: int, processes: int, port: int) -> subprocess.Popen:
    known = {
        "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": folder.name,
    }  # fmt: skip
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **{name: str(value) for name, value in known.items()}}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "vdm.strategies.process", str(folder), str(os.getpid())]
    # A session of its own: Ctrl-C of a terminal reaches this process alone, which passes it on once.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@contextlib.contextmanager
def _passing_on(children: Sequence[subprocess.Popen]) -> Iterator[None]:
    def pass_on(number: int, frame: Any) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()


def _wait(children: Sequence[subprocess.Popen]) -> int:
    """Until all have ended, or until one has failed and the others had their time. The exit code of the first that failed."""
    failed, patience = 0, float("inf")
    while any(child.poll() is None for child in children):
        for child in children:
            if child.poll() and not failed:
                failed = child.returncode
                if failed not in OF_THEIR_OWN:
                    patience = time.monotonic() + GRACE
        if time.monotonic() > patience:
            break
        time.sleep(PAUSE)
    return failed or next((child.returncode for child in children if child.returncode), 0)


def _raise_theirs(folder: Path, processes: int) -> None:
    """The error of a user that the first of them has met."""
    for rank in range(processes):
        path = folder / ERROR.format(rank=rank)
        if path.exists():
            told = json.loads(path.read_text())
            raise getattr(errors, told.pop("kind"))(**told)


def tell(error: UserError, folder: Path, rank: int) -> None:
    """For `_raise_theirs`."""
    named = ("what", "key", "got", "allowed", "remedy")
    told = {name: value if value is None else str(value) for name in named for value in [getattr(error, name)]}
    (folder / ERROR.format(rank=rank)).write_text(json.dumps({"kind": type(error).__name__, **told}))
