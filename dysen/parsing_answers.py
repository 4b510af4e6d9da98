"""Reads plans and graphs out of whatever a language model answers: json, tuples, prose around them, cut off or not.

Work is bounded for any text. The result is valid by construction, or a `PlanError` that shows the answer; every repair
is recorded in a fixed wording, so that a corpus can count them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from pydantic import ValidationError

from dysen.action_plan import MAX_EVENTS, MAX_TICK, Event, Plan, Triplet
from dysen.brackets import MAX_CHARACTERS, Group, Item, Text, groups, read_brackets
from dysen.fields import number_of, role, whole
from dysen.names import MAX_NAME, clean, identity, shorten
from dysen.replies import PlanReply, Reply, SceneReply, ScenesReply
from dysen.scene_graph import MAX_ATTRIBUTES, SceneGraph, SceneObject
from dysen.tuples import FoundEvent, FoundTriplet, Match, event_in, triplets_in, walk
from vdm.errors import PlanError

MAX_REPAIRS = 32
MAX_ADDITIONS = 48  # triplets and attributes of one scene
MAX_FOUND = 512
MAX_LINES = 400
WRAPPERS = 6  # brackets around a list of scenes
FENCE = re.compile(r"```[a-zA-Z]{0,12}\s?(.*?)```", re.DOTALL)
BULLET = re.compile(r"\s{0,16}(?:[-*•>]\s|e?\d{1,3}\s?[.):])\s{0,8}")
SECTION = re.compile(
    r"^[ \t\"'*#({\[-]{0,16}(?:(?:SG|G|scene|tick|graph)[ _#]{0,3})?(\d{1,3})(v|st|nd|rd|th)?"
    r"(?: {0,3}(?:SG|scene|tick|graph))?[\"'*]{0,2} {0,3}[:：]",
    re.IGNORECASE | re.MULTILINE,
)
NOTHING_TO_ADD = {"-", "none", "empty", "nothing", "no additions", "nothing to add"}

Answer = TypeVar("Answer", bound=Reply)


@dataclass(frozen=True)
class ParsedPlan:
    """A plan, and what was repaired to get it."""

    plan: Plan
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParsedGraphs:
    """One graph for each scene that was asked for, its triplets as relations, and what was repaired to get them."""

    graphs: tuple[SceneGraph, ...]
    repairs: tuple[str, ...] = ()


class Repairs(list[str]):
    """A list that forgets what is over its limit."""

    def note(self, *repairs: str) -> None:
        self.extend(repairs[: max(MAX_REPAIRS - len(self), 0)])


def parse_plan(text: str, *, max_tick: int = MAX_TICK) -> ParsedPlan:
    """The plan in an answer to step I. Times beyond `max_tick` are squeezed into it, in their order."""
    repairs = Repairs()
    reply = _strictly(text, PlanReply)
    if reply is None:
        found = _find(_cut(text, repairs), event_in, repairs)
    else:
        found = [FoundEvent(e.agent, e.predicate, e.target, float(e.start), float(e.end)) for e in reply.events]
    events = _events(found, min(max_tick, MAX_TICK), repairs)
    if not events:
        raise PlanError(
            "no event could be read in an answer",
            got=shorten(text) or "an empty answer",
            allowed="(agent, predicate, target, (0v, 1v)), ... or the json of the schema",
        )
    return ParsedPlan(Plan(events), tuple(repairs))


def parse_graph(text: str) -> ParsedGraphs:
    """The triplets and attributes in an answer about one scene, as one graph. It may say that there are none."""
    repairs = Repairs()
    reply = _strictly(text, SceneReply)
    found = _find(_cut(text, repairs), triplets_in, repairs) if reply is None else _replied(reply)
    if reply is None and not found and not _says_nothing(text):
        raise PlanError(
            "no triplet could be read in an answer",
            got=shorten(text) or "an empty answer",
            allowed="(subject, predicate, object), (object, attribute), ... or the json of the schema",
        )
    return ParsedGraphs((_graph(found, repairs),), tuple(repairs))


def parse_graphs(text: str, num_graphs: int) -> ParsedGraphs:
    """The graphs in an answer about all scenes. One the answer says nothing about is empty."""
    repairs = Repairs()
    reply = _strictly(text, ScenesReply)
    if reply is None:
        scenes = _scenes(_cut(text, repairs), num_graphs)
        if not any(scenes.values()) and not _says_nothing(SECTION.sub("", text[:MAX_CHARACTERS])):
            raise PlanError(
                f"no graph of {num_graphs} could be read in an answer",
                got=shorten(text) or "an empty answer",
                allowed='a line "0v: (subject, predicate, object), ..." for each, or the json of the schema',
            )
    else:
        scenes = {i: _replied(scene) for i, scene in enumerate(reply.scenes)}
    if any(i >= num_graphs for i in scenes):
        repairs.note("dropped a scene nobody asked for")
    if not scenes.keys() >= set(range(num_graphs)):
        repairs.note("left a missing scene empty")
    return ParsedGraphs(tuple(_graph(scenes.get(i, []), repairs) for i in range(num_graphs)), tuple(repairs))


def _strictly(text: str, model: type[Answer]) -> Answer | None:
    """The answer of a model that kept to the schema."""
    if text.lstrip()[:1] != "{" or len(text) > MAX_CHARACTERS:
        return None
    try:
        return model.model_validate_json(text)
    except (ValidationError, UnicodeEncodeError):  # lone surrogates
        return None


def _cut(text: str, repairs: Repairs) -> str:
    if len(text) > MAX_CHARACTERS:
        repairs.note("cut a long answer")
    return text[:MAX_CHARACTERS]


def _find(text: str, match: Match, repairs: Repairs) -> list:
    """What stands in a fence, else anywhere in brackets, else on lines of its own."""
    fenced = "\n".join(FENCE.findall(text)[:8])
    for part in filter(None, (fenced, text)):
        found = _flatten(walk(read_brackets(part), match))
        if found:
            return found
    found = []
    for line in text.splitlines()[:MAX_LINES]:
        if match is event_in or line.count("|") >= 2:
            fields = BULLET.sub("", line, count=1).strip().strip("|").replace("|", ",")
            found += _flatten(walk(read_brackets(f"({fields[: 8 * MAX_NAME]})"), match))
    if found:
        repairs.note("read lines without brackets")
    return found


def _flatten(matches: Iterable[list]) -> list:
    found: list = []
    for match in matches:
        found += match
        if len(found) >= MAX_FOUND:
            break
    return found


class Spellings:
    """Valid names, one spelling for each object of an answer."""

    def __init__(self, repairs: Repairs):
        self.known: dict[str, str] = {}
        self.repairs = repairs

    def plain(self, name: str | None) -> str | None:
        """The name in valid form, or None."""
        if not name:
            return None
        name = clean(name)
        if len(name) > MAX_NAME:
            self.repairs.note("cut a long name")
            head, _, _ = name[: MAX_NAME + 1].rpartition(" ")
            name = clean(head or name[:MAX_NAME])[:MAX_NAME].strip()
        return name or None

    def of(self, name: str | None) -> str | None:
        """The same for the name of an object, in the spelling that came first, without an article."""
        name = self.plain(name)
        if name is None:
            return None
        first, _, rest = name.partition(" ")
        if rest and first.casefold() in ("a", "an", "the"):
            name = rest
        return self.known.setdefault(identity(name), name)


def _events(found: list[FoundEvent], max_tick: int, repairs: Repairs) -> tuple[Event, ...]:
    """Valid events, each once."""
    spelling, rows = Spellings(repairs), []
    for raw in found:
        agent, predicate = spelling.of(raw.agent), spelling.plain(raw.predicate)
        if agent is None or predicate is None:
            repairs.note("dropped an event without agent or predicate")
            continue
        if raw.is_joined:
            repairs.note("joined the fields of a target")
        if raw.is_open:
            repairs.note("closed a bracket")
        start, end, changes = whole(raw.start, raw.end)
        repairs.note(*changes)
        rows.append((agent, predicate, spelling.of(raw.target), start, end))
    if len(rows) > MAX_EVENTS:
        repairs.note("dropped events over the limit")
        rows = rows[:MAX_EVENTS]
    place = _squeezed({tick for row in rows for tick in row[3:]}, max_tick)
    if any(tick != place[tick] for tick in place):
        repairs.note("squeezed the times")
    events = [Event(a, p, t, place[start], max(place[end], place[start] + 1)) for a, p, t, start, end in rows]
    unique = tuple(dict.fromkeys(events))
    if len(unique) < len(events):
        repairs.note("dropped a repeated event")
    return unique


def _squeezed(ticks: set[int], max_tick: int) -> dict[int, int]:
    """Where each tick goes so that none lies beyond `max_tick`: to its rank, or nearer still; the order stays."""
    if max(ticks, default=0) <= max_tick:
        return {tick: tick for tick in ticks}
    last = len(ticks) - 1
    ranked = {tick: rank for rank, tick in enumerate(sorted(ticks))}
    if last <= max_tick:
        return ranked
    return {tick: min(rank * max_tick // last, max_tick - (rank < last)) for tick, rank in ranked.items()}


def _graph(found: list[FoundTriplet], repairs: Repairs) -> SceneGraph:
    """A valid graph of at most MAX_ADDITIONS triplets and attributes."""
    spelling, relations, attributes = Spellings(repairs), {}, {}
    for raw in found:
        subject, predicate, other = spelling.of(raw.subject), spelling.plain(raw.predicate), None
        if predicate is not None:
            other = spelling.of(raw.object)
        attribute = spelling.plain(raw.object) if raw.predicate is None else None
        if subject is None or (other is None and attribute is None):
            repairs.note("dropped a triplet that lacks a part")
            continue
        if len(relations) + sum(map(len, attributes.values())) >= MAX_ADDITIONS:
            repairs.note("dropped triplets over the limit")
            break
        if raw.is_joined:
            repairs.note("joined the fields of a target")
        if other is not None:
            relations[Triplet(subject, predicate, other)] = None
        elif len(attributes.setdefault(subject, {})) < MAX_ATTRIBUTES:
            attributes[subject][attribute] = None
    objects = [SceneObject(name, tuple(given)) for name, given in attributes.items()]
    mentioned = SceneGraph.build(relations=relations).objects
    return SceneGraph.build([*mentioned, *objects], relations=relations)


def _replied(reply: SceneReply) -> list[FoundTriplet]:
    """A reply in the form of the tolerant reader."""
    relations = [FoundTriplet(t.subject, t.predicate, t.object) for t in reply.triplets]
    return relations + [FoundTriplet(a.object, None, a.attribute) for a in reply.attributes]


def _says_nothing(text: str) -> bool:
    """The answer is that there is nothing to add: in words, a dash, or as brackets with nothing in them."""
    if len(text) > 8 * MAX_NAME:
        return False
    text = "\n".join(FENCE.findall(text)) or text
    said = {clean(line).strip("().[] ").casefold() for line in text.splitlines()} - {""}
    if said and said <= NOTHING_TO_ADD:
        return True
    root = read_brackets(text)
    inside = [root, *(group for group, _ in groups(root))]
    return len(inside) > 1 and not any(isinstance(p, Text) for group in inside for i in group.items for p in i.parts)


def _scenes(text: str, num_graphs: int) -> dict[int, list[FoundTriplet]]:
    """What is said about each scene: in the entries of a list, or under labels at the start of lines."""
    labels = list(SECTION.finditer(text))[:MAX_LINES]
    if len(labels) > 1:
        found = _labelled(text, labels)
        if any(found.values()):
            return found
    root = read_brackets(text)
    for group in [root, *(group for group, _ in islice(groups(root), WRAPPERS))]:
        entries = _entries(group)
        if len(entries) >= min(num_graphs, 2) and any(entries.values()):
            return entries
    if num_graphs == 1:
        return {0: _flatten(walk(root, triplets_in))}
    return _labelled(text, labels)


def _labelled(text: str, labels: list[re.Match[str]]) -> dict[int, list[FoundTriplet]]:
    """ "1st SG:", "2nd SG:" count from 1; "0v:", "1v:" and whatever has a 0 count from 0."""
    first = 0 if any(label[1] == "0" or label[2] in ("v", "V") for label in labels) else 1
    ends = [label.start() for label in labels[1:]] + [len(text)]
    found: dict[int, list[FoundTriplet]] = {}
    for label, end in zip(labels, ends, strict=False):
        place = int(label[1]) - first
        if place >= 0 and not found.get(place):
            found[place] = _flatten(walk(read_brackets(text[label.end() : end]), triplets_in))
    return found


def _entries(group: Group) -> dict[int, list[FoundTriplet]]:
    """The scenes that a group lists, by their number where they have one."""
    found: dict[int, list[FoundTriplet]] = {}
    for item in group.items:
        match item.parts:
            case [Group() as inner] if item.key is None or item.key.strip().rstrip("v").isdecimal():
                if triplets_in(inner) is not None:
                    return {}
                numbers = [number_of(entry) for entry in inner.items if role(entry.key) == "tick"]
                if item.key is not None:
                    numbers = [number_of(Item([Text(item.key)]))]
                place = int(numbers[0]) if numbers and numbers[0] is not None else len(found)
                found[place] = _flatten(walk(Group("", [item]), triplets_in))
    return found
