"""Jobs that wait for others: `hydra.launcher.after` names what must be done before, and a job looks again when it starts.

SLURM's afterok would let a job wait for ever when one that it needs has failed, and nobody would be told. So jobs wait until
those before them have ended in whatever way, which a requeue is not, and say here what is missing:
python -m vdm.slurm.after <folder of a job>.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vdm import sweeps
from vdm.errors import RunError, UserError, suggest
from vdm.runs import Run

KEY = "hydra.launcher.after"
SLOW_DISK = 60.0  # seconds until a file that another node wrote must be seen here


@dataclass(frozen=True)
class Awaited:
    """What SLURM is told, and the jobs whose outcome is looked at."""

    dependency: str
    folders: list[str]


def resolve(wanted: Sequence[int | str], output_root: Path) -> Awaited:
    """Each is the number of a job, a run, the name of a job, or the folder of a sweep."""
    clauses: dict[str, list[str]] = {"afterany": [], "afterok": []}
    folders: list[Path] = []
    for each in map(str, wanted):
        if each.replace("_", "").isdigit():
            clauses["afterok"].append(each)
            continue
        found = _jobs(each, output_root)
        folders += found
        clauses["afterany"] += [job for folder in found if (job := sweeps.noted(folder).get("job")) is not None]
    text = [f"{kind}:{':'.join(dict.fromkeys(jobs))}" for kind, jobs in clauses.items() if jobs]
    return Awaited(",".join(text), [str(folder) for folder in folders])


def _jobs(wanted: str, output_root: Path) -> list[Path]:
    """Folders of the jobs that are not done yet."""
    if (Path(wanted) / sweeps.SUBMITTED).is_file():
        return [folder.absolute() for folder in sweeps.job_folders(Path(wanted)) if not is_done(folder)]
    name = Path(wanted).name
    if Run(output_root / name).state == "complete":
        return []
    newest: dict[str, Path] = {}
    for note in sorted((output_root / "sweeps").glob(f"*/*/{sweeps.ASKED}"), key=lambda path: path.stat().st_mtime):
        known = sweeps.noted(note.parent)
        names = {known.get("name"), Path(known["run"]).name if known.get("run") else None} - {None}
        newest |= dict.fromkeys(names, note.parent)
    if name not in newest:
        remedy = (
            suggest(name, newest) or "submit what is to come before with hydra/launcher=slurm; or give a job's number"
        )
        raise RunError("nothing of this name is complete or was submitted", key=KEY, got=wanted,
                       allowed=list(newest) or f"nothing: no jobs in {output_root / 'sweeps'}", remedy=remedy)  # fmt: skip
    return [] if is_done(newest[name]) else [newest[name].absolute()]


def is_done(folder: Path) -> bool:
    """A job has ended well, or its run is complete whoever completed it."""
    run = sweeps.noted(folder).get("run")
    if run is not None and Run(Path(run)).state == "complete":
        return True
    return sweeps.exit_code(folder) == 0


def check(folder: Path) -> None:
    """That everything the job in this folder waited for has ended well."""
    deadline = time.monotonic() + SLOW_DISK
    for parent in map(Path, sweeps.noted(folder).get("after") or []):
        while not is_done(parent) and sweeps.exit_code(parent) is None and time.monotonic() < deadline:
            time.sleep(1.0)
        if is_done(parent):
            continue
        note, code = sweeps.noted(parent), sweeps.exit_code(parent)
        run = note.get("run")
        how = "it was ended from outside: cancelled, out of time or memory" if code is None else f"exit code {code}"
        raise RunError(
            "what this job was to come after has not ended well",
            key=KEY,
            got=f"{Path(run).name if run else parent} (job {note.get('job')}, {how})",
            remedy=f"see {parent / sweeps.LOG}; submit it again, it goes on, and then this one",
        )


if __name__ == "__main__":
    try:
        check(Path(sys.argv[1]))
    except UserError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(2)
