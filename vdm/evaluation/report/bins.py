"""Numbers by bins, such as the number of events: a plot of each, with the paper's curves in grey where it has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vdm.evaluation.report.markup import Markup, folded, join, number, plain, table, tag
from vdm.evaluation.report.numbers import measure_of, paper, span_of
from vdm.evaluation.report.plots import Series, plot
from vdm.evaluation.report.reading import Measure, Result, measures

FRAMES = re.compile(r"_\d+f(_subsample\d+f)?$")
MOST = 6  # plots in the open
SHARES = ("colour", "shape", "size", "action", "single_action", "timing", "order", "dynamic_degree_lk")  # from 0 to 1
RANGE = re.compile(r"\d+-(\d+)")

Row = Mapping[str, Any]


def breakdowns(result: Result) -> Markup:
    parts = []
    for name, rows in result.breakdowns.items():
        figures = [one for one in paper()["figures"] if (one["protocol"], one["breakdown"]) == (result.protocol, name)]
        found = _by_title(rows)
        plots = [_plot(name, title, values, rows, figures) for title, values in found.items() if len(values) > 1]
        drawn = [one for one in figures if one["measure"] in map(measure_of, found)]
        listed = [
            [row["bin"], plain(row.get("clips")), join((f"{n} {number(v)}" for n, v in row["metrics"].items()), ", ")]
            for row in rows
        ]
        parts += [
            tag("h3", f"By {name.replace('_', ' ')}"),
            tag("div", *plots[:MOST], class_="plots"),
            folded(f"{len(plots) - MOST} more", tag("div", *plots[MOST:], class_="plots")) if len(plots) > MOST else "",
            *(tag("p", _note(one), class_="note") for one in drawn),
            folded("The same as a table", table(["", "clips", "numbers"], listed)),
        ]
    return join(parts)


def _note(figure: Mapping[str, Any]) -> str:
    return f"Grey: {figure['name']} of the paper, {figure['note']}; protocol not known to be equal."


def _by_title(rows: Sequence[Row]) -> dict[str, dict[str, Measure]]:
    """For each number its values by bin. A count of clips or frames in its name, which differs from bin to bin, is left out."""
    named = [(str(row["bin"]), _uncounted(one.name), one) for row in rows for one in measures(row["metrics"])]
    frames: dict[str, set[str]] = {}
    for _, title, _ in named:
        frames.setdefault(FRAMES.sub("", title), set()).add(title)
    found: dict[str, dict[str, Measure]] = {}
    for place, title, one in named:
        short = FRAMES.sub("", title)
        found.setdefault(short if len(frames[short]) > 1 else title, {})[place] = one
    return found


def _uncounted(name: str) -> str:
    return re.sub(r"(?<=[a-z])\d+(?=_|x|$)", "", name)


def _plot(
    breakdown: str, title: str, values: Mapping[str, Measure], rows: Sequence[Row], figures: Sequence[Row]
) -> Markup:
    figures = [one for one in figures if one["measure"] == measure_of(title)]
    names = {_same(row["bin"]): str(row["bin"]) for row in rows if row["metrics"] or row.get("clips")}
    for figure in figures:
        names = {_same(name): name for name in figure["bins"]} | names
    order = sorted(names, key=lambda same: _place(names[same]))
    points, spans = [], []
    for name, one in values.items():
        if isinstance(one.value, int | float):
            points.append((order.index(_same(name)), float(one.value)))
            spans.append((float(one.beside["low"]), float(one.beside["high"])) if span_of(one.beside) else None)
    series = [Series("this run", points, spans)]
    for figure in figures:
        places = [order.index(_same(name)) for name in figure["bins"]]
        series += [
            Series(f"{name} ({figure['name']})", list(zip(places, found, strict=True)), of_others=True)
            for name, found in figure["series"].items()
        ]
    clips = {_same(row["bin"]): f"{row['clips']} clips" for row in rows if row.get("clips") is not None}
    labels = [(_pretty(names[same]), clips.get(same, "")) for same in order]
    return plot(
        series, title=title, labels=labels, x=breakdown.replace("_", " "), bounds=(0, 1) if title in SHARES else ()
    )


def _same(name: Any) -> str:
    """One spelling: 7+, >=7 and \u22657 are the same bin, and so are 10-20 and 11-20, of which each source means one."""
    name = re.sub(r"\s", "", str(name)).replace("\u2265", ">=").replace("\u2264", "<=").replace("\u2013", "-")
    name = re.sub(r"^(\d+)\+$", r">=\1", name)
    return RANGE.sub(r"to \1", name) if RANGE.fullmatch(name) else name


def _place(name: str) -> tuple[bool, float, str]:
    """By the number in it: below it, it, above it; what has none comes last."""
    found = re.search(r"\d+(\.\d+)?", name)
    if found is None:
        return True, 0.0, name
    beyond = 0.25 if re.match(r"[>\u2265]|\d+\+", name) else -0.25 if re.match(r"[<\u2264]", name) else 0.0
    return False, float(found.group()) + beyond, name


def _pretty(name: str) -> str:
    return name.replace("<=", "\u2264").replace(">=", "\u2265")
