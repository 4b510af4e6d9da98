"""The baseline: reads captions by rules instead of a language model, through the same interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dysen.action_plan import MAX_TICK, Plan
from dysen.english.consequences import marked, marks_of
from dysen.english.reading import read_caption
from dysen.imagination import Question
from dysen.llm.base import Answer, LanguageModel
from dysen.names import identity, shorten
from dysen.parsing_answers import parse_plan
from dysen.prompts import queried_previous, queried_scenes, queried_sentence
from dysen.replies import PlanReply, SceneReply, plan_reply, scene_reply, scenes_reply
from dysen.scene_graph import MAX_ATTRIBUTES, SceneGraph, SceneObject, enrich, merge
from dysen.text_form import graph_from_text
from vdm.errors import PlanError, UserError

VERSION = 2  # of the rules; another one is another model


class Rules(LanguageModel):
    """Plans what a caption says, and imagines what else it says of the objects, their attributes and places, and what
    earlier scenes left on them: who has vanished is gone until it appears.

    Args:
        parser: asked first, caption -> plan as json, such as the inverse of a grammar; what it refuses with a user error is
            read by the general rules of English. None: these alone.
        details: caption -> scene graph as json, of what it says of the objects; None: the general rules.
    """

    worth_caching = False

    def __init__(self, *, parser: Callable[[str], list[Any]] | None, details: Callable[[str], dict[str, Any]] | None):
        self.parser, self.details = parser, details

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return [self._one(question) for question in questions]

    def fingerprint(self) -> dict[str, Any]:
        return {"model": "rules", "version": VERSION, "parser": _name(self.parser), "details": _name(self.details)}

    def plan_of(self, caption: str, *, max_tick: int) -> Plan | None:
        """The plan, in at most so many ticks; None where the caption names nothing."""
        plan = self._parsed(caption)
        if plan is None:
            plan = read_caption(caption).plan
        if plan is None or plan.last <= max_tick:
            return plan
        return parse_plan(plan_reply(plan), max_tick=max_tick).plan

    def _parsed(self, caption: str) -> Plan | None:
        if self.parser is None:
            return None
        try:
            return Plan.from_json(self.parser(caption))
        except UserError:
            return None

    def _one(self, question: Question) -> Answer:
        caption = queried_sentence(question.prompt)
        if question.reply is PlanReply:
            plan = self.plan_of(caption, max_tick=MAX_TICK)
            if plan is None:
                return Answer("", error=f"the rules find nothing that happens in {shorten(caption)!r}")
            return Answer(plan_reply(plan))
        try:
            scenes = [graph_from_text(text) for text in queried_scenes(question.prompt)]
            earlier = [graph_from_text(text) for text in queried_previous(question.prompt)]
        except PlanError as error:
            return Answer("", error=f"the rules cannot read the scenes they are asked about: {error.what}")
        details = self._details(caption)
        previous = earlier[-1] if earlier else SceneGraph()
        additions = []
        for scene in scenes:
            addition = merge(_about(details, scene), _carried(previous, scene))
            additions.append(addition)
            previous = enrich(scene, addition)
        if question.reply is SceneReply:
            return Answer(scene_reply(additions[0] if additions else SceneGraph()).model_dump_json())
        return Answer(scenes_reply(additions))

    def _details(self, caption: str) -> SceneGraph:
        if self.details is None:
            return read_caption(caption).details
        return SceneGraph.from_json(self.details(caption))


def _name(function: Callable[..., Any] | None) -> str | None:
    function = getattr(function, "func", function)  # of a partial
    return None if function is None else f"{function.__module__}.{function.__qualname__}"


def _about(details: SceneGraph, scene: SceneGraph) -> SceneGraph:
    """What the caption says of the objects in a scene."""
    here = {identity(name) for name in scene.names}
    return SceneGraph.build(
        [entry for entry in details.objects if identity(entry.name) in here],
        (),
        [relation for relation in details.relations if identity(relation.subject) in here],
    )


def _carried(previous: SceneGraph, scene: SceneGraph) -> SceneGraph:
    """What the scene before says of the objects that are still there, with the marks of what has just ended."""
    ended = [action for action in previous.actions if action not in scene.actions]
    here = {identity(name): name for name in scene.names}
    objects = []
    for entry in previous.objects:
        if identity(entry.name) in here:
            fresh = [mark for action in ended for mark in marks_of(action, entry.name)]
            objects.append(SceneObject(here[identity(entry.name)], marked(entry.attributes, fresh)[:MAX_ATTRIBUTES]))
    return SceneGraph.build(objects)
