"""hydra/launcher=slurm: a sweep as one job array. It is submitted, nothing waits for it, and jobs are this very command.

A job's processes are started by srun, one for each device, with the overrides of its point of the sweep. So it takes several
devices and nodes, and can be given by hand as well. (Hydra's own launcher for SLURM stays until all jobs have ended, takes the
signals that training needs, and sends pickled functions.)
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vdm import config as checking
from vdm import runs, sweeps
from vdm.errors import ConfigError
from vdm.slurm import after, queue
from vdm.slurm.script import KEY, Job, Settings, Shape, render

WAITS = ("optuna", "ax", "nevergrad")  # sweepers that need the result of a job to choose the next


class SlurmLauncher(Launcher):
    """Hydra makes it by the name in hydra_plugins/; what it may be told is `Settings`."""

    def __init__(self, **options: Any):
        self.options = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in options.items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config
        target = f"{Settings.__module__}.{Settings.__qualname__}"
        checking.check_resolved({KEY: {"_target_": target, **self.options}})
        self.settings = Settings(**self.options)
        self.settings.check()
        sweeper = str(config.hydra.sweeper._target_)
        if any(name in sweeper.lower() for name in WAITS):
            raise ConfigError("this sweeper waits for results, and submitting does not", key="hydra/sweeper", got=sweeper,
                              remedy="leave it out, or leave out hydra/launcher=slurm")  # fmt: skip
        if not self.settings.dry_run:
            queue.require()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        if initial_job_idx == 0:
            asked = Path(self.settings.folder).absolute()
            self.sweep = asked if self.settings.dry_run else _claimed(asked)
        try:
            self._launch(job_overrides, initial_job_idx, self.sweep)
        finally:
            for folder in {Path(str(self.config.hydra.sweep.dir)).absolute(), self.sweep}:
                if not any(folder.glob("*/")):  # made by Hydra and not used, or for what was refused or only looked at
                    _forget(folder)
        return []

    def _launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int, sweep: Path) -> None:
        root = Path(str(OmegaConf.select(self.config, "paths.output_root") or "outputs")).absolute()
        awaited = after.resolve(self.settings.after, root)
        jobs, runs_of = [], {}
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            composed = self._composed(number, overrides)
            runs_of[number] = self._look(composed, waits=bool(awaited.folders or awaited.dependency))
            given = [*filter_overrides(overrides), f"hydra.run.dir={_quoted(sweep / str(number))}"]
            jobs.append(Job(number, given, sweep / str(number), self._shape(composed)))
        _check_distinct([run for run in runs_of.values() if run is not None])
        for _, alike in itertools.groupby(sorted(jobs, key=lambda job: job.shape), key=lambda job: job.shape):
            self._submit(list(alike), runs_of, awaited, sweep)

    def _composed(self, number: int, overrides: Sequence[str]) -> DictConfig:
        composed = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(composed):
            composed.hydra.job.id, composed.hydra.job.num = str(number), number
        return composed

    def _look(self, composed: DictConfig, *, waits: bool) -> str | None:
        """Say now what would stop the job; returns the folder of its run, where that is known.

        One that waits may need runs and data that are not there yet.
        """
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(composed)
        try:
            task = copy.deepcopy(composed)
            with read_write(task), open_dict(task):
                del task["hydra"]
            self.task.look(task, waits=waits)
        finally:
            HydraConfig.instance().cfg = before
        if OmegaConf.select(task, "stage.name") is None or (waits and OmegaConf.select(task, "run.id") is None):
            return None
        settings = {"paths": {"output_root": str(task.paths.output_root)}, "run": {"id": task.run.id}}
        if task.run.id is None:
            settings = checking.resolve(task)
        return str(runs.locate(settings, stage=str(task.stage.name), data=str(task.data.name)).folder)

    def _shape(self, composed: DictConfig) -> Shape:
        trainer, settings = composed.get("trainer"), self.settings
        devices = 1 if trainer is None else trainer.devices
        tasks = settings.tasks_per_node or (len(devices) if OmegaConf.is_list(devices) else devices)
        if not str(tasks).isdigit() or int(tasks) < 1:
            raise ConfigError("a job asks for a number of devices", key="trainer.devices", got=tasks, allowed="1, 2, 4, ...",
                              remedy="set trainer.devices=<devices of a node>")  # fmt: skip
        accelerator = "auto" if trainer is None else str(trainer.accelerator)
        gpus = settings.gpus if settings.gpus != "auto" else 0 if accelerator == "cpu" else int(tasks)
        return Shape(nodes=1 if trainer is None else int(trainer.num_nodes), tasks=int(tasks), gpus=int(gpus))

    def _submit(self, jobs: list[Job], runs_of: dict[int, str | None], awaited: after.Awaited, sweep: Path) -> None:
        program = _program()
        only = runs_of[jobs[0].number] if len(jobs) == 1 else None
        name = self.settings.name or (Path(only).name if only else Path(program[-1]).stem)
        script = render(
            self.settings,
            jobs,
            name=name,
            program=program,
            python=sys.executable,
            directory=Path.cwd(),
            sweep=sweep,
            dependency=awaited.dependency,
            looks=bool(awaited.folders),
        )
        if self.settings.dry_run:
            sys.stdout.write(script)
            return
        path = sweep / f"jobs-{jobs[0].number}.sbatch"
        runs.write_atomically(path, script)
        for job in jobs:
            shown = [word for word in job.overrides if not word.startswith("hydra.")]
            sweeps.ask(job.folder, name=name, overrides=shown, run=runs_of[job.number], after=awaited.folders)
        try:
            number = queue.submit(path)
        except ConfigError:
            for job in jobs:
                shutil.rmtree(job.folder)
            raise
        sweeps.submitted(
            sweep, program=shlex.join(program), jobs={job.number: f"{number}_{job.number}" for job in jobs}
        )
        shape = jobs[0].shape
        count = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs, each"
        processes = f"{shape.nodes} x {shape.tasks} " + ("process" if shape.nodes * shape.tasks == 1 else "processes")
        waiting = f", after {awaited.dependency}" if awaited.dependency else ""
        sys.stdout.write(
            f"submitted {number}: {count} with {processes} and {shape.gpus or 'no'} GPUs a node{waiting}\n"
            f"  folder: {sweep}\n"
            f"  queue:  squeue --jobs {number}\n"
            f"  log:    tail -F {jobs[0].folder / sweeps.LOG}\n"
            f"  table:  python -m vdm.sweeps {sweep}\n"
        )
        sys.stdout.flush()


def _check_distinct(folders: list[str]) -> None:
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        remedy = "leave out run.id; or give each its own: run.id=a,b"
        raise ConfigError("these jobs would all be one run", key="run.id", got=Path(twice).name, remedy=remedy)


def _claimed(sweep: Path) -> Path:
    """Hydra names the folder by the second; of two sweeps in the same one the later gets another."""
    for number in itertools.count(1):
        folder = sweep if number == 1 else sweep.with_name(f"{sweep.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), (folder / sweeps.SUBMITTED).open("x"):
            return folder
    raise AssertionError("counting does not end")


def _quoted(path: Path) -> str:
    """For the grammar of Hydra."""
    text = str(path)
    return text if re.fullmatch(r"[\w/.:+-]+", text) else "'" + text.replace("'", "\\'") + "'"


def _program() -> list[str]:
    """What follows the interpreter in this command, without its arguments."""
    words = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
    if "-m" in words:
        return words[words.index("-m") :][:2]
    return [str(Path(sys.argv[0]).absolute())]


def _forget(sweep: Path) -> None:
    (sweep / "multirun.yaml").unlink(missing_ok=True)
    if (sweep / sweeps.SUBMITTED).exists() and not (sweep / sweeps.SUBMITTED).stat().st_size:
        (sweep / sweeps.SUBMITTED).unlink()
    for folder in (sweep, sweep.parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
