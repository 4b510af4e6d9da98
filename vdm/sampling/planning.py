"""Prompts that are planned before they are sampled. Who plans is named in conf/sample.yaml, and not known here."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.utils import instantiate

from vdm.errors import ConfigError
from vdm.runs import Run
from vdm.sampling import files

log = logging.getLogger(__name__)

PLANNED = "scene_graph"  # the condition that plans speak to
# Where a planner finds things, and how fast it is.
NOT_DECIDING = (
    "output_root",
    "folder",
    "base_url",
    "api_key_env",
    "concurrency",
    "timeout",
    "max_wait",
    "batch_tokens",
)


class PlannedPrompt(Protocol):
    signals: dict[str, Any]  # by condition
    record: dict[str, Any]  # of the sample
    drawing: str | None  # svg


def planner_facts(asked: Mapping[str, Any], run: Run, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the plans, for the records of samples; nothing where prompts are not planned."""
    if not asked["plan"]:
        return {}
    if PLANNED not in conditions:
        raise ConfigError("this model hears no scene graphs, so there is nothing to plan", key="plan", got=run.name,
                          allowed=sorted(conditions) or "none: the model is unconditional",
                          remedy=f"leave it out, or train one with stage=vdm condition=[text,{PLANNED}]")  # fmt: skip
    if asked[PLANNED] is not None:
        log.info("the graphs of %s are used, and nothing is planned", asked[PLANNED])
        return {}
    ablated = {} if asked["ablate"] is None else {"ablate": asked["ablate"]}
    if asked["ablate"] == "dysen":
        return ablated
    # The order of keys follows that of groups, not that of the command.
    return {"planner": _without_places({**asked["planner"], "llm": asked["llm"]}), **ablated}


def plans_of(prompts: Sequence[str], node: Mapping[str, Any]) -> dict[str, PlannedPrompt]:
    """A plan for each prompt; copies of a prompt share theirs."""
    texts = list(dict.fromkeys(prompts))
    planner = instantiate(node, _convert_="all")
    plans = dict(zip(texts, planner(texts), strict=True))
    sources = Counter(plan.record["planned"]["source"] for plan in plans.values())
    log.info("%d prompts planned, by: %s", len(texts), ", ".join(f"{name} {n}" for name, n in sorted(sources.items())))
    return plans


def write_plan(plan: PlannedPrompt, prompt: str, output: Path, name: str) -> None:
    """`<name>.plan.json`, as a scene_graph=<file> may be, and its drawing."""
    content = {"caption": prompt, "scene_graphs": plan.record[PLANNED], **plan.record["planned"]}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    files.write_whole(output / f"{name}.plan.json", (text + "\n").encode())
    if plan.drawing is not None:
        files.write_whole(output / f"{name}.plan.svg", plan.drawing.encode())


def _without_places(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    return {name: _without_places(value) for name, value in node.items() if name not in NOT_DECIDING}
