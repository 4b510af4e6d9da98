"""The wording of the prompts, one text file each. Instructions come first and the query last, so prefixes can be cached."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Literal

from dysen.names import clean, shorten
from dysen.scene_graph import DynamicSceneGraph, SceneGraph
from dysen.text_form import dsg_to_text, graph_to_text

Form = Literal["json", "tuples"]
MAX_CAPTION = 2_000
TICK_LINE = re.compile(r"\d{1,3}v: ")


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


def again(asked: str, problem: str) -> str:
    """A prompt whose answer could not be read, once more: the problem is named before its last line."""
    head, _, last = asked.rpartition("\n")
    note = json.dumps(shorten(problem), ensure_ascii=False)
    return f"{head}\nAn earlier answer could not be used: {note} Answer in the form above.\n{last}"


def queried_sentence(asked: str) -> str:
    """The caption that a prompt is about: the inverse of `sentence`. Empty where a prompt has none."""
    _, _, query = f"\n{asked}".rpartition("\nSentence: ")
    try:
        caption = json.loads(query.split("\n", 1)[0])
    except ValueError:
        return ""
    return caption if isinstance(caption, str) else ""


def queried_previous(asked: str) -> list[str]:
    """The enriched scenes before the one that a question of step III asks about, as they are written there."""
    start = "Enriched previous scene: "
    return [line.removeprefix(start) for line in _query(asked) if line.startswith(start)]


def queried_scenes(asked: str) -> list[str]:
    """The scenes that a question of step III asks about, as they are written there."""
    query = _query(asked)
    current = [line.removeprefix("Current scene: ") for line in query if line.startswith("Current scene: ")]
    return current or [line.partition(": ")[2] for line in query if TICK_LINE.match(line)]


def _query(asked: str) -> list[str]:
    """The lines after the demonstrations."""
    return asked[asked.rfind("\nSentence: ") :].splitlines()


def _closed(query: str, last: str, answer: str | None) -> str:
    return f"{query}\n{last}" if answer is None else f"{query}\n{last} {answer}"


def plan_prompt(caption: str, *, demonstrations: Sequence[str] = (), form: Form) -> str:
    """All of step I's prompt."""
    return prompt("plan", form, demonstrations, plan_query(caption))


def fingerprint() -> str:
    """A hash of the wording of all prompts."""
    names = sorted(entry.name for entry in resources.files("dysen.prompts").iterdir() if entry.name.endswith(".txt"))
    texts = [template(name.removesuffix(".txt")).template for name in names]
    return hashlib.sha256(json.dumps([names, texts]).encode()).hexdigest()[:16]


__all__ = ["Form", "again", "fingerprint", "instruction", "plan_prompt", "plan_query", "prompt", "queried_previous",
           "queried_scenes", "queried_sentence", "scene_query", "scenes_query", "sentence"]  # fmt: skip
