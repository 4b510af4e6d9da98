"""A run is a folder with a stable name: the same settings find the same folder again, so a requeued job continues itself.

    <output_root>/<stage>-<data>-<id>/
        config.yaml       the resolved configuration        run.json   state, lineage, versions, data fingerprint
        metrics.csv       everything logged                 samples/   videos made during training
        checkpoints/step-00001000/                          complete or absent, never half

The id is a hash of everything that decides the numbers; where it runs (`paths`, devices, loggers) and for how long
(`trainer.max_steps`) do not change it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdm.errors import ConfigError, RunError, suggest
from vdm.secrets import redact

log = logging.getLogger(__name__)

NOT_IDENTITY = (
    "paths", "logger", "callbacks", "hydra", "resume", "run", "debug", "checks", "experiment", "sampler", "preflight",
)  # fmt: skip
NOT_IDENTITY_OF_TRAINER = (
    "max_steps",
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "log_every_n_steps",
)
NOT_IDENTITY_OF_DATA = (
    "root",
    "num_workers",
    "prefetch",
    "sample_timeout",
    "quarantine",
    "cache",
    "resume_with_other_data",
    "max_broken",
    "backend",
)
DEBUG = "debug"  # the run of conf/debug: a few steps that nobody wants to build on
NOT_IDENTITY_OF_STAGE = ("previews", "cached")
RECORD, BEFORE, DAMAGED = "run.json", ".run.json.before", "damaged-"
STEP = re.compile(r"step-(\d{8})")


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the result."""
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    ignoring = {
        "trainer": NOT_IDENTITY_OF_TRAINER,
        "data": NOT_IDENTITY_OF_DATA,
        "stage": NOT_IDENTITY_OF_STAGE,
    }
    for group, ignored in ignoring.items():
        if isinstance(kept.get(group), Mapping):
            kept[group] = {key: value for key, value in kept[group].items() if key not in ignored}
    return kept


