"""Plans and graphs as compact text, the paper's own tuples, and back again without loss.

A plan is "(lady, drinking, coffee, (1v, 2v)), ..."; a graph is "*(lady, drinking, coffee), (cup, in front of, lady),
(cup, red)", where a star marks what is planned and a pair is an attribute; a dynamic graph has one line "2v: ..." a tick.
"-" stands for no target and for an empty graph. Names that hold commas, quotes or brackets are written in double quotes.
"""

from __future__ import annotations

import json
import re

from dysen.action_plan import Event, Plan, Triplet
from dysen.brackets import CLOSERS, COLONS, COMMAS, OPENERS, QUOTES, Group, Item, Text, read_brackets
from dysen.names import shorten
from dysen.scene_graph import DynamicSceneGraph, SceneGraph, SceneObject
from vdm.errors import PlanError

NOTHING = "-"
MARKED = re.compile(
    "[" + re.escape("".join(CLOSERS) + "".join(OPENERS) + "".join(QUOTES) + COMMAS + COLONS + "\\*") + "]"
)
LINE = re.compile(r"\s*(\d{1,3})v:(.*)")
TICK = re.compile(r"(\d{1,3})v")
NUMERIC = re.compile(r"[\d.+-]+v?")


def plan_to_text(plan: Plan) -> str:
    """One line."""
    return ", ".join(f"({_names(e.agent, e.predicate, e.target)}, ({e.start}v, {e.end}v))" for e in plan.events)


def plan_from_text(text: str) -> Plan:
    """The inverse of `plan_to_text`. Exact: see `parsing_answers` for text that a language model wrote."""
    events = []
    for group, is_planned in _tuples(text):
        match [_field(item) for item in group.items]:
            case [str(agent), str(predicate), target, (start, end)] if not is_planned:
                events.append(Event(agent, predicate, target, start, end))
            case _:
                raise _misread(text, "(agent, predicate, target, (0v, 1v))")
    return Plan(tuple(events))


def graph_to_text(graph: SceneGraph) -> str:
    """One line."""
    tuples = [f"*({_names(t.subject, t.predicate, t.object)})" for t in graph.actions]
    tuples += [f"({_names(t.subject, t.predicate, t.object)})" for t in graph.relations]
    tuples += [f"({_names(entry.name, a)})" for entry in graph.objects for a in entry.attributes]
    in_order = SceneGraph.build((), graph.actions, graph.relations).names
    if graph.names[: len(in_order)] != in_order or any(not e.attributes for e in graph.objects[len(in_order) :]):
        tuples = [f"({_names(name)})" for name in graph.names] + tuples
    return ", ".join(tuples) or NOTHING


def graph_from_text(text: str) -> SceneGraph:
    """The inverse of `graph_to_text`. Exact, as `plan_from_text` is."""
    if text.strip() == NOTHING:
        return SceneGraph()
    objects, actions, relations = [], [], []
    for group, is_planned in _tuples(text):
        match [_field(item) for item in group.items]:
            case [str(subject), str(predicate), target] if is_planned:
                actions.append(Triplet(subject, predicate, target))
            case [str(subject), str(predicate), str(target)]:
                relations.append(Triplet(subject, predicate, target))
            case [str(name), str(attribute)] if not is_planned:
                objects.append(SceneObject(name, (attribute,)))
            case [str(name)] if not is_planned:
                objects.append(SceneObject(name))
            case _:
                raise _misread(text, "*(agent, predicate, target), (subject, predicate, object), (object, attribute)")
    listed = [entry for entry in objects if not entry.attributes]
    mentioned = () if listed else SceneGraph.build((), actions, relations).objects
    return SceneGraph.build([*listed, *mentioned, *objects], actions, relations)


def dsg_to_text(dsg: DynamicSceneGraph) -> str:
    """One line a tick."""
    return "\n".join(f"{tick}v: {graph_to_text(graph)}" for tick, graph in enumerate(dsg))


def dsg_from_text(text: str) -> DynamicSceneGraph:
    """The inverse of `dsg_to_text`."""
    found = []
    for line in text.strip().splitlines():
        match = LINE.fullmatch(line)
        if match is None or int(match[1]) != len(found):
            raise _misread(line, f"{len(found)}v: ...")
        found.append(graph_from_text(match[2]))
    return DynamicSceneGraph(tuple(found))


def _names(*names: str | None) -> str:
    return ", ".join(NOTHING if name is None else quoted(name) for name in names)


def quoted(name: str) -> str:
    """The name, in double quotes where it would be read as something else."""
    if name == NOTHING or NUMERIC.fullmatch(name) or MARKED.search(name):
        return json.dumps(name, ensure_ascii=False)
    return name


def _tuples(text: str) -> list[tuple[Group, bool]]:
    """The closed groups of a text, and whether a star stands before them. Nothing else may stand there."""
    found: list[tuple[Group, bool]] = []
    for item in read_brackets(text).items:
        match item.parts:
            case [Group(is_closed=True) as group]:
                found.append((group, False))
            case [Text(value="*"), Group(is_closed=True) as group]:
                found.append((group, True))
            case _:
                raise _misread(text, "tuples in round brackets, with commas between them")
    return found


def _field(item: Item) -> str | tuple[int, int] | None:
    """A name, nothing, or an interval; anything else is an empty list, which matches no form."""
    match item.parts:
        case [Text(value=value, is_quoted=is_quoted)]:
            return None if value == NOTHING and not is_quoted else value
        case [Group(items=[Item(parts=[Text(value=start)]), Item(parts=[Text(value=end)])])]:
            ticks = TICK.fullmatch(start), TICK.fullmatch(end)
            if all(ticks):
                return int(ticks[0][1]), int(ticks[1][1])
    return ()


def _misread(text: str, allowed: str) -> PlanError:
    return PlanError("not the text form of a plan or graph", got=shorten(text), allowed=allowed)
