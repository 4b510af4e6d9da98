"""`parser=vlm`: frames as pictures to a vision model behind an OpenAI-compatible server, all of a clip in one question.

The answer has things with boxes and relations for each picture. One that is not the json of the schema is read as answers
of language models are, as tuples or foreign json; it then has no boxes.
"""

from __future__ import annotations

import base64
import io
import logging
import re
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field, ValidationError

from dysen.imagination import Question
from dysen.llm.base import LanguageModel
from dysen.llm.server import OpenAIModel
from dysen.names import shorten
from dysen.parsing.frames import Box, FrameGraph, Link, Seen, held
from dysen.parsing_answers import parse_graphs
from dysen.replies import Name, Reply, TripletReply
from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.errors import PlanError

log = logging.getLogger(__name__)
UNITS = 1000  # of a box, whatever the size of a picture
_JSON = re.compile(r"\{.*\}", flags=re.S)

Side = Annotated[int, Field(ge=0, le=UNITS)]


class ThingReply(Reply):
    name: Name
    attributes: Annotated[list[Name], Field(max_length=8)]
    box: Annotated[list[Side], Field(min_length=4, max_length=4)]


class PictureReply(Reply):
    objects: Annotated[list[ThingReply], Field(max_length=24)]
    actions: Annotated[list[TripletReply], Field(max_length=24)]
    relations: Annotated[list[TripletReply], Field(max_length=48)]


class PicturesReply(Reply):
    """One entry for each picture, in their order."""

    pictures: Annotated[list[PictureReply], Field(min_length=1, max_length=64)]


PROMPT = """These {count} pictures are frames of one video, in order of time.{caption}
Say for each picture which things are in it, where, and what they do.
- One thing has one name in all pictures. Things of one kind are numbered: "person #1", "person #2".
- A box is [left, top, right, bottom] from 0 to {units}, counted from the upper left corner of the picture.
- Attributes are colours, sizes, materials, states.
- Actions and relations join two things: [subject, predicate, object]. Actions are what somebody does to something.
Answer with json only: {{"pictures": [{{"objects": [{{"name": "dog", "attributes": ["brown"], "box": [100, 200, 300, 400]}}],
"actions": [{{"subject": "dog", "predicate": "chasing", "object": "ball"}}], "relations": []}}, ...]}}"""
AGAIN = "\nYour last answer could not be read: {problem}"


@dataclass(frozen=True)
class PictureQuestion(Question):
    """A question about pictures, each an address with its data in it."""

    pictures: tuple[str, ...] = ()


class VisionModel(OpenAIModel):
    """The client of `llm=openai`, whose questions may have pictures."""

    def _request(self, question: Question, level: int) -> dict[str, Any]:
        body = super()._request(question, level)
        if isinstance(question, PictureQuestion):
            pictures = [{"type": "image_url", "image_url": {"url": url}} for url in question.pictures]
            body["messages"] = [{"role": "user", "content": [{"type": "text", "text": question.prompt}, *pictures]}]
        return body


class VisionParser:
    """Asks about some frames of a clip; the frames between them take the answer for the nearest one.

    Args:
        llm: who answers.
        frames: pictures of a clip, evenly spread, 64 at most.
        size: longer side of a picture that is sent; null: as it is.
        retries: further tries of an answer that cannot be read.
        tell_caption: the caption goes along.
    """

    name, needs_video = "vlm", True

    def __init__(
        self,
        *,
        llm: LanguageModel,
        frames: PositiveInt,
        size: PositiveInt | None,
        retries: NonNegativeInt,
        tell_caption: bool,
    ):
        self.llm, self.frames, self.size, self.retries, self.tell_caption = llm, frames, size, retries, tell_caption

    def parse(
        self, video: np.ndarray | None, caption: str, fps: float, extras: dict[str, Any]
    ) -> list[FrameGraph] | None:
        """None where the model gave no answer that can be read."""
        assert video is not None, "this parser reads pixels"
        count = min(self.frames, 64, len(video))
        chosen = sorted({round((i + 0.5) * len(video) / count - 0.5) for i in range(count)})
        said = f'\nIts caption: "{caption}"' if self.tell_caption and caption else ""
        prompt = PROMPT.format(count=len(chosen), caption=said, units=UNITS)
        pictures = tuple(_address(video[at], self.size) for at in chosen)
        problem = ""
        for _ in range(self.retries + 1):
            wording = prompt + (AGAIN.format(problem=problem) if problem else "")
            answer = self.llm.answer([PictureQuestion(wording, PicturesReply, pictures)])[0]
            if answer.error is not None:
                problem = answer.error
                break
            try:
                graphs = read_answer(answer.text, len(chosen), video.shape[1:3])
                return held(dict(zip(chosen, graphs, strict=True)), len(video))
            except PlanError as error:
                problem = shorten(str(error))
        log.warning("%s: the vision model gave no graphs: %s", extras.get("key", "clip"), problem)
        return None

    def fingerprint(self) -> dict[str, Any]:
        return {"parser": self.name, "llm": self.llm.fingerprint(), "frames": self.frames, "size": self.size,
                "retries": self.retries, "tell_caption": self.tell_caption}  # fmt: skip


def read_answer(text: str, count: int, size: tuple[int, int]) -> list[FrameGraph]:
    """The graphs of `count` pictures of `size` (height, width). PlanError where nothing can be read."""
    found = _JSON.search(text[:1_000_000])
    try:
        reply = PicturesReply.model_validate_json(found[0] if found else "")
    except ValidationError:
        graphs = parse_graphs(text, count)
        return [
            FrameGraph(
                tuple(Seen(entry.name, entry.name, None, attributes=entry.attributes) for entry in graph.objects),
                tuple(Link(t.subject, t.predicate, t.object) for t in graph.triplets),
            )
            for graph in graphs.graphs
        ]
    pictures = [_graph(picture, size) for picture in reply.pictures[:count]]
    return pictures + [FrameGraph()] * (count - len(pictures))


def _graph(picture: PictureReply, size: tuple[int, int]) -> FrameGraph:
    objects = {
        thing.name: Seen(thing.name, thing.name, _box(thing.box, size), attributes=tuple(thing.attributes))
        for thing in picture.objects
    }
    links = [Link(t.subject, t.predicate, t.object, is_action=True) for t in picture.actions]
    links += [Link(t.subject, t.predicate, t.object) for t in picture.relations]
    for link in links:  # who is spoken of is there
        for name in (link.subject, link.object):
            objects.setdefault(name, Seen(name, name, None))
    return FrameGraph(tuple(objects.values()), tuple(dict.fromkeys(links)))


def _box(box: list[int], size: tuple[int, int]) -> Box | None:
    left, right = sorted((box[0], box[2]))
    top, bottom = sorted((box[1], box[3]))
    if left == right or top == bottom:
        return None
    return left * size[1] / UNITS, top * size[0] / UNITS, right * size[1] / UNITS, bottom * size[0] / UNITS


def _address(frame: np.ndarray, size: int | None) -> str:
    picture = Image.fromarray(frame)
    if size is not None and max(picture.size) > size:
        scale = size / max(picture.size)
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
