"""What a model with a condition on scene graphs is told of each clip: the true graphs, those of a planner, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from vdm.types import VideoBatch

GRAPHS = "scene_graph"  # the condition


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

    def _planned(self, key: str, caption: str) -> Any:
        assert self.plans is not None, "graphs of a planner"
        row = self.plans.get(key, caption)
        graphs = None if row is None else row["scene_graphs"]
        self.without += graphs is None
        return graphs
