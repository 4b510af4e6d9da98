"""Processes of one training, forked: they import nothing again, and start as those of torchrun do."""

import logging
import multiprocessing
import os
import socket
import sys
import time
import traceback
from multiprocessing import forkserver

import hydra

from vdm import training
from vdm.errors import UserError
from vdm.launch import CONF
from vdm.runs import Run

PATIENCE = 500.0


def train(settings, output, processes=1, before=None):
    """The run of these settings, in forked processes. `before` is called in each of them first."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    log = output / "processes.log"
    output.mkdir(parents=True, exist_ok=True)
    given = [*settings, f"paths.output_root={output}", "run.id=it"]
    ranks = [fork.Process(target=_rank, args=(given, r, processes, port, log, before)) for r in range(processes)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + PATIENCE
    while any(p.exitcode is None for p in ranks):
        failed = any(p.exitcode for p in ranks)
        if time.monotonic() > deadline or failed:
            for process in ranks:
                process.join(3 if failed else 0)
                process.kill()
        time.sleep(0.02)
    codes = [process.exitcode for process in ranks]
    if any(codes):
        raise AssertionError(f"exit codes {codes}\n{log.read_text()[-6000:]}")
    return Run(output / "it")


def _rank(settings, rank, processes, port, log, before):
    server = forkserver._forkserver  # of the parent, which a process of its own would not have
    server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))
    logging.getLogger().handlers[:] = [logging.StreamHandler(sys.stderr)]
    code = 0
    try:
        if before is not None:
            before(rank)
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("train", overrides=settings)
        training.train(cfg)
    except UserError as error:
        sys.stderr.write(f"rank {rank}: {type(error).__name__}: {error}\n")
        code = 2
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        sys.stderr.write(f"rank {rank}: {traceback.format_exc()}\n")
        code = 1
    sys.stderr.flush()
    os._exit(code)
