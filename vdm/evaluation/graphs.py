"""What a model with a condition on scene graphs is told of each clip: the true graphs, those of a planner, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from vdm.types import VideoBatch

GRAPHS = "scene_graph"  # the condition
DRAWN = ("plan", "scene_graphs")  # extras that are drawn
COPY = "~"  # after the key of a clip whose caption is sampled more than once, with a number


class Plans(Protocol):
    """Rows of planned captions, as a `PlannedGraphs` reads them."""

    def get(self, key: str, caption: str) -> Mapping[str, Any] | None: ...


class Reads(Protocol):
    """A condition that takes graphs, and times of frames, from `extras`."""

    reads: str
    times: str | None


class GraphsOfClips:
    """`plans` are asked where the source is `planned`."""

    def __init__(self, *, condition: Reads, source: Literal["gold", "planned"], plans: Plans | None):
        gold = [condition.reads] + ([condition.times] if condition.times is not None else [])
        self.reads = gold if source == "gold" else []  # extras that clips have to bring
        self.plans = plans
        self.without = 0  # clips without a plan, so far

    def of(self, batch: VideoBatch) -> list[dict[str, Any]]:
        """For each clip what is said, as `extras` of a batch hold it for one."""
        if self.plans is None:
            extras = batch["extras"]
            names = [*self.reads, *(["window"] if "window" in extras else [])]
            return [{name: extras[name][i] for name in names} for i in range(len(batch["key"]))]
        return [{GRAPHS: self._planned(*clip)} for clip in zip(batch["key"], batch["caption"], strict=True)]

    def record(self, batch: VideoBatch, position: int) -> dict[str, Any] | None:
        """What is said of one clip, as drawings are made of it."""
        key, caption = batch["key"][position], batch["caption"][position]
        if self.plans is not None:
            row = self.plans.get(plain(key), caption)
            return dict(row) if row is not None and row["scene_graphs"] is not None else None
        extras = batch["extras"]
        said = {name: extras[name][position] for name in DRAWN if name in extras}
        return {"caption": caption, **said} if any(value is not None for value in said.values()) else None

    def _planned(self, key: str, caption: str) -> Any:
        assert self.plans is not None, "graphs of a planner"
        row = self.plans.get(plain(key), caption)
        graphs = None if row is None else row["scene_graphs"]
        self.without += graphs is None
        return graphs


def plain(key: str) -> str:
    """Of the clip itself."""
    return key.partition(COPY)[0]
