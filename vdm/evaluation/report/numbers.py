"""The numbers of a result: each beside its interval and floor, this run beside its parents and the paper, and by bins."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from vdm.evaluation.report.markup import Markup, facts, folded, join, number, plain, table, tag
from vdm.evaluation.report.reading import COUNTS, Ancestor, Measure, Result, better, results_of

ARROWS = {"higher": "\u2191", "lower": "\u2193", None: ""}
SPAN = ("low", "high")


@cache
def paper() -> Mapping[str, Any]:
    return json.loads((resources.files("vdm.evaluation.report") / "paper.json").read_text(encoding="utf-8"))


def titled(name: str) -> Markup:
    """A number's name, with an arrow to where it is better."""
    way = better(name)
    arrow = tag("span", f" {ARROWS[way]}", title=f"{way} is better", class_="arrow") if way else ""
    return join([tag("code", name), arrow])


def tiles(result: Result, *, most: int) -> Markup:
    """The first numbers, large."""
    shown = []
    for measure in result.measures[:most]:
        beside = span_of(measure.beside)
        if not beside and "floor" in measure.beside:
            beside = f"floor {number(measure.beside['floor'])}"
        if not beside and measure.original is not None:
            beside = f"true clips {number(measure.original)}"
        value = tag("strong", number(measure.value))
        shown.append(tag("div", tag("span", titled(measure.name)), value, tag("small", beside), class_="tile"))
    return tag("div", *shown, class_="tiles") if shown else Markup()


def span_of(beside: Mapping[str, Any]) -> str:
    if all(isinstance(beside.get(end), int | float) for end in SPAN):
        return f"{number(beside['low'])} to {number(beside['high'])}"
    return ""


def all_numbers(result: Result) -> Markup:
    """A row for each number. Columns that no number has are left out."""
    found = result.measures
    if not found:
        return tag("p", "There is no number: every metric was skipped.")
    columns = {
        "interval (95 %)": [span_of(m.beside) for m in found],
        "floor: real against real": [number(m.beside["floor"]) if "floor" in m.beside else "" for m in found],
        "at the floor's count": [_matched(m) for m in found],
        "deviation": [number(m.beside["deviation"]) if "deviation" in m.beside else "" for m in found],
        "the true clips": [number(m.original) if m.original is not None else "" for m in found],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [
        [titled(m.name), tag("b", number(m.value)), *(cells[i] for cells in columns.values())]
        for i, m in enumerate(found)
    ]
    parts = [table(["", "value", *columns], rows, class_="numbers")]
    if "floor: real against real" in columns:
        parts.append(
            tag("p", "A distance depends on the number of clips. What can be compared with the floor, the distance of real "
                "clips to other real clips, is the column beside it, made with as many clips.", class_="note")
        )  # fmt: skip
    measured = result.part("measured")
    if measured:
        parts.append(folded("With what each was measured", facts(measured)))
    return join(parts)


def _matched(measure: Measure) -> str:
    if "matched" not in measure.beside:
        return ""
    count = measure.beside.get("floor_clips")
    return f"{number(measure.beside['matched'])}" + (f" ({plain(count)} clips)" if count is not None else "")


# ---- beside others ----------------------------------------------------------------------------------------------------


def comparison(result: Result, lineage: Sequence[Ancestor]) -> Markup:
    """This run, its parents under the same protocol, and rows of the paper, in one table."""
    others = [one for ancestor in lineage[1:] for one in results_of(ancestor.run)]
    others = list({one.folder: one for one in others}.values())
    same = [one for one in others if result.id is not None and one.id == result.id]
    apart = [one for one in others if one not in same]
    published = [one for one in paper()["tables"] if one["protocol"] == result.protocol]
    if not same and not published:
        return tag(
            "p", "The paper has no table for this protocol, and no parent was measured by it", *_left_out(apart), "."
        )
    wanted = [name for one in published for name in one["measures"]]
    columns = [m.name for m in result.measures]
    for name in dict.fromkeys(wanted):
        if name not in map(measure_of, columns):
            columns.append(name)  # not measured here
    if published:  # what both have comes first
        columns.sort(key=lambda column: measure_of(column) not in wanted)
    rows = [[tag("b", result.subject), "measured here", *_cells(result, columns)]]
    rows += [[f"{one.subject} (parent)", "measured here, same protocol", *_cells(one, columns)] for one in same]
    for one in published:
        mark = tag("span", one["name"], class_="mark", title=paper()["note"])
        for name, *values in one["rows"]:
            given = dict(zip(one["measures"], values, strict=True))
            cells = [given.get(measure_of(column)) or "" for column in columns]
            rows.append([name, join([mark, f" {one['about']}"]), *cells])
    head = ["", "from", *map(titled, columns)]
    parts = [table(head, rows, class_="numbers comparison")]
    if published:
        marks = ", ".join(dict.fromkeys(one["name"] for one in published))
        parts.append(tag("p", tag("b", marks), f": {paper()['note']} ({paper()['paper']})", class_="note"))
    if apart:
        parts.append(tag("p", "Not in the table", *_left_out(apart), ".", class_="note"))
    return join(parts)


def _left_out(apart: Sequence[Result]) -> list[str]:
    if not apart:
        return []
    names = ", ".join(sorted({f"{one.subject} ({one.protocol})" for one in apart}))
    return [f"; results of parents under other protocols, or without an id: {names}"]


def measure_of(column: str) -> str | None:
    """Which measure of the paper a column holds."""
    return next((name for name, one in paper()["measures"].items() if re.match(one["pattern"], column)), None)


def _cells(result: Result, columns: Sequence[str]) -> list[Markup]:
    found = {measure.name: measure for measure in result.measures}
    cells = []
    for column in columns:
        if column not in found:
            cells.append(tag("span", "not measured", class_="absent"))
            continue
        span = span_of(found[column].beside)
        cells.append(join([number(found[column].value), tag("small", f" {span}") if span else ""]))
    return cells


def counts(result: Result) -> dict[str, Any]:
    metrics = result.part("metrics")
    return {name: metrics[name] for name in COUNTS if name in metrics}
