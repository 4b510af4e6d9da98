"""The wording of the prompts, one text file each. Instructions come first and the query last, so prefixes can be cached."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Literal

from dysen.names import clean
from dysen.scene_graph import DynamicSceneGraph, SceneGraph
from dysen.text_form import dsg_to_text, graph_to_text

Form = Literal["json", "tuples"]
MAX_CAPTION = 2_000


@functools.cache
def template(name: str) -> Template:
    """The text of dysen/prompts/<name>.txt."""
    return Template(resources.files("dysen.prompts").joinpath(f"{name}.txt").read_text(encoding="utf-8"))


def instruction(name: Literal["plan", "imagine", "imagine_all", "polish"], form: Form) -> str:
    """What is the same for every caption."""
    answer = {"plan": "plan", "imagine": "scene", "imagine_all": "scenes", "polish": "scenes"}[name]
    return template(name).substitute(form=template(f"{answer}_{form}").substitute().strip())


def prompt(
    name: Literal["plan", "imagine", "imagine_all", "polish"], form: Form, demonstrations: Sequence[str], query: str
) -> str:
    """Instruction, demonstrations (the most relevant last), query."""
    return "\n".join([instruction(name, form), *(f"{shown}\n" for shown in demonstrations), query])


def sentence(caption: str) -> str:
    """A caption on one line and in quotes, so that it cannot pass for a part of the prompt."""
    return f"Sentence: {json.dumps(clean(caption[:MAX_CAPTION]), ensure_ascii=False)}"


def plan_query(caption: str, answer: str | None = None) -> str:
    """Step I; with the answer it is a demonstration."""
    return _closed(sentence(caption), "Plan:", answer)


def scene_query(
    caption: str,
    previous: Sequence[SceneGraph],
    current: SceneGraph,
    following: Sequence[SceneGraph],
    answer: str | None = None,
) -> str:
    """Step III for one scene: the enriched graphs before it, its own and those after it as they are planned."""
    lines = [sentence(caption)]
    lines += [f"Enriched previous scene: {graph_to_text(graph)}" for graph in previous]
    lines += [f"Current scene: {graph_to_text(current)}"]
    lines += [f"Following scene: {graph_to_text(graph)}" for graph in following]
    return _closed("\n".join(lines), "Additions:", answer)


def scenes_query(caption: str, dsg: DynamicSceneGraph, answer: str | None = None) -> str:
    """Step III for all scenes: the polish, or all of the imagination in one call."""
    return _closed(f"{sentence(caption)}\nScenes:\n{dsg_to_text(dsg)}", "Answer:", answer)


def _closed(query: str, last: str, answer: str | None) -> str:
    return f"{query}\n{last}" if answer is None else f"{query}\n{last} {answer}"


def plan_prompt(caption: str, *, demonstrations: Sequence[str] = (), form: Form) -> str:
    """All of step I's prompt."""
    return prompt("plan", form, demonstrations, plan_query(caption))


__all__ = ["Form", "instruction", "plan_prompt", "plan_query", "prompt", "scene_query", "scenes_query", "sentence"]
