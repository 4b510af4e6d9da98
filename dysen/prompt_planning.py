"""Plans the prompts of sample.py, whole or with a part of the planner taken away, as in the paper's ablation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dysen.demonstrations import RandomSelector
from dysen.drawing import draw
from dysen.planner import Planned, Planner
from vdm.errors import ConfigError


@dataclass(frozen=True)
class PlannedPrompt:
    """What sample.py says to the model, and what it keeps beside the video."""

    signals: dict[str, Any]  # by condition
    record: dict[str, Any]  # in the record of the sample
    drawing: str | None  # svg


class PromptPlanner:
    """Called with prompts.

    Args:
        ablate: imagination: the graphs are those of the plan (no step III); window: each scene is imagined alone; policy:
            as many demonstrations of the same pool are shown, but any; dysen: there are no graphs, nobody is called.
    """

    def __init__(self, *, planner: Planner, ablate: Literal["dysen", "imagination", "window", "policy"] | None):
        self.planner = planner
        if ablate == "policy":
            self._choose_any()
        elif ablate in ("imagination", "window"):
            self._imagine_less(ablate)

    def __call__(self, prompts: Sequence[str]) -> list[PlannedPrompt]:
        try:
            return [_said(planned) for planned in self.planner.plan(prompts)]
        finally:
            self.planner.llm.close()

    def _choose_any(self) -> None:
        selector = self.planner.selector
        if not selector.shots:
            raise ConfigError("no demonstrations are chosen, so there is no policy to take away", key="ablate",
                              got="policy", remedy="set selector=policy, or leave out ablate")  # fmt: skip
        self.planner.selector = RandomSelector(pool=selector.pool, shots=selector.shots, seed=0)

    def _imagine_less(self, ablate: str) -> None:
        imagination = self.planner.imagination
        if imagination is None:
            raise ConfigError("nothing is imagined, so there is nothing to take away", key="ablate", got=ablate,
                              remedy="set planner=default or planner=fast, or leave out ablate")  # fmt: skip
        if ablate == "window" and imagination.calls == "batched":
            raise ConfigError("all scenes are imagined at once, and look at no window", key="ablate", got=ablate,
                              remedy="set planner=default, or leave out ablate")  # fmt: skip
        self.planner.imagination = None if ablate == "imagination" else replace(imagination, window=0)


def _said(planned: Planned) -> PlannedPrompt:
    whole = planned.to_json()
    graphs = whole.pop("scene_graphs")
    whole.pop("caption")
    drawing = None if planned.plan is None else draw(planned.plan, planned.dsg, planned.caption).to_svg()
    return PlannedPrompt({"scene_graph": graphs}, {"scene_graph": graphs, "planned": whole}, drawing)
