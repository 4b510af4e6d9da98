"""Planned scene graphs in the place of a clip's own, while a video model is trained on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from vdm.errors import DataError
from vdm.types import VideoBatch

ENOUGH = 64  # clips without a plan, and not one with: these are plans of other clips


class Plans(Protocol):
    """What `python -m dysen.plan` wrote for a split."""

    folder: str

    def get(self, key: str, caption: str) -> Mapping[str, Any] | None: ...


class Reads(Protocol):
    """The condition that they are told to: names of extras with graphs, and with times of frames."""

    reads: str
    times: str | None


def with_planned(
    batch: VideoBatch,
    plans: Plans,
    condition: Reads,
    is_wanted: Callable[[str], bool] | None = None,
    is_told: Callable[[str, Any, Any], bool] | None = None,
) -> tuple[VideoBatch, int, int]:
    """The batch with planned graphs in the place of its own; how many of its clips were to have one, and how many have.

    Args:
        is_wanted: of a clip's key; None: all of them.
        is_told: of a clip's key, its planned graphs and its own, of which there may be none; None: all plans are told.
    """
    extras = dict(batch.get("extras", {}))
    # Under the names of the gold ones, as only they are placed by the times of frames; the ticks of a plan are its own.
    told = {name: list(extras[name]) for name in (condition.reads, condition.times) if name in extras}
    told.setdefault(condition.reads, [None] * len(batch["key"]))
    asked = found = 0
    for position, (key, caption) in enumerate(zip(batch["key"], batch["caption"], strict=True)):
        if is_wanted is not None and not is_wanted(key):
            continue
        asked += 1
        row = plans.get(key, caption)
        if row is None or row["scene_graphs"] is None:
            continue
        found += 1
        if is_told is not None and not is_told(key, row["scene_graphs"], told[condition.reads][position]):
            continue
        told[condition.reads][position] = row["scene_graphs"]
        if condition.times in told:
            told[condition.times][position] = None
    return batch | {"extras": extras | told}, asked, found


def check_some_are_found(plans: Plans, asked: int, without: int) -> None:
    """Of the clips that a process has met so far."""
    if without == asked and asked >= ENOUGH:
        remedy = "plan the captions of this split (python -m dysen.plan data=<data> split=train), or name their folder"
        raise DataError(f"none of the first {asked} clips has a plan of its caption here",
                        key="stage.planned.folder", got=plans.folder, remedy=remedy)  # fmt: skip
