"""From the files that raters saved to a table: means from 0 to 100, intervals over the items, and how far raters agree.

What is wrong with a file is said and does not count; it ends nothing, because the other ratings are still good.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from vdm.errors import DataError, RunError
from vdm.evaluation.study.agreement import LEVEL, bootstrap, krippendorff_alpha
from vdm.runs import write_atomically

Unit = tuple[str, str, str]  # item, system, question


@dataclass
class Rater:
    """One person's ratings of this study, on its scale."""

    name: str
    file: str
    saved: str
    ratings: dict[Unit, int] = field(default_factory=dict)
    ignored: int = 0


def count(
    key: Path, ratings: str | Sequence[str], *, draws: int, seed: int, out: Path | None
) -> tuple[dict[str, Any], Path]:
    """The results and the file they were written to."""
    study = read_key(key)
    problems: list[str] = []
    raters = _once_each(_read_all(_files(ratings, key), study, problems), problems)
    wanted = len(study["items"]) * len(study["systems"]) * len(study["questions"])
    for rater in raters:
        if rater.ignored:
            problems.append(
                f"{rater.file}: {rater.ignored} answers are not of this study or not on its scale, and are ignored"
            )
        if len(rater.ratings) < wanted:
            problems.append(
                f"{rater.file}: {wanted - len(rater.ratings)} of {wanted} answers of {rater.name} are missing"
            )
    if not any(rater.ratings for rater in raters):
        raise DataError("no ratings can be counted", key="ratings", got="; ".join(problems) or "no files",
                        remedy="ask the raters for the files that the page saves")  # fmt: skip
    found = {
        "study": study["study"],
        "raters": {rater.name: len(rater.ratings) for rater in raters},
        "items": len(study["items"]),
        "points": study["points"],
        "scale": "0 is the lowest point, 100 the highest",
        "interval": f"{LEVEL:.0%}, bootstrap over items, {draws} draws, seed {seed}",
        "questions": study["questions"],
        "means": {q: _means(study, raters, q, draws=draws, seed=seed) for q in study["questions"]},
        "differences": {q: _differences(study, raters, q, draws=draws, seed=seed) for q in study["questions"]},
        "agreement": {q: _agreement(raters, q) for q in study["questions"]},
        "problems": problems,
    }
    path = out if out is not None else key.parent / "results.json"
    try:
        write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RunError("the table cannot be written", key="out", got=f"{path}: {error}") from None
    return found, path


# ---- reading ----------------------------------------------------------------------------------------------------------


def read_key(path: Path) -> dict[str, Any]:
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        places = [place for item in study["items"] for place in item["places"].values()]
        is_whole = bool(places) and set(places) <= set(study["systems"]) and int(study["points"]) > 1 and study["study"]
        is_whole = is_whole and isinstance(study["questions"], dict)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise DataError(
            "this is no key of a study", key="key", got=str(path), allowed="key.json of evaluate.py study make"
        )
    return study


def _files(ratings: str | Sequence[str], key: Path) -> list[Path]:
    found: list[Path] = []
    for place in map(Path, [ratings] if isinstance(ratings, str) else ratings):
        found += sorted(p for p in place.iterdir() if p.suffix == ".json") if place.is_dir() else [place]
    own = {key.absolute(), (key.parent / "results.json").absolute()}
    return [path for path in found if path.absolute() not in own]


def _read_all(files: Sequence[Path], study: Mapping[str, Any], problems: list[str]) -> Iterator[Rater]:
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{path.name}: cannot be read: {str(error).splitlines()[0]}")
            continue
        if not isinstance(content, dict) or not isinstance(content.get("answers"), dict):
            problems.append(f"{path.name}: holds no ratings")
        elif content.get("study") != study["study"]:
            problems.append(f"{path.name}: is of another study: {content.get('study')}, not {study['study']}")
        elif not isinstance(content.get("rater"), str) or not content["rater"].strip():
            problems.append(f"{path.name}: does not say who rated")
        else:
            rater = Rater(" ".join(content["rater"].split()), path.name, str(content.get("exported") or ""))
            _read_answers(content["answers"], study, rater)
            yield rater


def _read_answers(answers: Mapping[str, Any], study: Mapping[str, Any], rater: Rater) -> None:
    items = {item["name"]: item["places"] for item in study["items"]}
    for item, by_place in answers.items():
        for place, by_question in by_place.items() if isinstance(by_place, dict) else [("", None)]:
            for question, value in by_question.items() if isinstance(by_question, dict) else [("", None)]:
                is_asked = place in items.get(item, {}) and question in study["questions"]
                is_point = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= study["points"]
                if is_asked and is_point:
                    rater.ratings[item, items[item][place], question] = value
                else:
                    rater.ignored += 1


