"""The runs of a folder as rows: what they are, how far they came, where they come from. Any half-written folder is a row too."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vdm.errors import RunError
from vdm.runs import Run, is_held

STATES = ("running", "complete", "interrupted", "dead", "begun", "unreadable")
TAIL = 4096  # bytes of metrics.csv that hold its last line


@dataclass
class Row:
    """One run. `dead` calls itself running and nobody trains it; `begun` has no run.json yet; `unreadable` has a broken one."""

    name: str
    stage: str | None = None
    data: str | None = None
    state: str = "begun"
    step: int | None = None
    max_steps: int | None = None
    best: dict[str, Any] | None = None  # metric, value, step
    parents: list[str] = field(default_factory=list)
    created: float | None = None  # seconds since 1970
    updated: float | None = None
    bytes: int = 0
    checkpoint: str | None = None  # the last complete one
    holder: str | None = None  # who trains it
    command: str | None = None
    problem: str | None = None


def rows(root: Path) -> list[Row]:
    """The oldest first."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and _is_run(p)) if root.is_dir() else []
    return sorted(
        (row_of(Run(folder)) for folder in folders), key=lambda row: (row.created or row.updated or 0, row.name)
    )


def row_of(run: Run) -> Row:
    """Whatever is missing or broken leaves its place empty."""
    row = Row(name=run.name)
    try:
        row.bytes, row.updated = _size_and_time(run.folder)
        last = run.last_checkpoint()
        row.checkpoint = None if last is None else last.name
        info = run.info
    except (RunError, OSError) as error:
        row.state, row.problem = "unreadable", str(error).splitlines()[0]
        return row
    if not isinstance(info, dict):
        row.state, row.problem = "unreadable", "run.json holds no object"
        return row
    held = is_held(run)
    if held:
        row.holder = _first_line(run.folder / ".lock")
    if info:
        row.state = "dead" if info.get("state") == "running" and held is False else str(info.get("state", "begun"))
    row.stage, row.data, row.created = info.get("stage"), info.get("data"), _number(info.get("created"))
    row.command, row.max_steps = info.get("command"), _max_steps(run.folder)
    row.step = _last_step(run.folder) if row.state in ("running", "dead") else None
    row.step = max(filter(lambda x: isinstance(x, int), (row.step, info.get("step"))), default=None)
    row.best = info.get("best") if isinstance(info.get("best"), dict) else None
    lineage = info.get("lineage") if isinstance(info.get("lineage"), list) else []
    named = [str(entry.get("run") or entry.get("source")) for entry in lineage if isinstance(entry, dict)]
    row.parents = list(dict.fromkeys(named))
    return row


def chosen(
    all_rows: Iterable[Row], *, stage: Sequence[str], data: Sequence[str], state: Sequence[str], name: str
) -> list[Row]:
    """Those that fit all that is asked for; what is empty asks for nothing."""
    return [
        row
        for row in all_rows
        if (not stage or row.stage in stage)
        and (not data or row.data in data)
        and (not state or row.state in state)
        and name in row.name
    ]


def in_lineage(found: Sequence[Row]) -> list[tuple[int, Row]]:
    """Each run below the newest of its parents, with its depth."""
    by_name, place = {row.name: row for row in found}, {row.name: number for number, row in enumerate(found)}
    children: dict[str | None, list[Row]] = {}
    for row in found:
        there = [name for name in row.parents if name in by_name and place[name] < place[row.name]]
        children.setdefault(max(there, key=place.__getitem__, default=None), []).append(row)
    ordered: list[tuple[int, Row]] = []

    def add(parent: str | None, depth: int) -> None:
        for row in children.get(parent, []):
            ordered.append((depth, row))
            add(row.name, depth + 1)

    add(None, 0)
    return ordered


def table(found: Sequence[Row], *, now: float | None = None) -> str:
    """For a person."""
    now = time.time() if now is None else now
    lines = [["run", "stage", "data", "state", "step", "best", "parents", "age", "size"]]
    for depth, row in in_lineage(found):
        step = "" if row.step is None else f"{row.step}/{row.max_steps}" if row.max_steps else str(row.step)
        best = "" if row.best is None else f"{row.best.get('metric', '')} {_short(row.best.get('value'))}".strip()
        since = row.updated if row.created is None else row.created
        lines.append(
            [
                "  " * depth + row.name, row.stage or "", row.data or "", row.state, step, best, ", ".join(row.parents),
                "" if since is None else _age(now - since), _size(row.bytes),
            ]
        )  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def as_json(found: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in found], indent=2, default=str)


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("run.json", ".lock", "checkpoints"))


def _size_and_time(folder: Path) -> tuple[int, float]:
    """Bytes of all its files, and when something last changed."""
    total, newest, open_folders = 0, folder.stat().st_mtime, [folder]
    while open_folders:
        try:
            with os.scandir(open_folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        open_folders.append(Path(entry.path))
                        continue
                    fact = entry.stat(follow_symlinks=False)
                    total, newest = total + fact.st_size, max(newest, fact.st_mtime)
        except OSError:  # removed while we look, by a run that tidies up
            continue
    return total, newest


def _last_step(folder: Path) -> int | None:
    """Of metrics.csv, which is ahead of the last checkpoint."""
    try:
        with (folder / "metrics.csv").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    steps = [line.split(",")[0] for line in lines[1:]]
    return int(steps[-1]) if steps and steps[-1].isdigit() else None


def _max_steps(folder: Path) -> int | None:
    """Read without a parser of yaml, which is slow to import: the key is one line, in the one block `trainer`."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    block = f"\n{text}".partition("\ntrainer:\n")[2]
    for line in block.splitlines():
        if not line.startswith(" "):
            break
        key, _, value = line.strip().partition(": ")
        if key == "max_steps" and value.isdigit():
            return int(value)
    return None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[0]
    except (OSError, IndexError):
        return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
