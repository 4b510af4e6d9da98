"""python evaluate.py compare <a> <b> ...: a table of the numbers of one protocol. Other protocols are refused with what differs.

Each is a run, the folder of an evaluation, or its metrics.json. Exit code 2 where they may not be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm import runs
from vdm.errors import RunError, UserError
from vdm.evaluation.identity import ABSENT, differences

RESULT = "metrics.json"
BESIDE = ("/low", "/high", "/floor", "/matched", "/floor_clips", "/deviation")
REFUSED = 2


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="evaluate.py compare", description=__doc__.split("\n")[0])
    parser.add_argument(
        "result", nargs="+", help="a run, the folder of an evaluation, or its metrics.json; two or more"
    )
    parser.add_argument("--outputs", default="outputs", help="where runs are looked for by name (paths.output_root)")
    parser.add_argument("--protocol", help="of several evaluations of a run the one with this name")
    parser.add_argument(
        "--all", action="store_true", help="intervals, floors and numbers of the original clips as well"
    )
    asked = parser.parse_args(arguments)
    try:
        if len(asked.result) < 2:
            raise RunError("two results or more are compared", key="result", got=asked.result)
        names = [asked.protocol] * len(asked.result)
        found = [read(wanted, asked.outputs, name) for wanted, name in zip(asked.result, names, strict=True)]
        refuse_others(found)
    except UserError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return REFUSED
    sys.stdout.write(table(found, everything=asked.all))
    return 0


def read(wanted: str, outputs: str, protocol: str | None) -> tuple[str, dict[str, Any]]:
    """A title and the result."""
    path = Path(wanted)
    if path.is_dir() and (path / RESULT).is_file():
        path = path / RESULT
    if not path.is_file():
        path = _of_run(wanted, outputs, protocol)
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError("the result cannot be read", key="result", got=f"{path}: {error}") from None
    if not isinstance(result, dict) or not {"id", "decided", "metrics"} <= result.keys():
        remedy = "evaluate again with the same settings: samples that are there are used"
        raise RunError("this result has no id of its protocol", key="result", got=path, remedy=remedy)
    return str(result.get("run") or path.parent.name), result


def _of_run(wanted: str, outputs: str, protocol: str | None) -> Path:
    run = runs.find(outputs, wanted, key="result")
    found = {path.parent.name: path for path in sorted(run.folder.glob(f"evaluation/*/{RESULT}"))}
    if protocol is not None:
        found = {name: path for name, path in found.items() if name == protocol}
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        remedy = f"python evaluate.py protocol={protocol or '<protocol>'} run={run.name}"
        raise RunError("this run was not evaluated", key="result", got=run.name, remedy=remedy)
    raise RunError("this run was evaluated by several protocols", key="result", got=run.name, allowed=sorted(found),
                   remedy=f"--protocol {next(iter(found))}")  # fmt: skip


def refuse_others(found: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """RunError that says what differs, where not all are of one protocol."""
    (title, first), lines = found[0], []
    for other, result in found[1:]:
        if _mark(result) == _mark(first):
            continue
        lines.append(f"{title} ({first['id']}) and {other} ({result['id']}):")
        unlike = differences(first["decided"], result["decided"])
        lines += [f"  {key}: {_said(a)} | {_said(b)}" for key, (a, b) in unlike.items()]
        if not unlike:
            lines.append("  the version of the rules")
    if lines:
        raise RunError("these are numbers of different protocols and may not be compared", key="id",
                       got="\n" + "\n".join(f"           {line}" for line in lines),
                       remedy="evaluate them by one protocol")  # fmt: skip


def table(found: Sequence[tuple[str, Mapping[str, Any]]], *, everything: bool) -> str:
    """A row for each number, a column for each result."""
    names = list(dict.fromkeys(name for _, result in found for name in result["metrics"]))
    if not everything:
        names = [name for name in names if not name.endswith(BESIDE) and not name.startswith("original/")]
    rows = [[found[0][1]["id"], *_apart([title for title, _ in found])]]
    rows += [[name, *(_number(result["metrics"].get(name)) for _, result in found)] for name in names]
    skipped = list(dict.fromkeys(name for _, result in found for name in result.get("skipped", {})))
    rows += [
        [name, *("skipped" if name in result.get("skipped", {}) else "" for _, result in found)] for name in skipped
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines) + "\n"


def _mark(result: Mapping[str, Any]) -> str:
    """Of an id the hash: the name before it is for readers."""
    return str(result["id"]).rpartition("-")[2]


def _apart(titles: Sequence[str]) -> list[str]:
    """Titles that are told apart, also where one run is there twice."""
    return [t if titles.count(t) == 1 else f"{t} ({nth + 1})" for nth, t in enumerate(titles)]


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _said(value: Any) -> str:
    text = value if value == ABSENT else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
