"""What an evaluation and its runs left on disk, read with patience: a file or key that is absent leaves a gap, not an error."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from vdm.errors import DataError, RunError
from vdm.runs import Run

COUNTS = ("clips", "without_plan")  # among the numbers, but no measure of anything
BESIDE = ("low", "high", "floor", "matched", "floor_clips", "deviation")  # suffixes of a distance
ORIGINAL = "original/"
DEEPEST = 12  # generations of parents
# How names of numbers begin of which one knows what is better; the longer beginning decides.
HIGHER = ("video_is", "frame_is", "clipsim", "clip_consistency", "psnr", "ssim", "colour", "shape", "size", "action",
          "single_action", "timing", "order")  # fmt: skip
LOWER = ("fvd", "kvd", "fid", "kid", "lpips", "flicker", "warping_error", "shapes_frechet")


@dataclass(frozen=True)
class Measure:
    """One number with what makes it readable."""

    name: str
    value: Any
    beside: dict[str, Any]
    original: Any = None


@dataclass(frozen=True)
class Result:
    """`metrics.json` of a folder."""

    folder: Path
    content: Mapping[str, Any]

    def part(self, name: str) -> dict[str, Any]:
        found = self.content.get(name)
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def id(self) -> str | None:
        return str(self.content["id"]) if self.content.get("id") else None

    @property
    def protocol(self) -> str:
        return str(self.part("protocol").get("name") or self.folder.name)

    @property
    def kind(self) -> str:
        """What was measured: a `run`, or somebody's folder of `videos`."""
        return "run" if self.content.get("run") or not self.part("data").get("videos") else "videos"

    @property
    def subject(self) -> str:
        named = self.content.get("run") if self.kind == "run" else self.part("data").get("name")
        return str(named or self.folder.name)

    @cached_property
    def measures(self) -> list[Measure]:
        return measures(self.part("metrics"))

    @cached_property
    def breakdowns(self) -> dict[str, list[dict[str, Any]]]:
        """By name the bins that have a name and numbers."""
        found = {}
        for name, rows in self.part("breakdowns").items():
            kept = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
            kept = [row for row in kept if "bin" in row and isinstance(row.get("metrics"), Mapping)]
            if kept:
                found[str(name)] = kept
        return found


@dataclass(frozen=True)
class Case:
    """One clip. Paths are None where nothing was written or the file is gone."""

    key: str
    caption: str
    scores: dict[str, float]
    files: dict[str, Path]  # video, original, plan, timeline, graph


@dataclass(frozen=True)
class Ancestor:
    """A run, and which network of the run below it came from it."""

    run: Run
    info: Mapping[str, Any]
    depth: int
    gave: Mapping[str, Any] = field(default_factory=dict)  # network, checkpoint, sha256


def read_result(folder: Path) -> Result:
    path = folder / "metrics.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("there is no evaluation in this folder", key="folder", got=str(path),
                        remedy="evaluate first: python evaluate.py protocol=<protocol> run=<run>") from None  # fmt: skip
    except (OSError, ValueError) as error:
        raise DataError("this result cannot be read", key="folder", got=f"{path}: {error}",
                        remedy="run its evaluation again: it goes on where it was") from None  # fmt: skip
    if not isinstance(content, dict):
        raise DataError("this is no result of an evaluation", key="folder", got=str(path), allowed="a JSON object")
    return Result(folder, content)


