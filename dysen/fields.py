"""What the fields of an answer may mean: names, intervals of ticks in their many spellings, and the keys around them."""

from __future__ import annotations

import math
import re

from dysen.brackets import Group, Item, Text, flat
from dysen.names import MAX_NAME, clean

# Names that say there is nobody.
NOBODY = {"", "-", "--", "–", "—", "none", "null", "nil", "nothing", "n/a", "na", "nan", "no target", "no one", "empty"}
ROLES = {
    "agent": ("agent", "subject", "actor", "doer", "who", "source"),
    "predicate": ("predicate", "action", "verb", "relation", "relationship", "event"),
    "target": ("target", "object", "patient", "receiver", "recipient"),
    "time": ("time", "times", "interval", "duration", "ticks", "span", "period", "when"),
    "start": ("start", "begin", "from", "start_time", "starttime", "start_tick"),
    "end": ("end", "stop", "until", "finish", "end_time", "endtime", "end_tick"),
    "attribute": ("attribute", "attributes", "property", "properties"),
    "name": ("name", "label"),
    "tick": ("tick", "id", "number", "index", "no", "scene", "sg", "graph"),
}
ROLE_OF = {spelling: role for role, spellings in ROLES.items() for spelling in spellings}
NUMBER = r"(-?\d{1,9}(?:\.\d{1,9})?)\s{0,3}(?:v|s|sec|secs|second|seconds|tick|ticks|ν)?"
SINGLE = re.compile(rf"(?:t\s?=?\s?)?{NUMBER}", re.IGNORECASE)
SPAN = re.compile(
    rf"[(\[]?\s?{NUMBER}\s{{0,3}}(?:-|–|—|~|to|until|,|\.\.|→|->|至|到)\s{{0,3}}{NUMBER}\s?[)\]]?", re.IGNORECASE
)
TOO_LONG = 2 * MAX_NAME  # rather a sentence than a name
EDGES = " \t\n\r\"'`*_.;<>|“”«»「」•"


def name_of(item: Item) -> str | None:
    """The name an item holds, perhaps too long; None when it says that there is nobody."""
    match item.parts:
        case [Text(value=value, is_quoted=True), *_]:
            name = clean(value[:TOO_LONG])
        case [Group(items=inner)]:
            name = clean(" and ".join(filter(None, map(flat, inner)))[:TOO_LONG])
        case _:
            name = clean(clean(flat(item)[:TOO_LONG]).strip(EDGES))
    return None if name.casefold() in NOBODY else name


def is_plain(item: Item) -> bool:
    """Whether an item can be a name: some text, at most with a short remark in brackets."""
    inner = [part for part in item.parts if isinstance(part, Group)]
    is_flat = all(len(g.items) <= 4 and not any(isinstance(p, Group) for i in g.items for p in i.parts) for g in inner)
    return is_flat and all(g.opener not in "{｛" for g in inner) and 0 < len(flat(item)) < TOO_LONG


def number_of(item: Item) -> float | None:
    """A single point in time."""
    match item.parts:
        case [Text(value=value)] if found := SINGLE.fullmatch(value.strip()):
            return float(found[1])
    return None


def span_of(part: Text | Group) -> tuple[float, float] | None:
    """An interval: (0v, 5v), [0, 5], {"start": 0, "end": 5}, "0-5", "0v to 5v". A group must be closed."""
    if isinstance(part, Text):
        found = SPAN.fullmatch(part.value.strip())
        return (float(found[1]), float(found[2])) if found else None
    if not part.is_closed or not 1 <= len(part.items) <= 3:
        return None
    items = [item for item in part.items if item.parts]
    if len(items) == 1 and len(items[0].parts) == 1 and isinstance(items[0].parts[0], Text):
        return span_of(items[0].parts[0])
    if len(items) == 2:
        numbers = [number_of(item) for item in items]
        keys = [role(item.key) for item in items]
        if None not in numbers and keys in ([None, None], ["start", "end"], ["end", "start"]):
            return tuple(numbers) if keys[0] != "end" else tuple(reversed(numbers))
    return None


def role(key: str | None) -> str | None:
    """What a key of a json object stands for."""
    return None if key is None else ROLE_OF.get(key.strip().casefold())


def whole(start: float, end: float) -> tuple[int, int, list[str]]:
    """Whole ticks, start before end and none below 0, and what had to be put right for that."""
    repairs = []
    if start > end:
        start, end = end, start
        repairs.append("swapped start and end")
    if not (start.is_integer() and end.is_integer()):
        repairs.append("rounded a time")
    first, last = math.floor(start), math.ceil(end)
    if first < 0:
        first, last = 0, max(last, 0)
        repairs.append("moved a time to 0")
    if first == last:
        last += 1
        repairs.append("lengthened an empty interval")
    return first, last, repairs
