"""A run that hangs says where: without a sign of life for a while, each rank writes the stacks of its threads.

Every change of phase, every batch of a validation and every call of a network is a sign of life, so a long validation is not
taken for a hang. A thread looks; where somebody keeps Python's lock and no thread can run, the interpreter's own timer,
which needs no lock, writes the stacks to standard error.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from datetime import datetime
from typing import Any

import pytorch_lightning as pl

from vdm.bounds import NonNegativeInt, PositiveFloat
from vdm.phases import Phases
from vdm.runs import Run
from vdm.stages.base import Stage

log = logging.getLogger(__name__)

LOOKS = 10  # within `hang_after`


class Watchdog(pl.Callback):
    """Each rank has its own.

    Args:
        hang_after: seconds without a sign of life. None switches it off.
        exit_code: with which the process ends then, for a scheduler that starts it again. None: it stays, for a debugger.
    """

    def __init__(self, *, hang_after: PositiveFloat | None, exit_code: NonNegativeInt | None):
        self.hang_after, self.exit_code = hang_after, exit_code
        self.run: Run | None = None
        self._thread: threading.Thread | None = None
        self._hooks: list[Any] = []

    def on_train_start(self, trainer: pl.Trainer, stage: Stage) -> None:
        if self.hang_after is None:
            return
        phases = stage.phases
        for name, module in stage.named_modules():
            if name and name.count(".") < 2:
                self._hooks.append(module.register_forward_pre_hook(lambda *_: phases.alive()))
        phases.alive()
        self._rank, self._step = trainer.global_rank, lambda: stage.step
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(phases,), name="watchdog", daemon=True)
        self._thread.start()

    def _watch(self, phases: Phases) -> None:
        told = None  # the last sign of life of a hang that has been reported
        while not self._ended.wait(self.hang_after / LOOKS):
            quiet = time.monotonic() - phases.last_sign
            if quiet > self.hang_after:
                if told != phases.last_sign:
                    told = phases.last_sign
                    self._report(phases.current, quiet)
            else:
                self._set_timer()

    def _set_timer(self) -> None:
        """Goes off when this thread cannot set it again."""
        if _can_write(sys.__stderr__):
            faulthandler.dump_traceback_later(2 * self.hang_after, file=sys.__stderr__, exit=self.exit_code is not None)

    def _report(self, phase: str, quiet: float) -> None:
        folder = self.run.folder / "stacks"
        path = folder / f"rank-{self._rank}-{datetime.now():%Y-%m-%d_%H-%M-%S}.txt"
        ends = "" if self.exit_code is None else f"; it ends with code {self.exit_code}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                file.write(f"rank {self._rank}, step {self._step()}, phase {phase}, quiet for {quiet:.0f} s\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            where = f"stacks of all threads: {path}"
        except OSError as error:  # the disk may be what hangs
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
            where = f"stacks are in standard error, {path} could not be written: {error}"
        log.error("rank %d shows no sign of life for %.0f s, in %s of step %d; %s%s",
                  self._rank, quiet, phase, self._step(), where, ends)  # fmt: skip
        if self.exit_code is not None:
            logging.shutdown()
            os._exit(self.exit_code)  # whatever hangs would hang an orderly end as well

    def on_fit_end(self, trainer: pl.Trainer, stage: Stage) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, stage: Stage, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: pl.Trainer, module: Stage, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        faulthandler.cancel_dump_traceback_later()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _can_write(file: Any) -> bool:
    """Where there is no file behind standard error, as in some notebooks, there is no timer either."""
    try:
        return file is not None and file.fileno() >= 0
    except (OSError, ValueError, AttributeError):
        return False