def read_side(folder: Path) -> dict[str, Any]:
    """What decides no number: where it was evaluated and how long it took."""
    try:
        found = json.loads((folder / "evaluated.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def measures(metrics: Mapping[str, Any]) -> list[Measure]:
    """Numbers in their order, each with its interval, floor and the same number of the original clips."""
    found = []
    for name, value in metrics.items():
        end = name.rpartition("/")[2]
        if name in COUNTS or name.startswith(ORIGINAL) or (end in BESIDE and "/" in name):
            continue
        beside = {suffix: metrics[f"{name}/{suffix}"] for suffix in BESIDE if f"{name}/{suffix}" in metrics}
        found.append(Measure(name, value, beside, metrics.get(f"{ORIGINAL}{name}")))
    return found


def better(name: str) -> str | None:
    """`higher`, `lower` or None, where neither is better or nobody knows."""
    name = name.removeprefix(ORIGINAL)
    ways = (("higher", HIGHER), ("lower", LOWER))
    found = [(len(start), way) for way, starts in ways for start in starts if name.startswith(start)]
    return max(found)[1] if found else None


# ---- cases ------------------------------------------------------------------------------------------------------------


def read_cases(folder: Path) -> tuple[list[Case], int]:
    """The clips of cases.jsonl and the number of lines that are none; older results have a few videos only."""
    path = folder / "cases.jsonl"
    if not path.is_file():
        videos = sorted((folder / "videos").glob("*.mp4"))
        return [Case(video.stem, "", {}, {"video": video}) for video in videos], 0
    found, unreadable = [], 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                found.append(_case(folder, json.loads(line)))
            except (ValueError, TypeError, KeyError, RecursionError):
                unreadable += 1
    return found, unreadable


def _case(folder: Path, row: Mapping[str, Any]) -> Case:
    files = {}
    for name in ("video", "original", "plan", "timeline", "graph"):
        if row.get(name):
            path = folder / str(row[name])
            if "\0" not in str(path) and path.is_file():
                files[name] = path
    scores = row.get("scores") if isinstance(row.get("scores"), Mapping) else {}
    return Case(
        key=str(row["key"]),
        caption=str(row.get("caption") or ""),
        scores={str(n): float(v) for n, v in scores.items() if _is_number(v)},
        files=files,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def ranked(cases: list[Case]) -> tuple[list[Case], list[str]]:
    """From worst to best by the mean rank over scores of which one knows what is better, and the names of these scores."""
    names = sorted({name for case in cases for name in case.scores if better(name)})
    sums, counts = dict.fromkeys(range(len(cases)), 0.0), dict.fromkeys(range(len(cases)), 0)
    for name in names:
        sign = 1 if better(name) == "higher" else -1
        having = [(sign * case.scores[name], i) for i, case in enumerate(cases) if name in case.scores]
        below: dict[float, list[int]] = {}
        for value, i in having:
            below.setdefault(value, []).append(i)
        place = 0
        for value in sorted(below):  # equal scores share the middle of their ranks
            for i in below[value]:
                sums[i] += (place + len(below[value]) / 2) / len(having)
                counts[i] += 1
            place += len(below[value])
    scored = [i for i in sums if counts[i]]
    if not scored:
        return cases, []
    return [cases[i] for i in sorted(scored, key=lambda i: (sums[i] / counts[i], cases[i].key))], names


# ---- runs -------------------------------------------------------------------------------------------------------------


def read_lineage(run: Path) -> list[Ancestor]:
    """The run and those it began with, each once, in the order of their depth first."""
    found: list[Ancestor] = []
    _climb(Run(run), {}, 0, found, set())
    return found


def _climb(run: Run, gave: Mapping[str, Any], depth: int, found: list[Ancestor], seen: set[Path]) -> None:
    try:
        info = run.info
    except RunError as error:
        info = {"unreadable": error.got}
    info = info if isinstance(info, Mapping) else {}
    found.append(Ancestor(run, info, depth, gave))
    place = run.folder.absolute()
    if place in seen or depth >= DEEPEST:
        return
    seen.add(place)
    parents: dict[str, list[Mapping[str, Any]]] = {}
    for entry in info.get("lineage") or []:
        if isinstance(entry, Mapping) and entry.get("run"):
            parents.setdefault(str(entry["run"]), []).append(entry)
    for name, entries in parents.items():
        networks = ", ".join(str(entry.get("network")) for entry in entries)
        parent = Path(name) if (Path(name) / "run.json").is_file() else run.folder.parent / Path(name).name
        _climb(Run(parent), {**entries[0], "network": networks}, depth + 1, found, seen)


def results_of(run: Run) -> list[Result]:
    """Every evaluation of a run that can be read."""
    found = []
    for path in sorted((run.folder / "evaluation").glob("*/metrics.json")):
        try:
            found.append(read_result(path.parent))
        except DataError:
            continue
    return found


def read_curves(path: Path, *, points: int) -> dict[str, list[tuple[float, float]]]:
    """By name (step, value) from a metrics.csv, averaged to at most so many points each."""
    columns: dict[str, list[tuple[float, float]]] = {}
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                step = _float(row.pop("step", None))
                for name, cell in row.items():
                    value = _float(cell)
                    if name and step is not None and value is not None:
                        columns.setdefault(name, []).append((step, value))
    except (OSError, csv.Error):
        return {}
    return {name: _thinned(rows, points) for name, rows in columns.items() if len(rows) > 1}


def _float(cell: Any) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _thinned(rows: list[tuple[float, float]], points: int) -> list[tuple[float, float]]:
    size = -(-len(rows) // points)
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [(sum(s for s, _ in group) / len(group), sum(v for _, v in group) / len(group)) for group in groups]
