"""Patience with storage that fails now and then: every attempt has a time limit, and the next one waits longer.

Jitter keeps a thousand processes that were refused together from coming back together. What is over after the last attempt is
told apart: a file that is not there, or is not the one that was promised, is lost; anything else is a failure of the storage,
which says nothing about the file.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from vdm.bounds import NonNegativeInt, PositiveFloat
from vdm.errors import DataError, UserError

log = logging.getLogger(__name__)

PIECE = 8 << 20  # bytes asked for at once: what a broken connection costs
_LONGEST_PAUSE = 30.0
_JITTER = random.Random()  # of its own: nothing that is drawn for training moves

Result = TypeVar("Result")


class ShardLost(DataError):
    """A shard that is not there any more, or has other bytes than its index says, however often it was asked for."""


class StorageFails(DataError):
    """The storage does not answer, or refuses. Stops the run, quarantines nothing: what it holds may be whole."""


class ShortAnswer(Exception):
    """Fewer or more bytes came than were asked for."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how long.

    Args:
        retries: attempts after the first one.
        pause: seconds before the first of them; twice as many before each further one.
        timeout: seconds an attempt may take.
    """

    retries: NonNegativeInt
    pause: PositiveFloat
    timeout: PositiveFloat

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each retry."""
        for nth in range(self.retries):
            yield min(self.pause * 2.0**nth, _LONGEST_PAUSE) * _JITTER.uniform(0.5, 1.0)


def persistently(
    action: Callable[[], Result],
    patience: Patience | None,
    what: str,
    *,
    hopeless: type[Exception] = ImportError,
    is_limited: bool = True,
) -> Result:
    """The result of `action`, which is tried again after whatever a storage library raises; the last error is raised.

    What is `hopeless`, a package that is missing and a URL that cannot be understood stay so, and are raised at once. An
    attempt that is not `is_limited` may take its time.
    """
    if patience is None:
        return action()
    attempt = functools.partial(within, patience.timeout, action) if is_limited else action
    for nth, pause in enumerate(patience.pauses()):
        try:
            return attempt()
        except (hopeless, ImportError, ValueError, UserError):
            raise
        except Exception as error:  # noqa: BLE001 - libraries of storage raise what they like
            say = log.warning if nth == 0 else log.info
            say("%s failed (%s); trying again in %.1f s", what, reason(error), pause)
        time.sleep(pause)
    return attempt()


def within(seconds: float, action: Callable[[], Result]) -> Result:
    """The result of `action`. One that takes longer is left behind in its thread: nothing can end a read that hangs."""
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, action()))
        except BaseException as error:  # raised where it is waited for
            outcome.append((False, error))

    thread = threading.Thread(target=run, name="storage", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} s")
    is_done, value = outcome[0]
    if not is_done:
        raise value
    return value


def pieces(system: Any, path: str, size: int, patience: Patience) -> Iterator[bytes]:
    """The bytes of a file of that size, in order. Each piece is asked for until it comes; ShardLost, StorageFails."""
    for start in range(0, size, PIECE):
        end = min(start + PIECE, size)

        def one_piece(start: int = start, end: int = end) -> bytes:
            found = system.cat_file(path, start=start, end=end)
            if len(found) == size:  # some servers know nothing of ranges
                return found[start:end]
            if len(found) != end - start:
                raise ShortAnswer(f"{len(found)} bytes came, {end - start} were asked for")
            return found

        try:
            yield persistently(one_piece, patience, f"reading {path}")
        except FileNotFoundError as error:
            raise ShardLost("a shard is gone", key="data.root", got=path) from error
        except (UserError, ImportError, ValueError):
            raise
        except Exception as error:
            if isinstance(error, ShortAnswer) or _has_other_size(system, path, size):
                raise ShardLost(
                    "a shard has other bytes than its index says", got=f"{path}: {reason(error)}"
                ) from error
            raise StorageFails("cannot fetch a shard", key="data.root", got=f"{path}: {reason(error)}",
                               remedy="check the storage, then run the same command again: it resumes") from error  # fmt: skip


def reason(error: BaseException) -> str:
    """One line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _has_other_size(system: Any, path: str, size: int) -> bool:
    try:
        found = within(5.0, lambda: system.size(path))
    except Exception:  # noqa: BLE001 - the storage does not tell
        return False
    return found is not None and found != size
