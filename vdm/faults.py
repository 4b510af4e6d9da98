"""What goes wrong outside of the code, said in one message: a full disk, and another process of a run that is gone."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from vdm.errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What gloo, NCCL and the store say when the process at the other end has ended.
_LOST_PEER = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed out waiting|socket timeout|remote process exited|ncclRemoteError|"
    r"ncclSystemError|connection (was )?(closed|refused|reset)|monitoredBarrier",
    re.IGNORECASE,
)
_AGAIN = "then give the same command again: it resumes"


@contextmanager
def told_plainly() -> Iterator[None]:
    """Whatever else is raised within passes through."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        remedy = f"free space, or set paths.output_root to another disk, {_AGAIN}"
        raise RunError("the disk is full", key="paths.output_root", got=error, remedy=remedy) from error
    except RuntimeError as error:
        if not _LOST_PEER.search(str(error)):
            raise
        remedy = f"its own message says why: it may be on another machine. Mend that, {_AGAIN}"
        raise RunError("another process of this run is gone", got=str(error).splitlines()[0], remedy=remedy) from error
