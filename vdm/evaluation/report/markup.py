"""HTML that cannot be broken by what it shows: every text is escaped unless it was made here."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

EMPTY_TAGS = ("br", "hr", "img", "link", "meta")
UNREADABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
LONG = 400  # letters of a text that are shown before it has to be opened


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Any value as HTML. Control characters, which no page may hold, become a mark."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(UNREADABLE.sub("\ufffd", str(value)), quote=True))


def join(parts: Iterable[object], between: str = "") -> Markup:
    return Markup(between.join(text(part) for part in parts))


def tag(kind: str, /, *children: object, **attributes: object) -> Markup:
    """An element. `class_` is class, `data_x` is data-x; None and False leave an attribute out, True has no value."""
    given = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        given.append(f" {key}" if value is True else f' {key}="{text(value)}"')
    opening = f"<{kind}{''.join(given)}>"
    return Markup(opening if kind in EMPTY_TAGS else f"{opening}{join(children)}</{kind}>")


def folded(title: object, *children: object, is_open: bool = False) -> Markup:
    """What is there for who wants it; opens without a script."""
    return tag("details", tag("summary", title), *children, open=is_open)


def long_text(value: str, **attributes: object) -> Markup:
    """A caption in its own direction of writing, folded where it is very long."""
    if len(value) <= LONG:
        return tag("p", tag("bdi", value), **attributes)
    rest = tag("div", tag("bdi", value), class_="long")
    shown = join([tag("bdi", value[: LONG - 100]), f" ... ({len(value):,} characters)"])
    return tag("div", folded(shown, rest), **attributes)


def table(head: Sequence[object], rows: Iterable[Sequence[object]], **attributes: object) -> Markup:
    """The first cell of a row is its heading. Wide tables scroll by themselves, never the page."""
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    inner = tag("table", tag("thead", top) if any(head) else "", tag("tbody", *body), **attributes)
    return tag("div", inner, class_="scroll", tabindex="0")


def facts(values: Mapping[str, Any]) -> Markup:
    """Names and values, nested ones with dots."""
    return table((), [(name, tag("bdi", value)) for name, value in flat(values)], class_="facts")


def flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{name}.")
        elif isinstance(value, list | tuple) and not any(isinstance(one, Mapping | list) for one in value):
            found.append((name, ", ".join(map(plain, value)) or "none"))
        else:
            found.append((name, plain(value)))
    return found


def plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: Any) -> str:
    """With as many digits as can mean something."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(value)
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.1f}"
    if size >= 100:
        return f"{value:.1f}"
    if size >= 10:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.001 or not size else f"{value:.1e}"
