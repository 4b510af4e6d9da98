"""Worker processes that survive their samples.

Each worker has its own pipe and writes pixels straight into shared memory, so a worker that is killed in the middle of
anything harms nobody else: its end of the pipe closes at once, it is replaced, and what it was to read is read again.
The sample it died on is tried once more and named broken if that one dies too; a sample that holds a whole process is
found by the clock. (torch's loader shares one queue and its lock between workers, ends the run when one dies, and
raises that in the middle of whatever the main thread does.)

Workers come from a fork server, not from a fork of the training process: forking one that runs decoders, loggers and
CUDA in threads can copy a lock that nobody will ever release, and workers are also started in the middle of training.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import multiprocessing
import os
import signal
import time
import traceback
import weakref
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.heap import Arena
from typing import Any

import numpy as np
import torch

from data.batches import Batch, BatchReader, Request
from data.plan import Place
from data.quarantine import Broken
from vdm.errors import RunError, UserError

log = logging.getLogger(__name__)

IDLE_DEATHS = 3  # workers that die on no sample, in a row, before the run stops


@dataclass
class _Task:
    ticket: int
    slot: int
    request: Request


@dataclass
class _Worker:
    number: int
    process: Any = None
    pipe: Connection | None = None
    tasks: deque[_Task] = field(default_factory=deque)
    told: int = 0  # how many of the broken samples it knows
    killed: bool = False


class WorkerPool:
    """Reads batches ahead. Results are asked for by ticket, so their order never depends on which worker is faster."""

    def __init__(self, *, reader: BatchReader, batch_bytes: int, num_workers: int, prefetch: int):
        self.reader, self.capacity = reader, num_workers * prefetch
        self._context = _context()
        self._batch_bytes = batch_bytes  # of the largest batch
        self._pixels = _shared_memory(self.capacity * batch_bytes)
        self._slots = np.frombuffer(self._pixels.buffer, np.uint8).reshape(self.capacity, batch_bytes)
        self._clock = self._context.RawArray("q", 2 * num_workers)  # position and start in ns of each worker's sample
        self._free = list(range(self.capacity))
        self._done: dict[int, tuple[_Task, Batch]] = {}
        self._broken: list[Broken] = []  # in the order of discovery, which all workers are told
        self._deaths: dict[Place, int] = {}
        self._idle_deaths = 0
        self._limit = None if reader.sample_timeout is None else 1.5 * reader.sample_timeout + 1
        self._workers = [_Worker(number) for number in range(num_workers)]
        for worker in self._workers:
            self._start(worker)

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    def submit(self, ticket: int, request: Request) -> None:
        """Have a batch read by the worker with the fewest tasks."""
        worker = min(self._workers, key=lambda worker: len(worker.tasks))
        task = _Task(ticket, self._free.pop(), request)
        worker.tasks.append(task)
        self._send(worker, task)

    def collect(self, ticket: int) -> tuple[np.ndarray, Batch]:
        """Pixels and clips of a ticket. The pixels are a view: copy them, then `release` the ticket."""
        while ticket not in self._done:
            pause = 5.0 if self._limit is None else min(1.0, self._limit / 4)
            ready = set(wait([worker.pipe for worker in self._workers], pause))
            for worker in self._workers:
                if worker.pipe in ready:
                    self._receive(worker)
                elif self._is_stuck(worker):
                    worker.killed = True
                    worker.process.kill()
        task, batch = self._done[ticket]
        return _pixels_of(task, self._slots), batch

    def release(self, ticket: int) -> None:
        task, _ = self._done.pop(ticket)
        self._free.append(task.slot)

    def close(self) -> None:
        """End all workers now; they hold nothing that needs care."""
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()
                worker.pipe.close()
        for worker in self._workers:
            if worker.process is not None:
                worker.process.join()
                worker.process.close()
                worker.process = None

    def _start(self, worker: _Worker) -> None:
        worker.pipe, theirs = self._context.Pipe()
        self._clock[2 * worker.number] = -1
        worker.told, worker.killed = len(self._broken), False
        arguments = (theirs, self.reader, self._pixels, self._batch_bytes, self._clock, worker.number)
        worker.process = self._context.Process(target=_work, args=arguments, name=f"data-{worker.number}", daemon=True)
        worker.process.start()
        theirs.close()
        for task in worker.tasks:
            self._send(worker, task)

    def _send(self, worker: _Worker, task: _Task) -> None:
        fresh, worker.told = self._broken[worker.told :], len(self._broken)
        with contextlib.suppress(OSError):  # a dead worker is noticed when its answer is waited for
            worker.pipe.send((task, fresh))

    def _receive(self, worker: _Worker) -> None:
        try:
            result = worker.pipe.recv()
        except (EOFError, OSError):
            self._replace_dead(worker)
            return
        if isinstance(result, BaseException):
            raise result
        task = worker.tasks.popleft()
        self._done[task.ticket] = task, result
        for broken in result.broken:
            self._learn(broken)
        self._idle_deaths = 0
        if result.hung:  # a thread is left behind in it and may burn a core for ever
            self._replace(worker)

    def _learn(self, broken: Broken) -> None:
        if self.reader.mark(broken):
            self._broken.append(broken)

    def _is_stuck(self, worker: _Worker) -> bool:
        position, started = self._clock[2 * worker.number : 2 * worker.number + 2]
        return self._limit is not None and position >= 0 and time.monotonic_ns() - started > self._limit * 1e9

    def _replace_dead(self, worker: _Worker) -> None:
        worker.process.join(timeout=10)
        position, cause = self._clock[2 * worker.number], _cause(worker.process.exitcode)
        if position < 0:
            self._idle_deaths += 1
            if self._idle_deaths > IDLE_DEATHS:
                what = f"data workers keep dying before they read anything ({cause})"
                remedy = "data.num_workers=0 shows why; killed by SIGKILL usually means that memory ran out"
                raise RunError(what, key="data.num_workers", got=len(self._workers), remedy=remedy)
            log.warning("a data worker died (%s); it is replaced", cause)
        else:
            place = self.reader.plan.locate(position)
            self._deaths[place] = self._deaths.get(place, 0) + 1
            if worker.killed:
                self._learn(self.reader.describe(place, "decoder hung", "it held the whole process"))
            elif self._deaths[place] > 1:
                self._learn(self.reader.describe(place, "decoder killed its process", cause))
            else:
                log.warning("a data worker died (%s) on a sample; it is tried once more", cause)
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.process.close()
        worker.pipe.close()
        self._start(worker)


def start_fork_server() -> None:
    """Begin its imports now, in the background, so that the first workers need not wait for them."""
    _context()
    forkserver.ensure_running()


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data.workers", "data.plain_mp4"])
    return context


def _shared_memory(size: int) -> Arena:
    """Anonymous where the system can: /dev/shm is 64 MB in many containers, and what has a name outlives a killed run."""
    if not hasattr(os, "memfd_create"):
        return Arena(size)
    descriptor = os.memfd_create("clips")
    os.ftruncate(descriptor, size)
    arena = Arena(size, descriptor)
    weakref.finalize(arena, os.close, descriptor)
    return arena


def _keep_freed_memory() -> None:
    """Frames of one size come and go: giving their pages back to the system each time costs a sixth of decoding."""
    with contextlib.suppress(AttributeError, OSError):  # glibc only
        allocator = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # from malloc.h
        allocator.mallopt(mmap_threshold, 32 << 20)
        allocator.mallopt(trim_threshold, 64 << 20)


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"exit code {exitcode}"


def _pixels_of(task: _Task, slots: np.ndarray) -> np.ndarray:
    """Where the pixels of a task lie, b T H W 3: at the beginning of its slot."""
    shape = (len(task.request.positions), *task.request.shape)
    return slots[task.slot, : math.prod(shape)].reshape(shape)


def _work(pipe: Connection, reader: BatchReader, pixels: Any, batch_bytes: int, clock: Any, number: int) -> None:
    for name in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):  # the main process decides what these mean
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
    _keep_freed_memory()
    slots = np.frombuffer(pixels.buffer, np.uint8).reshape(-1, batch_bytes)

    def on_sample(position: int) -> None:
        clock[2 * number + 1] = time.monotonic_ns()
        clock[2 * number] = position

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the main process is gone
        while True:
            task, broken = pipe.recv()
            for sample in broken:
                reader.mark(sample)
            try:
                result = reader.read(task.request.positions, _pixels_of(task, slots), on_sample)
            except UserError as error:  # raised again where the batch is waited for
                result = error
            except Exception:
                result = RuntimeError(f"in a data worker:\n{traceback.format_exc()}")
            pipe.send(result)
