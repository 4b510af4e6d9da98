"""Work in processes that may hang, crash or want too much memory: each item has a time and memory limit that hold.

Decoders are native code, and nothing inside a process can stop one. A process that breaks a limit is ended, its item has
that as its result, and another process goes on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from vdm.errors import RunError
from vdm.evaluation.reading import Refusal

AHEAD = 4  # results a process may be ahead of the one that is waited for
START_LIMIT = 120.0  # seconds


def isolated(
    function: Callable[[Any], Any], items: Sequence[Any], *, processes: int, timeout: float, memory: float
) -> Iterator[Any]:
    """`function(item)` for each, in order; a Refusal for those that broke a limit.

    Args:
        timeout: seconds an item may take.
        memory: gigabytes a process may use beyond what it has when it starts.
    """
    context = multiprocessing.get_context("spawn")
    crew = [_Worker(context, function, memory) for _ in range(max(1, min(processes, len(items))))]
    done: dict[int, Any] = {}
    given, oldest = 0, 0
    try:
        while oldest < len(items):
            for worker in crew:
                if worker.task is None and given < len(items) and given - oldest < AHEAD * len(crew):
                    worker.give(given, items[given])
                    given += 1
            ready = wait([worker.pipe for worker in crew if worker.task is not None], timeout=0.5)
            for number, worker in enumerate(crew):
                if worker.task is None:
                    continue
                outcome = worker.outcome(worker.pipe in ready, timeout)
                if outcome is not None:
                    done[worker.task] = outcome
                    worker.task = None
                    if worker.is_spent:
                        worker.end()
                        crew[number] = _Worker(context, function, memory)
            while oldest in done:
                yield done.pop(oldest)
                oldest += 1
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    def __init__(self, context: Any, function: Callable[[Any], Any], memory: float):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function, memory), daemon=True)
        self.process.start()
        theirs.close()
        self.task: int | None = None
        self.began, self.is_ready, self.is_spent = time.monotonic(), False, False

    def give(self, number: int, item: Any) -> None:
        self.task, self.began = number, time.monotonic()
        with contextlib.suppress(OSError):  # it has died: its outcome says so
            self.pipe.send(item)

    def outcome(self, is_heard: bool, timeout: float) -> Any:
        """What became of the task; None: it goes on."""
        if is_heard:
            try:
                said = self.pipe.recv()
            except (EOFError, OSError):
                self.is_spent = True
                self.process.join(10)
                if not self.is_ready:
                    raise RunError("a process that reads videos does not start", key="num_workers",
                                   got=f"exit code {self.process.exitcode}") from None  # fmt: skip
                return Refusal("the decoder crashed", _ending(self.process.exitcode))
            if said == "ready":
                self.is_ready, self.began = True, time.monotonic()
                return None
            return said
        if time.monotonic() - self.began > (timeout if self.is_ready else START_LIMIT):
            self.is_spent = True
            if not self.is_ready:
                raise RunError("a process that reads videos does not start", key="num_workers", got="no answer")
            return Refusal("it takes too long", f"ended after {timeout:g} seconds")
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.join(10)
        self.pipe.close()


def _work(pipe: Connection, function: Callable[[Any], Any], memory: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what this means
    _limit_memory(memory)
    pipe.send("ready")
    while True:
        try:
            item = pipe.recv()
            pipe.send(function(item))
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone


def _limit_memory(gigabytes: float) -> None:
    """Allocations beyond it fail in this process, and no other process is ended for it."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # elsewhere than on Linux
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        _, highest = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + int(gigabytes * 2**30), highest))


def _ending(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"its process was ended by {signal.Signals(-exitcode).name}"
    return f"its process ended with exit code {exitcode}"
