"""The answers a language model is asked for, as pydantic models: their json schemas constrain decoding and servers.

Every text and list is bounded, so constrained decoding ends. What a schema cannot say, such as start < end, is put right
by `parsing_answers`, which also reads answers that were not constrained.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dysen.action_plan import Plan
from dysen.scene_graph import SceneGraph

MAX_REPLY_NAME = 60
MAX_REPLY_TICK = 32

Name = Annotated[str, Field(min_length=1, max_length=MAX_REPLY_NAME)]
Tick = Annotated[int, Field(ge=0, le=MAX_REPLY_TICK)]


class Reply(BaseModel):
    """No key may be added and none left out: servers with a strict mode ask for both."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EventReply(Reply):
    agent: Name
    predicate: Name
    target: Name | None
    start: Tick
    end: Tick


class PlanReply(Reply):
    """Step I."""

    events: Annotated[list[EventReply], Field(min_length=1, max_length=24)]


class TripletReply(Reply):
    subject: Name
    predicate: Name
    object: Name


class AttributeReply(Reply):
    object: Name
    attribute: Name


class SceneReply(Reply):
    """Step III for one scene: what is to be added to it."""

    triplets: Annotated[list[TripletReply], Field(max_length=24)]
    attributes: Annotated[list[AttributeReply], Field(max_length=24)]


class ScenesReply(Reply):
    """Step III for all scenes in order: the polish, or all of the imagination in one call."""

    scenes: Annotated[list[SceneReply], Field(min_length=1, max_length=MAX_REPLY_TICK + 1)]


def response_format(model: type[Reply]) -> dict[str, Any]:
    """The `response_format` of a chat request to an OpenAI-compatible server."""
    schema = {"name": model.__name__, "strict": True, "schema": model.model_json_schema()}
    return {"type": "json_schema", "json_schema": schema}


def plan_reply(plan: Plan) -> str:
    """The answer that a demonstration shows for a plan."""
    events = [EventReply.model_construct(**_fields(event)) for event in plan.events]
    return PlanReply.model_construct(events=events).model_dump_json()


def _fields(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name) for name in EventReply.model_fields}


def scene_reply(addition: SceneGraph) -> SceneReply:
    """The answer that a demonstration shows for what was added to a scene."""
    return SceneReply.model_construct(
        triplets=[
            TripletReply.model_construct(subject=t.subject, predicate=t.predicate, object=t.object)
            for t in addition.triplets
            if t.object is not None
        ],
        attributes=[
            AttributeReply.model_construct(object=entry.name, attribute=attribute)
            for entry in addition.objects
            for attribute in entry.attributes
        ],
    )


def scenes_reply(additions: list[SceneGraph]) -> str:
    """The same for all scenes."""
    return ScenesReply.model_construct(scenes=[scene_reply(addition) for addition in additions]).model_dump_json()
