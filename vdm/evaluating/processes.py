"""One evaluation in several processes, as torchrun starts them: who does what, and what all of them found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as distributed

from vdm.devices import this_device
from vdm.errors import ConfigError, RunError, UserError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # one process may sample for long while another has nothing left to do


@dataclass(frozen=True)
class Processes:
    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, everything: Sequence[T]) -> list[T]:
        return list(everything[self.rank :: self.count])

    def gathered(self, mine: list[T]) -> list[T]:
        """Those of all processes."""
        if self.count == 1:
            return mine
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, mine)
        return [one for part in found for one in part]

    def together(self, work: Callable[[], T]) -> T:
        """The result of `work`. What stops one process stops all, each with a sentence."""
        result, own = None, None
        try:
            result = work()
        except UserError as error:
            own = error
        reasons = self.gathered([] if own is None else [own.what])
        if own is not None:
            raise own
        if reasons:
            raise RunError("another process of this evaluation was stopped", got=reasons[0])
        return result


@contextmanager
def joined() -> Iterator[Processes]:
    """This process among those of torchrun, or alone."""
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    begins = count > 1 and not distributed.is_initialized()
    if begins:
        try:
            distributed.init_process_group("gloo", rank=rank, world_size=count, timeout=PATIENCE)
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError("the processes do not find each other", key="WORLD_SIZE", got=f"{count}: {reason}",
                              remedy="start them with torchrun --nproc_per_node <count> evaluate.py ...") from None  # fmt: skip
    try:
        yield Processes(rank, count, this_device())
    finally:
        if begins:
            distributed.destroy_process_group()