def _once_each(found: Iterator[Rater], problems: list[str]) -> list[Rater]:
    """Of several files of one person the one that was saved last."""
    raters: dict[str, Rater] = {}
    for rater in found:
        name = rater.name.casefold()
        other = raters.get(name)
        if other is not None:
            older, newer = sorted((other, rater), key=lambda one: one.saved)
            problems.append(f"{older.file}: {rater.name} has a later file, {newer.file}, which counts instead")
            raters[name] = newer
        else:
            raters[name] = rater
    return list(raters.values())


# ---- numbers ----------------------------------------------------------------------------------------------------------


def _by_item(study: Mapping[str, Any], raters: Sequence[Rater], system: str, question: str) -> np.ndarray:
    """The mean over raters for each item, from 0 to 100; NaN where nobody rated it."""
    found = []
    for item in study["items"]:
        unit = (item["name"], system, question)
        given = [rater.ratings[unit] for rater in raters if unit in rater.ratings]
        found.append(100 * (np.mean(given) - 1) / (study["points"] - 1) if given else np.nan)
    return np.array(found)


def _summary(values: np.ndarray, *, draws: int, seed: int) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    if not len(known):
        return {"mean": None, "low": None, "high": None, "items": 0}
    span = bootstrap(lambda chosen: float(known[chosen].mean()), len(known), draws=draws, seed=seed)
    low, high = span if span is not None else (None, None)
    return {"mean": float(known.mean()), "low": low, "high": high, "items": len(known)}


def _means(
    study: Mapping[str, Any], raters: Sequence[Rater], question: str, *, draws: int, seed: int
) -> dict[str, Any]:
    return {
        system: _summary(_by_item(study, raters, system, question), draws=draws, seed=seed)
        for system in study["systems"]
    }


def _differences(
    study: Mapping[str, Any], raters: Sequence[Rater], question: str, *, draws: int, seed: int
) -> dict[str, Any]:
    """Of each pair of systems on the same items, which is narrower than two intervals side by side."""
    values = {system: _by_item(study, raters, system, question) for system in study["systems"]}
    return {
        f"{a} - {b}": _summary(values[a] - values[b], draws=draws, seed=seed)
        for a, b in combinations(study["systems"], 2)
    }


def _agreement(raters: Sequence[Rater], question: str) -> dict[str, Any]:
    units: dict[Unit, list[float]] = {}
    for rater in raters:
        for unit, value in rater.ratings.items():
            if unit[2] == question:
                units.setdefault(unit, []).append(value)
    rated = list(units.values())
    alphas = {scale: krippendorff_alpha(rated, scale=scale) for scale in ("ordinal", "interval")}
    shared = sum(len(unit) > 1 for unit in rated)
    why = None
    if alphas["ordinal"] is None:
        why = "no video was rated by two people" if not shared else "everybody gave the same rating everywhere"
    return {**alphas, "rated_twice": shared, "undefined": why}


def table(found: Mapping[str, Any]) -> str:
    """For a terminal."""
    questions = list(found["questions"])
    heads = ["", *(name.replace("_", " ") for name in questions)]
    rows = [[system, *(_cell(found["means"][q][system]) for q in questions)] for system in found["means"][questions[0]]]
    rows += [
        [pair, *(_cell(found["differences"][q][pair], "+") for q in questions)]
        for pair in found["differences"][questions[0]]
    ]
    for scale in ("ordinal", "interval"):
        rows.append([f"alpha, {scale}", *(_alpha(found["agreement"][q], scale) for q in questions)])
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]
    ]
    about = f"{len(found['raters'])} raters, {found['items']} items; 0 to 100; {found['interval']}"
    return "\n".join([*lines, about, ""])


def _cell(one: Mapping[str, Any], sign: str = "") -> str:
    if one["mean"] is None:
        return "not rated"
    span = (
        f" ({one['low']:{sign}.1f} to {one['high']:{sign}.1f})"
        if one["low"] is not None
        else " (one item: no interval)"
    )
    return f"{one['mean']:{sign}.1f}{span}"


def _alpha(one: Mapping[str, Any], scale: str) -> str:
    return one["undefined"] if one[scale] is None else f"{one[scale]:.3f}"
