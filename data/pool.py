"""An ordered parallel map over processes in which every item has a time limit that really ends it.

A native decoder can hang for ever while it holds the interpreter's lock, so nothing inside a process can stop it: the
process is killed, its item is reported as `Lost`, and a fresh process goes on with the rest.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from vdm.errors import RunError

_AHEAD = 64  # results a worker may be ahead of the oldest unfinished item: bounds the memory
_QUEUED = 2  # one in work and one waiting, so that a worker never waits for the parent
_START_LIMIT = 120.0


@dataclass(frozen=True)
class Lost:
    """An item that took its process with it, or had to be ended with it."""

    reason: str
    detail: str


def ordered_map(
    function: Callable[[Any], Any], items: Iterable[Any], *, num_workers: int, timeout: float
) -> Iterator[Any]:
    """`function(item)` for each item, in order; `Lost` for those that hang or crash. Exceptions are raised here.

    With `num_workers` 0 it runs in this process, without time limit.
    """
    if num_workers == 0:
        yield from map(function, items)
        return
    pool = _Pool(function, num_workers, timeout)
    try:
        yield from pool.run(items)
    finally:
        pool.close()


class _Pool:
    def __init__(self, function: Callable[[Any], Any], num_workers: int, timeout: float):
        self.function, self.timeout, self.num_workers = function, timeout, num_workers
        # A server process that has imported everything once: workers start, and start again, in milliseconds.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["data.storing", type(function).__module__])
        self.workers = [_Worker(self.context, function) for _ in range(num_workers)]

    def run(self, items: Iterable[Any]) -> Iterator[Any]:
        numbered = iter(enumerate(items))
        done: dict[int, Any] = {}
        again: deque[tuple[int, Any]] = deque()  # were queued behind an item that took the process with it
        oldest, is_exhausted = 0, False
        while True:
            # Fill the shortest queues first, so that a slow item holds back as little as possible.
            for depth in range(_QUEUED):
                for worker in self.workers:
                    while len(worker.tasks) <= depth and (again or not is_exhausted):
                        task = again.popleft() if again else next(numbered, None)
                        if task is None:
                            is_exhausted = True
                        elif task[0] - oldest >= _AHEAD * self.num_workers:
                            again.appendleft(task)
                            break
                        else:
                            worker.give(task)
            if is_exhausted and not again and not any(worker.tasks for worker in self.workers) and not done:
                return
            for position, worker in enumerate(self.workers):
                if worker.is_over(self.timeout):
                    index, _ = worker.tasks.popleft()
                    done[index] = Lost("took too long", f"ended after {self.timeout:g} seconds")
                    again = self._replace(position, again)
            for connection in wait([worker.connection for worker in self.workers], timeout=self._patience()):
                position = next(n for n, worker in enumerate(self.workers) if worker.connection is connection)
                worker = self.workers[position]
                try:
                    result = worker.take()
                except (EOFError, ConnectionError, OSError):
                    worker.process.join(10)
                    if not worker.is_ready:
                        raise _does_not_start(worker.process.exitcode) from None
                    if worker.tasks:
                        index, _ = worker.tasks.popleft()
                        done[index] = Lost("the decoder crashed", _ending(worker.process.exitcode))
                    again = self._replace(position, again)
                    continue
                if result is not None:
                    done[result[0]] = result[1]
            while oldest in done:
                value = done.pop(oldest)
                oldest += 1
                if isinstance(value, _Raised):
                    raise value.error
                yield value

    def _patience(self) -> float:
        limits = [worker.began + self.timeout - time.monotonic() for worker in self.workers if worker.tasks]
        return min(1.0, max(0.01, min(limits, default=1.0)))

    def _replace(self, position: int, again: deque) -> deque:
        worker = self.workers[position]
        worker.kill()
        self.workers[position] = _Worker(self.context, self.function)
        return deque(sorted([*worker.tasks, *again], key=lambda task: task[0]))

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()


class _Worker:
    def __init__(self, context: Any, function: Callable[[Any], Any]):
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()
        self.tasks: deque[tuple[int, Any]] = deque()  # the first one is in work
        self.is_ready, self.began = False, time.monotonic()

    def give(self, task: tuple[int, Any]) -> None:
        if not self.tasks and self.is_ready:
            self.began = time.monotonic()
        self.tasks.append(task)
        with contextlib.suppress(OSError):  # it just died: reading from it says so, and the task goes to another
            self.connection.send(task)

    def take(self) -> tuple[int, Any] | None:
        result = self.connection.recv()
        self.began = time.monotonic()
        if result is None:
            self.is_ready = True
            return None
        self.tasks.popleft()
        return result

    def is_over(self, timeout: float) -> bool:
        spent = time.monotonic() - self.began
        if not self.is_ready and spent > _START_LIMIT:
            raise _does_not_start(None)
        # What arrived in the meantime counts: the parent itself may have been busy or asleep.
        return self.is_ready and bool(self.tasks) and spent > timeout and not self.connection.poll()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(10)
        self.connection.close()


@dataclass(frozen=True)
class _Raised:
    error: Exception


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    connection.send(None)
    while True:
        try:
            index, item = connection.recv()
        except (EOFError, ConnectionError):
            os._exit(0)  # the parent is gone
        try:
            result = function(item)
        except Exception as error:  # noqa: BLE001 - raised again in the parent
            result = _Raised(error)
        try:
            connection.send((index, result))
        except (BrokenPipeError, ConnectionError):
            os._exit(0)


def _does_not_start(exitcode: int | None) -> RunError:
    return RunError("a worker process does not start", got=f"exit code {exitcode}", key="num_workers",
                    remedy="its own message stands above; num_workers=0 works without processes")  # fmt: skip


def _ending(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"its process was ended by {signal.Signals(-exitcode).name}"
    return f"its process ended with exit code {exitcode}"
