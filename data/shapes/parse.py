"""The inverse of the grammar: what a caption says happens to whom, and in which order.

It shows that captions are unambiguous (it follows every reading, and refuses a text with two meanings), and it is the
baseline planner: a caption becomes an action plan with the shortest timeline that satisfies all its claims.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from data.shapes.claims import Claim, Consequences, between_sentences, within_sentence
from data.shapes.phrases import Pattern
from data.shapes.syntax import Clause, Name, Reading, read_introduction, read_names, read_sentence, words_of
from data.shapes.words import RETOLD, SUBJECTLESS
from vdm.errors import DataError

MAX_READINGS = 64


@dataclass(frozen=True)
class ParsedThing:
    """What a caption says of a thing. None: not said."""

    colour: str
    shape: str
    size: str | None

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class ParsedEvent:
    agent: int
    action: str
    target: int | None


@dataclass(frozen=True)
class ParsedPlan:
    """Things in the order of their first mention, events in text order, and what is claimed of their times."""

    things: tuple[ParsedThing, ...]
    events: tuple[ParsedEvent, ...]
    claims: tuple[Claim, ...]
    background: tuple[str, str] | None  # shade, texture

    @cached_property
    def consequences(self) -> Consequences:
        return Consequences(len(self.events), self.claims)

    def order(self, i: int, j: int) -> str | None:
        """Order of two events: "before", "after" or "overlap", or None where the caption leaves it open."""
        return self.consequences.order(i, j)

    def plan(self) -> list[list[Any]]:
        """An action plan in the form of `Script.plan`, with times in the fewest ticks that satisfy all claims."""
        names = [thing.name for thing in self.things]
        rows = [
            [names[e.agent], e.action, None if e.target is None else names[e.target], list(times)]
            for e, times in zip(self.events, self.consequences.timeline(), strict=True)
        ]
        return sorted(rows, key=lambda row: row[3])


def parse(caption: str) -> ParsedPlan:
    """Understand a caption of the grammar. Anything else, or a text with two meanings, is a DataError."""
    sentences = [words_of(sentence) for sentence in caption.split(".") if sentence.strip()]
    introduction = read_introduction(sentences[0]) if sentences else None
    told = sentences[1:] if introduction else sentences
    readings = [read_sentence(words) for words in told]
    for words, found in zip(told, readings, strict=True):
        if not found:
            raise DataError("a sentence is not in the grammar of shapes captions", got=" ".join(words))
    if not readings:
        raise DataError("a caption tells no event", got=caption)
    meanings: dict[ParsedPlan, None] = {}
    for choice in itertools.islice(itertools.product(*readings), MAX_READINGS):
        try:
            meanings[_Story(introduction).understand(choice)] = None
        except _Unclear:
            continue
    if len(meanings) == 1:
        return next(iter(meanings))
    what = "a caption has more than one meaning" if meanings else "a caption contradicts itself or names nobody"
    raise DataError(what, got=caption)


def plan_of(caption: str) -> list[list[Any]]:
    """The baseline planner as one function."""
    return parse(caption).plan()


def details_of(caption: str) -> dict[str, Any]:
    """A scene graph of the things with what the caption says of their looks, in words of the truth. Any text will do."""
    looks: dict[str, dict[str, None]] = {}
    for name in read_names(words_of(caption)):
        if name.colour is not None:
            said = [look for look in (name.colour, name.size, name.shape) if look is not None]
            looks.setdefault(f"{name.colour} {name.shape}", {}).update(dict.fromkeys(said))
    objects = [{"name": name, "attributes": list(said)} for name, said in looks.items()]
    return {"objects": objects, "actions": [], "relations": []}


class _Unclear(Exception):
    """This reading makes no sense here; another may."""


@dataclass
class _Told:
    """An event that is being understood."""

    agent: int | None
    action: str | None
    target: int | None


@dataclass
class _Group:
    """Sentences that are placed in time together."""

    kind: str | None
    events: list[int] = field(default_factory=list)


class _Story:
    """What a reader knows after each clause; mirrors `data.shapes.speaker`."""

    def __init__(self, introduction: tuple[list[Name], tuple[str, str] | None] | None):
        names, self._background = introduction or ([], None)
        self._things: list[Name] = []
        self._here: set[int] = set()
        self._before: set[int] = set()
        self._told: list[_Told] = []
        self._waiting: list[_Told] = []  # for whom an "it" means, said before its name
        self._claims: list[Claim] = []
        for name in names:
            self._meant(name)

    def understand(self, sentences: tuple[tuple[str | None, Reading], ...]) -> ParsedPlan:
        groups: list[_Group] = []
        for kind, reading in sentences:
            self._before, self._here = self._here, set()
            count = len(self._told)
            self._sentence(reading)
            if self._waiting:
                raise _Unclear
            added = range(count, len(self._told))
            if kind == "meanwhile" and groups:
                self._claims += [Claim("overlap", i, j) for i in groups[-1].events for j in added]
            elif kind == "meanwhile" or (kind and any(slot.form in RETOLD for slot in reading.pattern.slots)):
                raise _Unclear
            elif not any(slot.form in RETOLD for slot in reading.pattern.slots):
                groups.append(_Group(kind))
            groups[-1].events += added
        for claim in between_sentences([group.kind for group in groups]):
            first, second = groups[claim.first].events, groups[claim.second].events
            self._claims += [Claim(claim.relation, i, j) for i in first for j in second]
        if not Consequences(len(self._told), self._claims).is_consistent():
            raise _Unclear
        return ParsedPlan(
            tuple(ParsedThing(name.colour, name.shape, name.size) for name in self._things),
            tuple(ParsedEvent(told.agent, told.action, told.target) for told in self._told),
            tuple(sorted(set(self._claims))),
            self._background,
        )

    def _sentence(self, reading: Reading) -> list[int]:
        """Understand a pattern; the events of all its slots, in text order."""
        events: dict[str, tuple[int, ...]] = {}
        units: dict[str, Pattern] = {}
        for slot, filler in reading.fillers:
            if isinstance(filler, Reading):
                events[slot.letter] = tuple(self._sentence(filler))
                units[slot.letter] = filler.pattern
            else:
                events[slot.letter] = (self._clause(filler),)
        numbers = [number for inner in events.values() for number in inner]
        told = [self._told[number] for number in numbers]
        if reading.pattern.one_agent:
            agent = next((event.agent for event in told if event.agent is not None), None)
            for event in told:
                event.agent = agent
        if reading.pattern.one_action:
            for event in told:
                event.action, event.target = told[-1].action, told[-1].target
        # A unit of two says how they relate itself; what it is part of says the rest.
        claimed = within_sentence(reading.pattern, events, {})
        self._claims += claimed
        return numbers

    def _clause(self, clause: Clause) -> int:
        agent = None
        if clause.subject is not None:
            agent = self._meant(clause.subject)
        target = self._meant(clause.target, beside=agent) if clause.target is not None else None
        if clause.form in RETOLD:
            told = _Told(agent, clause.action, target)
            if told not in self._told:
                raise _Unclear
            return len(self._told) - 1 - self._told[::-1].index(told)
        told = _Told(agent, clause.action, target)
        self._told.append(told)
        if agent is None and clause.form not in SUBJECTLESS:
            self._waiting.append(told)
        elif agent is not None:
            for other in self._waiting:
                other.agent = agent
            self._waiting.clear()
        return len(self._told) - 1

    def _meant(self, name: Name, beside: int | None = None) -> int | None:
        """Whom a name means. None: somebody who is named later."""
        if name.is_pronoun:
            others = (self._here - {beside}) or self._before
            if not self._things:
                return None
            if len(others) != 1 or others == {beside}:
                raise _Unclear
            thing = next(iter(others))
        else:
            fitting = [] if name.is_indefinite else [i for i, known in enumerate(self._things) if _agree(known, name)]
            if len(fitting) > 1 or (not fitting and (name.colour is None or name.shape is None)):
                raise _Unclear
            if fitting:
                thing = fitting[0]
                known = self._things[thing]
                self._things[thing] = Name(known.colour, known.shape, known.size or name.size)
            else:
                thing = len(self._things)
                self._things.append(Name(name.colour, name.shape, name.size))
        self._here.add(thing)
        return thing


def _agree(known: Name, name: Name) -> bool:
    pairs = ((known.colour, name.colour), (known.shape, name.shape), (known.size, name.size))
    return all(a is None or b is None or a == b for a, b in pairs)
