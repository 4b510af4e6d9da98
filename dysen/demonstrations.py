"""Demonstrations for in-context learning: captions with their plan and graphs in a pool, and who chooses among them."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dysen.action_plan import Plan
from dysen.imagination import windowed
from dysen.prompts import Form, plan_query, scene_query, scenes_query
from dysen.replies import plan_reply, scene_reply, scenes_reply
from dysen.scene_graph import DynamicSceneGraph, SceneGraph, enrich, event_to_dsg
from dysen.text_form import graph_to_text, plan_to_text
from vdm.bounds import NonNegativeInt
from vdm.errors import ConfigError, DataError, PlanError
from vdm.runs import write_atomically


@dataclass(frozen=True)
class Demonstration:
    """A caption and what a perfect planner would answer. `dsg` holds the enriched graphs, None where nobody knows them."""

    id: str
    caption: str
    plan: Plan
    dsg: DynamicSceneGraph | None = None

    @cached_property
    def additions(self) -> tuple[SceneGraph, ...]:
        """What imagination adds to each graph of the plan: nothing where the enriched graphs end."""
        graphs = self.dsg.graphs if self.dsg is not None else ()
        given = [SceneGraph.build(graph.objects, (), graph.relations) for graph in graphs[: self.plan.num_ticks]]
        return (*given, *[SceneGraph()] * (self.plan.num_ticks - len(given)))

    def for_plan(self, form: Form) -> str:
        """Step I, with its answer."""
        return self._written(
            (form, "plan"),
            lambda: plan_query(self.caption, plan_reply(self.plan) if form == "json" else plan_to_text(self.plan)),
        )

    def for_scene(self, form: Form, window: int) -> str:
        """Step III for one scene, the one to which most is added."""
        return self._written((form, "scene", window), lambda: self._scene(form, window))

    def for_scenes(self, form: Form) -> str:
        """Step III for all scenes."""
        return self._written((form, "scenes"), lambda: self._scenes(form))

    def _scene(self, form: Form, window: int) -> str:
        planned = event_to_dsg(self.plan)
        enriched = [enrich(graph, addition) for graph, addition in zip(planned, self.additions, strict=True)]
        tick = max(range(len(planned)), key=lambda i: (len(self.additions[i].triplets), -i))
        addition = self.additions[tick]
        answer = scene_reply(addition).model_dump_json() if form == "json" else graph_to_text(addition)
        return scene_query(self.caption, *windowed(enriched, planned, tick, window), answer)

    def _scenes(self, form: Form) -> str:
        if form == "json":
            answer = scenes_reply(list(self.additions))
        else:
            answer = "\n".join(f"{tick}v: {graph_to_text(addition)}" for tick, addition in enumerate(self.additions))
        return scenes_query(self.caption, event_to_dsg(self.plan), answer)

    @cached_property
    def _texts(self) -> dict[tuple, str]:
        return {}

    def _written(self, kind: tuple, write: Callable[[], str]) -> str:
        """Written once: a demonstration is shown with many captions."""
        if kind not in self._texts:
            self._texts[kind] = write()
        return self._texts[kind]

    def to_json(self) -> dict[str, Any]:
        content = {"id": self.id, "caption": self.caption, "plan": self.plan.to_json()}
        return content if self.dsg is None else content | {"dsg": self.dsg.to_json()}

    @classmethod
    def from_json(cls, data: object) -> Demonstration:
        match data:
            case {"id": str(name), "caption": str(caption), "plan": plan, **rest}:
                dsg = rest.get("dsg")
                return cls(
                    name, caption, Plan.from_json(plan), None if dsg is None else DynamicSceneGraph.from_json(dsg)
                )
        raise PlanError("no demonstration", allowed='{"id", "caption", "plan", "dsg"}')


Pool = tuple[Demonstration, ...]


class Selector(ABC):
    """Chooses which demonstrations of its pool a caption is planned with. The choice depends on nothing but the caption.

    Args:
        pool: what may be chosen.
        shots: how many are chosen.
    """

    def __init__(self, *, pool: Pool, shots: NonNegativeInt):
        if shots > len(pool):
            remedy = "make a larger pool, or take fewer shots"
            raise ConfigError("more demonstrations than the pool has", key="selector.shots", got=shots,
                              allowed=f"<= {len(pool)}", remedy=remedy)  # fmt: skip
        self.pool, self.shots = tuple(pool), shots

    @abstractmethod
    def choose(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """For each caption positions in the pool, the most relevant last."""

    def fingerprint(self) -> dict[str, Any]:
        """What decides the choice. Selectors with weights add theirs."""
        content = json.dumps([one.to_json() for one in self.pool], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest() if self.pool else None
        return {"selector": type(self).__name__, "shots": self.shots, "pool": digest}


class NoSelector(Selector):
    """No demonstrations: the instruction alone."""

    def __init__(self):
        super().__init__(pool=(), shots=0)

    def choose(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        return [()] * len(captions)


class RandomSelector(Selector):
    """Any of the pool, drawn without replacement; the same for the same caption, whatever stands beside it."""

    def __init__(self, *, pool: Pool, shots: NonNegativeInt, seed: int):
        super().__init__(pool=pool, shots=shots)
        self.seed = seed

    def choose(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        return [self._drawn(caption) for caption in captions]

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"seed": self.seed}

    def _drawn(self, caption: str) -> tuple[int, ...]:
        def rank(position: int) -> bytes:
            text = f"{self.seed}:{position}:{caption}"
            return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

        return tuple(sorted(range(len(self.pool)), key=rank)[: self.shots])


def load_pool(path: str) -> Pool:
    """The demonstrations of a jsonl file, one a line."""
    found: dict[str, Demonstration] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        remedy = "make one from prepared shards: python -m dysen.plan data=<data> split=train write_pool=<file>"
        raise DataError("no pool of demonstrations", key="pool", got=f"{path}: {error}", remedy=remedy) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            one = Demonstration.from_json(json.loads(line))
        except (ValueError, RecursionError, PlanError) as error:
            what = f"line {number} of the pool is no demonstration"
            raise DataError(what, key="pool", got=f"{path}: {error}") from error
        if one.id in found:
            raise DataError("two demonstrations have one id", key="pool", got=f"{path}: {one.id}")
        found[one.id] = one
    if not found:
        raise DataError("the pool is empty", key="pool", got=path)
    return tuple(found.values())


def write_pool(path: str, demonstrations: Iterable[Demonstration]) -> int:
    """The file that `load_pool` reads, whole or not at all; how many it holds."""
    lines = [json.dumps(one.to_json(), ensure_ascii=False) for one in demonstrations]
    text = "".join(f"{line}\n" for line in lines)
    try:
        write_atomically(Path(path), text.encode("utf-8", "replace").decode())
    except OSError as error:
        raise DataError("the pool cannot be written", key="write_pool", got=f"{path}: {error}") from error
    return len(lines)


def demonstration_of(key: str, caption: str, extras: dict[str, Any]) -> Demonstration:
    """A clip with its truth, as a shard stores it, as a demonstration."""
    if "plan" not in extras:
        raise DataError("a clip without its plan cannot be a demonstration", got=key)
    graphs = extras.get("scene_graphs")
    dsg = None if graphs is None else DynamicSceneGraph.from_json(graphs)
    return Demonstration(key, caption, Plan.from_json(extras["plan"]), dsg)
