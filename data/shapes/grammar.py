"""Captions whose text order need not be the time order.

A script is cut into stages, the maximal runs of events that overlap in time; stages follow one another. One to three
simple stages make a sentence, in an order that the pattern chooses; a stage with more than two events makes its own.
Sentences come in any order that their opening words ("Before that,", "At the end,") make clear. What is stated is
true, and it settles the order of every pair of events; `data.shapes.parse` is the proof.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.shapes.claims import Claim
from data.shapes.composing import Composer
from data.shapes.script import Script, Thing, precedes
from data.shapes.speaker import BASE, CLOSE, OPEN, Speaker
from data.shapes.stages import stages
from data.shapes.timeline import Chances

ATTEMPTS = 12  # for a caption with the asked text order
TRIES = 20  # for each distinct caption
INTRODUCED = 0.2  # share of captions that begin with who is there, where it is not needed


@dataclass(frozen=True)
class Mention:
    """The words text[start:end] speak of a thing."""

    thing: int
    start: int
    end: int


@dataclass(frozen=True)
class Caption:
    text: str
    mentions: tuple[Mention, ...]
    events_in_text_order: tuple[int, ...]  # positions in script.events
    claims: tuple[Claim, ...]  # about positions in script.events
    reordered: bool  # an event is told before one that was over when it began

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Scene:
    """A stage of a clip: the ticks [start, end) and the events in them, which overlap no others."""

    start: int
    end: int
    events: tuple[int, ...]


REORDERED = 0.5  # share of captions, unless somebody asks for another


def captions(script: Script, seed: int, count: int, reordered_share: float = REORDERED) -> tuple[str, ...]:
    """The texts of `tell`."""
    return tuple(caption.text for caption in tell(script, seed, count, reordered_share))


def tell(script: Script, seed: int, count: int, reordered_share: float = REORDERED) -> tuple[Caption, ...]:
    """Distinct paraphrases: `count` of them, or fewer if the script cannot be told in so many ways.

    Where there are events to reorder, `reordered_share` of any number of captions has another text order than time
    order, up to rounding. The same (script, seed) always gives the same captions, and more of them begin with fewer.
    """
    offset = float(np.random.default_rng([seed, script.seed]).random())
    found: dict[str, Caption] = {}
    for number in range(TRIES * count):
        turn = len(found) + offset
        caption = describe(script, seed, number, int((turn + 1) * reordered_share) > int(turn * reordered_share))
        found.setdefault(caption.text, caption)
        if len(found) == count:
            break
    return tuple(found.values())


def describe(script: Script, seed: int, number: int = 0, reordered: bool | None = None) -> Caption:
    """Paraphrase `number`. `reordered` asks for a text order; it is met where the script allows."""
    chances = Chances(np.random.default_rng([seed, script.seed, number]))
    if reordered is None:
        reordered = chances.uniform() < 0.5
    for _ in range(ATTEMPTS):
        caption, is_fixed = _caption(script, chances, reordered)
        if caption.reordered == reordered or is_fixed:
            break
    return caption


def text_order(caption: Caption) -> str:
    """Text order against time order: "same", "different", or "free" where no event is over before another begins."""
    if caption.reordered:
        return "different"
    return "same" if any(claim.relation in ("before", "meets") for claim in caption.claims) else "free"


def scenes(script: Script) -> list[Scene]:
    """The script as consecutive scenes, one for each stage."""
    events = script.events
    return [
        Scene(min(events[i].start for i in stage), max(events[i].end for i in stage), tuple(stage))
        for stage in stages(events)
    ]


def scene_captions(script: Script, seed: int = 0) -> list[str]:
    """One caption for each of `scenes(script)`; each can be read without the others."""
    found = []
    for number, scene in enumerate(scenes(script)):
        part = dataclasses.replace(script, events=tuple(script.events[i] for i in scene.events))
        chances = Chances(np.random.default_rng([seed, script.seed, number, 1]))
        found.append(_caption(part, chances, reordered=False, introduced=False)[0].text)
    return found


def label(thing: Thing) -> str:
    """Shortest full name: "red square"."""
    return f"{thing.colour} {thing.shape}"


def _caption(script: Script, chances: Chances, reordered: bool, introduced: bool | None = None) -> tuple[Caption, bool]:
    speaker = Speaker(script, chances)
    composer = Composer(script.events, speaker, chances, reordered)
    idle = set(range(len(script.things))) - {i for e in script.events for i in (e.agent, e.target)}
    if introduced is None:
        introduced = bool(idle) or chances.uniform() < INTRODUCED
    sentences = [speaker.introduce()] if introduced else []
    sentences += composer.tell()
    text, mentions = _written(sentences)
    told = speaker.told
    events = [script.events[i] for i in told]
    turned = any(precedes(b, a) for i, a in enumerate(events) for b in events[i + 1 :])
    return Caption(text, mentions, tuple(told), tuple(composer.claims), turned), composer.is_fixed


def _written(sentences: Sequence[str]) -> tuple[str, tuple[Mention, ...]]:
    """Capital letters and full stops; marked mentions become positions."""
    text, mentions, thing, start = "", [], 0, 0
    for sentence in sentences:
        first = 2 if sentence[0] == OPEN else 0
        sentence = f"{sentence[:first]}{sentence[first].upper()}{sentence[first + 1 :]}."
        text += " " if text else ""
        for piece in _MARKS.split(sentence):
            if piece == CLOSE:
                mentions.append(Mention(thing, start, len(text)))
            elif piece.startswith(OPEN):
                thing, start = ord(piece[1]) - BASE, len(text)
            else:
                text += piece
    return text, tuple(mentions)


_MARKS = re.compile(f"({OPEN}.|{CLOSE})")
