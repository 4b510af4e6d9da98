"""One process of a job that `launching` has started: python -m vdm.strategies.process <folder> <process that asks>"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
from pathlib import Path

from vdm.slurm import signals

signals.hold()  # first: the warning of a job would end a program that is still importing

from hydra.core.hydra_config import HydraConfig  # noqa: E402
from hydra.core.utils import setup_globals  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from vdm import launch  # noqa: E402
from vdm.errors import UserError  # noqa: E402
from vdm.strategies import launching  # noqa: E402

END_WITH_PARENT = 1  # prctl: the number of this request


def main(folder: Path, parent: int) -> None:
    end_with(parent)
    rank = int(os.environ["RANK"])
    launch.log_to_stderr(logging.INFO if rank == 0 else logging.ERROR)
    setup_globals()
    context = OmegaConf.load(folder / launching.CONTEXT)
    sys.orig_argv = list(context.typed)  # a run records the command that somebody has typed
    if "hydra" in context:
        HydraConfig.instance().cfg = OmegaConf.masked_copy(context, "hydra")  # which job of which sweep this is
    try:
        with launch.plain_errors():
            from vdm.training import train

            value = train(OmegaConf.load(folder / launching.JOB))
    except UserError as error:
        launching.tell(error, folder, rank)
        sys.exit(launch.USER_ERROR)
    if rank == 0:
        (folder / launching.RESULT).write_text(json.dumps(value))


def end_with(parent: int) -> None:
    """When whoever waits for this process is gone, nobody would pass on a signal to it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
