"""Reads any text into the tree of its brackets: the ground under every tolerant parser, for json and for tuples alike.

One pass, bounded in length, depth and number of groups. Quotes open only where an item begins and close only before a
delimiter, so apostrophes and quotes inside a name are letters. Brackets that never close end with the text, and say so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

MAX_CHARACTERS = 100_000
MAX_DEPTH = 24
MAX_GROUPS = 4_000

CLOSERS = {"(": ")", "[": "]", "{": "}", "（": "）", "［": "］", "｛": "｝", "【": "】"}
OPENERS = {closer: opener for opener, closer in CLOSERS.items()}
COMMAS = ",，、،"
COLONS = ":："
END = r"(?=\s{0,64}(?:[])},:，、،：）］｝】]|\Z))"
# Atomic and possessive: a text of escapes is read in one way only, and in linear time.
QUOTES = {
    opener: re.compile(
        rf"{opener}((?>[^\\\n{closer}]|\\u[0-9a-fA-F]{{4}}|\\[^\n]|{closer}(?!{END})){{0,200}}+){closer}{END}"
    )
    for opener, closer in (
        ('"', '"'),
        ("'", "'"),
        ("“", "”"),
        ("„", "“"),
        ("«", "»"),
        ("‘", "’"),
        ("「", "」"),
        ("`", "`"),
    )
}
SPECIAL = re.compile("[" + re.escape("".join(CLOSERS) + "".join(OPENERS) + COMMAS + COLONS + "".join(QUOTES)) + "]")


@dataclass
class Text:
    """Letters between delimiters; `is_quoted` when they stood in quotes."""

    value: str
    is_quoted: bool = False


@dataclass
class Item:
    """What stands between two commas of a group: texts and groups in order, after a key in braces."""

    parts: list[Text | Group] = field(default_factory=list)
    key: str | None = None


@dataclass
class Group:
    """One pair of brackets. The root of a text is a group without an opener."""

    opener: str
    items: list[Item] = field(default_factory=lambda: [Item()])
    is_closed: bool = False


def read_brackets(text: str) -> Group:
    """The tree of a text, of its first MAX_CHARACTERS characters."""
    text = text[:MAX_CHARACTERS]
    root = Group("")
    stack, num_groups, position, start = [root], 0, 0, 0

    def say(upto: int) -> None:
        value = text[start:upto].strip()
        if value:
            stack[-1].items[-1].parts.append(Text(value))

    while found := SPECIAL.search(text, position):
        at, character = found.start(), found.group()
        position = at + 1
        group, item = stack[-1], stack[-1].items[-1]
        if character in QUOTES:
            begins = len(stack) > 1 and not item.parts and not text[start:at].strip()
            quoted = QUOTES[character].match(text, at) if begins else None
            if quoted:
                item.parts.append(Text(_unescape(quoted.group(1)), is_quoted=True))
                position = start = quoted.end()
        elif character in CLOSERS:
            if len(stack) <= MAX_DEPTH and num_groups < MAX_GROUPS:
                say(at)
                inner = Group(character)
                item.parts.append(inner)
                stack.append(inner)
                start, num_groups = position, num_groups + 1
        elif character in OPENERS:
            depth = _closes(stack, OPENERS[character])
            if depth:
                say(at)
                for closed in stack[depth:]:
                    closed.is_closed = True
                del stack[depth:]
                start = position
        elif character in COMMAS:
            say(at)
            group.items.append(Item())
            start = position
        elif group.opener in "{｛" and len(stack) > 1 and item.key is None:
            say(at)
            if len(item.parts) == 1 and isinstance(item.parts[0], Text):
                item.key = item.parts.pop().value
            start = position
    say(len(text))
    return root


def _closes(stack: list[Group], opener: str) -> int:
    """How deep the closed group lies: the innermost of this kind, else the innermost of all; 0 when none is open."""
    for depth in range(len(stack) - 1, 0, -1):
        if stack[depth].opener == opener:
            return depth
    return len(stack) - 1


def _unescape(value: str) -> str:
    if "\\" in value:
        try:
            return str(json.loads(f'"{value}"'))
        except ValueError:
            return value.replace("\\", "")
    return value


def groups(group: Group, key: str | None = None) -> Iterator[tuple[Group, str | None]]:
    """Every group below this one with the key it stands under, outer ones and earlier ones first."""
    for item in group.items:
        for part in item.parts:
            if isinstance(part, Group):
                yield part, item.key or key
                yield from groups(part, item.key or key)


def flat(item: Item) -> str:
    """An item as one text, the brackets inside written out."""
    return " ".join(part.value if isinstance(part, Text) else _written(part) for part in item.parts)


def _written(group: Group) -> str:
    inside = ", ".join(flat(item) for item in group.items if item.parts)
    return f"({inside})" if group.opener in "(（" else inside
