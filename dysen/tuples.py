"""Finds events and triplets in the bracket tree of an answer: positional tuples and lists, or objects with keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dysen.brackets import Group, Item, Text
from dysen.fields import is_plain, name_of, number_of, role, span_of

EVENT_NUMBER = re.compile(r"[eE#]?\d{1,3}[.:)]?")
# Lists of bare names under these keys are lists, not triplets.
LISTS = {"objects", "nodes", "entities", "attributes", "properties", "labels", "names"}
IS = {
    "is",
    "are",
    "be",
    "is a",
    "looks",
    "has attribute",
    "has color",
    "has colour",
    "attribute",
    "colored",
    "coloured",
}
IN = {"in", "of", "of color", "of colour", "in color", "in colour"}
COLOURS = {
    *("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "black", "white", "grey", "gray", "brown"),
    *("beige", "gold", "golden", "silver", "turquoise", "violet", "magenta", "navy", "maroon", "teal", "tan"),
    *("dark", "light", "bright", "pale", "colorful", "colourful"),
}


@dataclass
class FoundEvent:
    """An event as it was written: names may be missing or long, times may be any numbers."""

    agent: str | None
    predicate: str | None
    target: str | None
    start: float
    end: float
    is_joined: bool = False  # more fields than there are roles
    is_open: bool = False  # a bracket was never closed


@dataclass
class FoundTriplet:
    """A relation, or an attribute when `predicate` is None, or an object alone when both others are None."""

    subject: str | None
    predicate: str | None
    object: str | None
    is_joined: bool = False


Match = Callable[[Group, str | None], tuple[list, list[Item]] | None]


def walk(group: Group, match: Match) -> Iterator[list]:
    """What `match` finds, outer groups first; it also says which items it did not use, and those are searched too."""
    for item in group.items:
        for part in item.parts:
            if isinstance(part, Group):
                found = match(part, item.key)
                if found is None:
                    yield from walk(part, match)
                else:
                    yield found[0]
                    yield from walk(Group("", found[1]), match)


def event_in(group: Group, key: str | None = None) -> tuple[list[FoundEvent], list[Item]] | None:
    """The event a group holds, and the items after it."""
    del key
    fields = _fields(group)
    keyed = {role(item.key): item for item in reversed(fields) if item.key is not None}
    agent = keyed.get("agent") or keyed.get("name")
    if agent and "predicate" in keyed:
        time = _keyed_time(keyed, group)
        named = [item for item in (agent, keyed["predicate"], keyed.get("target")) if item is not None]
        if time is None or not all(is_plain(item) or not item.parts for item in named):
            return None
        target = name_of(keyed["target"]) if "target" in keyed else None
        return [FoundEvent(name_of(agent), name_of(keyed["predicate"]), target, *time, is_open=not group.is_closed)], []
    return _positional_event(group, fields)


def _positional_event(group: Group, fields: list[Item]) -> tuple[list[FoundEvent], list[Item]] | None:
    match fields:
        case [Item(parts=[Text(value=number, is_quoted=False)]), *rest] if EVENT_NUMBER.fullmatch(number):
            fields = rest if len(rest) >= (4 if number.isdecimal() else 3) else fields
    at, used, time = _time(fields, group)
    names = fields[:at]
    if time is None or len(names) < 2 or not all(map(is_plain, names)):
        return None
    joined = [part for item in names[2:] for part in (Text(","), *item.parts)][1:]
    target = ", ".join(filter(None, map(name_of, names[2:]))) if len(names) > 3 else None
    if len(names) == 3:
        target = name_of(Item(joined))
    found = FoundEvent(
        name_of(names[0]), name_of(names[1]), target, *time, is_joined=len(names) > 3, is_open=not group.is_closed
    )
    return [found], fields[at + used :]


def triplets_in(group: Group, key: str | None = None) -> tuple[list[FoundTriplet], list[Item]] | None:
    """The relation or the attributes a group holds, and the items after it."""
    fields = _fields(group)
    keyed = {role(item.key): item for item in reversed(fields) if item.key is not None}
    if {"agent", "predicate", "target"} <= keyed.keys():
        parts = [keyed["agent"], keyed["predicate"], keyed["target"]]
        return ([FoundTriplet(*map(name_of, parts))], []) if all(map(is_plain, parts)) else None
    owner = keyed.get("target") or keyed.get("name") or keyed.get("agent")
    if owner and "attribute" in keyed and is_plain(owner):
        return [FoundTriplet(name_of(owner), None, value) for value in _values(keyed["attribute"])], []
    if any(item.key is not None for item in fields) or (key or "").strip().casefold() in LISTS or not group.is_closed:
        return None
    if span_of(group) is not None or any(
        isinstance(p, Group) for f in fields for p in f.parts[:1] if span_of(p) is None
    ):
        return None
    at, used, time = _time(fields, group)
    names = fields[:at] if time else fields
    if not 2 <= len(names) <= 6 or not all(map(is_plain, names)):
        return None
    rest = fields[at + used :] if time else []
    if len(names) == 2:
        return [FoundTriplet(name_of(names[0]), None, name_of(names[1]))], rest
    target = ", ".join(filter(None, map(name_of, names[2:]))) or None
    return [_relation(name_of(names[0]), name_of(names[1]), target, len(names) > 3)], rest


def _relation(subject: str | None, predicate: str | None, target: str | None, is_joined: bool) -> FoundTriplet:
    """(bag, is, old) and (mat, in, green) give an attribute."""
    said = (predicate or "").casefold()
    is_colour = said in IN and COLOURS.issuperset((target or "-").casefold().split())
    return FoundTriplet(subject, None if said in IS or is_colour else predicate, target, is_joined)


def _fields(group: Group) -> list[Item]:
    """The items that hold something, each interval an item of its own even where a comma before it was forgotten."""
    found = []
    for item in group.items:
        pending: list[Text | Group] = []
        for part in item.parts:
            if isinstance(part, Group) and span_of(part) is not None:
                found += [Item(pending, item.key)] if pending else []
                found.append(Item([part], item.key))
                pending = []
            else:
                pending.append(part)
        found += [Item(pending, item.key)] if pending else []
    return found


def _time(fields: list[Item], group: Group) -> tuple[int, int, tuple[float, float] | None]:
    """Where the time stands, how many fields it takes, and its start and end. In quotes only if nowhere else."""
    for fits in (_is_bare, bool):
        for at in range(1, len(fields)):
            if not fits(fields[at]):
                continue
            time = span_of(fields[at].parts[0]) if len(fields[at].parts) == 1 else None
            if time is not None:
                return at, 1, time
            start = number_of(fields[at])
            if start is None or not group.is_closed:
                continue
            end = number_of(fields[at + 1]) if at + 1 < len(fields) and fits(fields[at + 1]) else None
            if end is not None:
                return at, 2, (start, end)
            if at >= 3 and at + 1 == len(fields):
                return at, 1, (start, start)
    return len(fields), 0, None


def _is_bare(item: Item) -> bool:
    return not (isinstance(item.parts[0], Text) and item.parts[0].is_quoted)


def _keyed_time(keyed: dict[str | None, Item], group: Group) -> tuple[float, float] | None:
    if "time" in keyed and len(keyed["time"].parts) == 1:
        time = span_of(keyed["time"].parts[0])
        start = number_of(keyed["time"])
        return time or (None if start is None else (start, start))
    if not group.is_closed or "start" not in keyed:
        return None
    start = number_of(keyed["start"])
    end = number_of(keyed["end"]) if "end" in keyed else start
    return None if start is None or end is None else (start, end)


def _values(item: Item) -> list[str | None]:
    """One attribute, or a list of them."""
    match item.parts:
        case [Group(items=items)]:
            return [name_of(inner) for inner in items if inner.parts and is_plain(inner)]
    return [name_of(item)] if is_plain(item) else []