def run_id(config: Mapping[str, Any]) -> str:
    """Eight letters that depend on what decides the result, and on nothing else."""
    kept = deciding(config)
    root = str((config.get("paths") or {}).get("data_root", ""))
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256((text.replace(root, "<data>") if root else text).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Run:
    """One run folder. Reading it needs nothing but the folder."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def info(self) -> dict[str, Any]:
        try:
            return _facts(self.folder / RECORD)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            try:
                before = _facts(self.folder / BEFORE)
            except (OSError, ValueError):
                remedy = "restore run.json from a backup, or start anew with another run.id"
                raise RunError("run.json cannot be read", got=f"{self.folder}: {error}", remedy=remedy) from None
            _say_once(f"{self.folder / RECORD} cannot be read ({error}): what it said before its last change is taken")
            return before

    @property
    def state(self) -> str:
        return self.info.get("state", "absent")

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        folder = self.folder / "checkpoints"
        found = [p for p in folder.iterdir() if STEP.fullmatch(p.name) and p.is_dir()] if folder.is_dir() else []
        return sorted(found)

    def last_checkpoint(self) -> Path | None:
        found = self.checkpoints()
        return found[-1] if found else None

    def update(self, **values: Any) -> None:
        """Change entries of run.json; the file is replaced whole, and what it said before stays beside it."""
        before = self.info
        now = {**before, **values}
        write_atomically(self.folder / BEFORE, _text(before or now))
        write_atomically(self.folder / RECORD, _text(now))

    def set_aside(self, damaged: Path) -> None:
        """Nobody takes it for a checkpoint any more, and whoever wants to know what happened still has it."""
        aside = damaged.with_name(f"{DAMAGED}{damaged.name}")
        shutil.rmtree(aside, ignore_errors=True)
        damaged.rename(aside)

    def damaged_behind(self, folder: Path) -> bool:
        """Whether there are damaged checkpoints of later steps than this one, set aside or about to be."""
        names = [path.name.removeprefix(DAMAGED) for path in folder.parent.iterdir()]
        return any(STEP.fullmatch(name) and name > folder.name for name in names)


def _facts(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__} instead of entries")
    return found


def _text(facts: Mapping[str, Any]) -> str:
    return redact(json.dumps(facts, indent=2, default=str)) + "\n"


@functools.cache
def _say_once(message: str) -> None:
    log.warning("%s", message)


def write_atomically(path: Path, text: str) -> None:
    """The file has the old or the new content, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def locate(config: Mapping[str, Any], *, stage: str, data: str) -> Run:
    """The folder this configuration belongs to."""
    chosen = (config.get("run") or {}).get("id")
    id_is_a_name(id=chosen)
    name = str(chosen) if chosen is not None else f"{stage}-{data}-{run_id(config)}"
    return Run(folder_of(config, name))


def folder_of(config: Mapping[str, Any], name: str) -> Path:
    return Path(config["paths"]["output_root"]).absolute() / name


def lock(run: Run):
    """Keep a second process out of the folder for as long as the returned file stays open."""
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        file = (run.folder / ".lock").open("a+")
    except OSError as error:
        remedy = "set paths.output_root to a folder that can be written"
        raise RunError(
            "the run folder cannot be made", key="paths.output_root", got=f"{run.folder}: {error}", remedy=remedy
        ) from None
    try:
        _take(file)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        remedy = "wait for it, stop it, or give this one a name of its own with run.id=<name>"
        raise RunError(
            "this run is being trained already", key="run.id", got=f"{run.name} by {holder}", remedy=remedy
        ) from None
    except OSError:
        return file  # a file system without locks: nothing to hold on to
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file


def _take(file: Any) -> None:
    """Tries for a second: `is_held` takes it for a moment."""
    for _ in range(10):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(run: Run) -> bool | None:
    """Whether a process trains it, on any machine that shares the file system; None where nobody can tell."""
    try:
        with (run.folder / ".lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def all_runs(output_root: str | Path) -> list[Run]:
    root = Path(output_root)
    return [Run(p.parent) for p in sorted(root.glob("*/run.json"))] if root.is_dir() else []


def _state_of(run: Run) -> str:
    """One run that cannot be read is in nobody else's way."""
    try:
        return run.state
    except RunError as error:
        _say_once(f"{run.name} is left out: {error.what} ({error.got})")
        return "unreadable"


def newest_complete(
    output_root: str | Path,
    stage: str | Sequence[str],
    data: str | None = None,
    *,
    suits: Callable[[Run], bool] = lambda run: True,
) -> Run | None:
    """The newest finished run of a stage, or of one of several, of the same data if there is one. None of debug=..."""
    stages = (stage,) if isinstance(stage, str) else stage
    done = [
        r
        for r in all_runs(output_root)
        if r.name != DEBUG
        and _state_of(r) == "complete"
        and r.info.get("stage") in stages
        and r.last_checkpoint()
        and suits(r)
    ]
    done.sort(key=lambda r: r.info.get("finished", 0.0))
    same = [r for r in done if r.info.get("data") == data]
    return (same or done or [None])[-1]


def find(output_root: str | Path, wanted: str, *, key: str, stage: str | Sequence[str] | None = None) -> Run:
    """A run by folder, by name, or by a part of its name that only one run has; it must hold a complete checkpoint."""
    runs = {run.name: run for run in all_runs(output_root)}
    stages = (stage,) if isinstance(stage, str) else stage
    candidates = [Run(Path(wanted))] if (Path(wanted) / "run.json").exists() else []
    candidates = candidates or ([runs[wanted]] if wanted in runs else [r for n, r in runs.items() if wanted in n])
    if len(candidates) != 1:
        what = "several runs match" if candidates else "there is no such run"
        known = [run.name for run in candidates] or list(runs) or f"nothing: no runs in {output_root}"
        train = f"train one with stage={stages[0] if stages else '<stage>'}, or give the path of a run folder"
        remedy = "write its whole name" if candidates else suggest(wanted, runs) or train
        raise RunError(what, key=key, got=wanted, allowed=known, remedy=remedy)
    run = candidates[0]
    if stages is not None and run.info.get("stage") not in stages:
        raise RunError(
            "this run is of another stage", key=key, got=f"{run.name} (stage={run.info.get('stage')})",
            allowed=" or ".join(stages),
        )  # fmt: skip
    if run.last_checkpoint() is None:
        remedy = "continue it with its own command, or choose another"
        raise RunError("this run holds no complete checkpoint", key=key, got=run.name, remedy=remedy)
    return run


def provenance() -> dict[str, Any]:
    """Where the numbers come from: commit, versions, machine kind. Nothing of the environment's variables."""
    here = Path(__file__).resolve().parents[2]
    names = ("torch", "pytorch-lightning", "hydra-core", "numpy", "av", "einops", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {
        "created": time.time(),
        "commit": _git(here, "rev-parse", "HEAD"),
        "changed": bool(_git(here, "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
    }


def typed(program: str) -> str | None:
    """The command of this process as it was given; None where other code called."""
    words = [Path(word).name for word in sys.orig_argv]
    if program not in words:
        return None
    return shlex.join(["python", program, *map(redact, sys.orig_argv[words.index(program) + 1 :])])


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


# Named by `checks` in conf/: said before anything is built.


def resume_is_possible(*, output_root: str, resume: str) -> None:
    if resume in ("auto", "never") or (Path(str(resume)) / "manifest.json").exists():
        return
    try:
        find(output_root, str(resume), key="resume")
    except RunError as error:
        allowed = "auto, never, the folder of a checkpoint, or a run"
        raise RunError(error.what, key="resume", got=error.got, allowed=allowed, remedy=error.remedy) from None


def id_is_a_name(*, id: str | None) -> None:
    if id is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}", str(id)):
        allowed = "letters, digits, '-', '_' and '.', beginning with a letter or digit, at most 101"
        raise ConfigError("a run id is a folder name", key="run.id", got=repr(id), allowed=allowed)


def output_is_writable(*, output_root: str) -> None:
    """Looks without making anything."""
    folder = Path(output_root).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        problem = "is not a folder" if not folder.is_dir() else "may not be written"
        remedy = "set paths.output_root to a folder that can be written"
        raise ConfigError(
            "runs cannot be written here",
            key="paths.output_root",
            got=f"{output_root}: {folder} {problem}",
            remedy=remedy,
        )
