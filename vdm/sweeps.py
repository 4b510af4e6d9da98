"""The jobs of a sweep in one table, while they run and afterwards: python -m vdm.sweeps [<folder of the sweep>]

<sweep>/submitted.json              of jobs that SLURM got: their numbers
<sweep>/<number>/asked.json         the overrides of this job, and what it waits for      started.json   the folder of its run
<sweep>/<number>/log.txt            what it said, over all its restarts (SLURM)           exit_code      when it is over (SLURM)
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vdm.errors import RunError, UserError
from vdm.runs import Run, write_atomically
from vdm.secrets import redact
from vdm.slurm import queue

SUBMITTED, ASKED, STARTED, LOG, EXIT_CODE = "submitted.json", "asked.json", "started.json", "log.txt", "exit_code"
ALWAYS_SHOWN = ("train/loss",)  # beside what was measured by validation
ENDED = ("complete", "done", "failed")

# ---- notes: who writes what is one process for each file ------------------------------------------------------------


def ask(folder: Path, *, name: str, overrides: Sequence[str], run: str | None, after: Sequence[str]) -> None:
    """Of a job that is about to be submitted."""
    content = {"name": name, "overrides": list(overrides), "run": run, "after": list(after)}
    write_atomically(folder / ASKED, json.dumps(content, indent=2) + "\n")


def submitted(sweep: Path, *, program: str, jobs: Mapping[int, str]) -> None:
    before = _read(sweep / SUBMITTED)
    content = {"program": program, "time": time.time(), "jobs": {**before.get("jobs", {}), **jobs}}
    write_atomically(sweep / SUBMITTED, json.dumps(content, indent=2) + "\n")


def started(run: Path) -> None:
    """In a job of a sweep: this is its run, also when it starts again."""
    folder = _own_folder()
    if folder is not None:
        overrides = [word for word in HydraConfig.get().overrides.task if not word.startswith("hydra.")]
        write_atomically(folder / STARTED, json.dumps({"overrides": overrides, "run": str(run)}, indent=2) + "\n")


def failed(error: UserError) -> None:
    """In a job of a sweep: why there is nothing more to come."""
    folder = _own_folder()
    if folder is not None and not (folder / ASKED).exists():  # what SLURM runs ends with a code
        write_atomically(folder / EXIT_CODE, redact(f"2\n{error}\n"))


def pin(cfg: DictConfig) -> None:
    """A job that was started before goes on with its run, also when `auto` would mean another parent by now."""
    folder = _own_folder()
    if folder is None or OmegaConf.select(cfg, "stage.name") is None or OmegaConf.select(cfg, "run.id") is not None:
        return
    run = _read(folder / STARTED).get("run")
    if run is not None and Path(run).parent == Path(str(cfg.paths.output_root)).absolute():
        OmegaConf.update(cfg, "run.id", Path(run).name)


def _own_folder() -> Path | None:
    """Of this process, where it is a job of a sweep."""
    if not HydraConfig.initialized():
        return None
    folder = Path(HydraConfig.get().runtime.output_dir)
    return None if folder == Path.cwd() else folder


def noted(folder: Path) -> dict[str, Any]:
    """All that is known of a job: name, overrides, run, after, and its number in SLURM as `job`."""
    job = _read(folder.parent / SUBMITTED).get("jobs", {}).get(folder.name)
    return {**_read(folder / ASKED), **_read(folder / STARTED), "job": job}


def exit_code(folder: Path) -> int | None:
    try:
        return int((folder / EXIT_CODE).read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return None


def job_folders(sweep: Path) -> list[Path]:
    found = {path.parent for name in (ASKED, STARTED) for path in sweep.glob(f"*/{name}")}
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# ---- the table ------------------------------------------------------------------------------------------------------


def table(sweep: Path) -> list[dict[str, Any]]:
    """A row for each job: number, the overrides that differ, state, step, and the newest value of every metric."""
    folders = job_folders(sweep)
    if not folders:
        remedy = "give the folder that the command of the sweep named, such as outputs/sweeps/2026-01-31_12-00-00"
        raise RunError("no jobs of a sweep are here", got=sweep, remedy=remedy)
    notes = [noted(folder) for folder in folders]
    standings = queue.standings([note["job"] for note in notes if note["job"]])
    given = [dict(word.partition("=")[::2] for word in note.get("overrides", [])) for note in notes]
    keys = dict.fromkeys(key for overrides in given for key in overrides)
    differing = [key for key in keys if len({overrides.get(key) for overrides in given}) > 1]
    rows = []
    for folder, note, overrides in zip(folders, notes, given, strict=True):
        run = _run_of(note, sweep)
        newest = _newest(run.folder / "metrics.csv") if run is not None else {}
        info = run.info if run is not None else {}
        rows.append({
            "job": folder.name,
            **{key: overrides.get(key, "") for key in differing},
            "state": _state(folder, note, info, standings),
            "step": max(int(newest.pop("step", 0)), info.get("step", 0)),
            "run": run.name if run is not None else "",
            **newest,
            **{name: value for name, value in info.get("metrics", {}).items() if not name.startswith("perf/")},
        })  # fmt: skip
    return rows


def _run_of(note: Mapping[str, Any], sweep: Path) -> Run | None:
    if note.get("run") is None:
        return None
    folder = Path(note["run"])
    return Run(folder if folder.is_dir() else sweep.absolute().parents[1] / folder.name)  # where all was moved


def _state(
    folder: Path, note: Mapping[str, Any], info: Mapping[str, Any], standings: Mapping[str, queue.Standing] | None
) -> str:
    if info.get("state") == "complete":
        return "complete"
    code, standing = exit_code(folder), (standings or {}).get(note["job"])
    if standing is not None and standing.state in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"):
        waiting = "" if standing.reason in ("None", "") or standing.state != "PENDING" else f" ({standing.reason})"
        return standing.state.lower() + waiting
    if code is not None:
        return "done" if code == 0 else f"failed ({code})"
    if standing is not None:
        return standing.state.lower()
    if standings is not None and note["job"] is not None:
        return "ended from outside"  # the queue has forgotten it, and it had no time to say anything
    return str(info.get("state", "waiting"))


def _newest(metrics: Path) -> dict[str, float]:
    """The last value in every column. A line that is being written is left out."""
    found: dict[str, float] = {}
    try:
        with metrics.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if None in row.values():
                    continue
                found |= {name: float(value) for name, value in row.items() if value and not name.startswith("perf/")}
    except (OSError, ValueError):
        pass
    return found


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Text for people: a header and rows, without metrics that only machines want."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    facts = names[: names.index("run") + 1]
    metrics = [name for name in names[len(facts) :] if name in ALWAYS_SHOWN or name.startswith("val/")]
    lines = [[*facts, *metrics]]
    for row in rows:
        values = [row.get(name, "") for name in lines[0]]
        lines.append([f"{value:.5g}" if isinstance(value, float) else str(value) for value in values])
    return lines


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    lines = _shown(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        _say("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    ended = sum(str(row["state"]).startswith(ENDED) for row in rows)
    _say(f"{ended} of {len(rows)} have ended")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(sys.stdout, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _newest_sweep(root: Path) -> Path:
    found = sorted(path for path in root.glob("*") if path.is_dir() and job_folders(path))
    if not found:
        raise RunError("there is no sweep here", got=root, remedy="name its folder: python -m vdm.sweeps <folder>")
    return found[-1]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m vdm.sweeps", description="The jobs of a sweep in one table.")
    parser.add_argument("folder", nargs="?", type=Path, help="of the sweep; without one the newest in outputs/sweeps")
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="csv and json have all metrics"
    )
    parser.add_argument("--sort", metavar="COLUMN", help="order the rows by a column, such as val/loss")
    given = parser.parse_args(arguments)
    try:
        rows = table(given.folder or _newest_sweep(Path("outputs") / "sweeps"))
        if given.sort is not None:
            known = dict.fromkeys(name for row in rows for name in row)
            if given.sort not in known:
                raise RunError("no job has this column", key="--sort", got=given.sort, allowed=list(known))
            rows.sort(
                key=lambda row: (given.sort not in row, isinstance(row.get(given.sort), str), row.get(given.sort))
            )
    except UserError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 2
    if given.format == "json":
        _say(json.dumps(rows, indent=2))
    else:
        (_print_table if given.format == "table" else _print_csv)(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
