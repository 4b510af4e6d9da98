"""One fault and what is compared with it: the small chain, its processes, what they leave, and the verdict."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from vdm import checkpoint
from vdm.runs import DAMAGED, Run

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 900.0  # seconds a process may take; on a processor of its own nothing here needs a hundredth of it
FORK = multiprocessing.get_context("fork")  # what is imported once need not be imported again for every fault
RECOVERED, REFUSED = "recovered", "refused, then same"
HARMLESS = (RECOVERED, REFUSED)
HARM = ("lost", "corrupt", "silently other", "hung", "traceback", "not as expected")

SMALL = [
    "data=shapes", "trainer=cpu", "data.num_workers=0", "data.batch_size=4", "data.val_clips=4", "run.id=it",
    "trainer.log_every_n_steps=1", "callbacks.checkpoint.every=2", "callbacks.checkpoint.finish_batches=1",
    "callbacks.validation.every=4", "callbacks.samples.every=0", "data.cache.pause=0.01",
]  # fmt: skip
STAGES = {
    "autoencoder": [
        "stage=autoencoder", "autoencoder=tiny", "autoencoder.channels=16", "stage.accumulate=1", "stage.loss.perceptual=null",
        "stage.loss.adversarial=null", "trainer.max_steps=8",
    ],
    "vdm": [
        "stage=vdm", "backbone=tiny", "backbone.channels=8", "backbone.norm_groups=4", "backbone.head_width=8",
        "condition.text.encoder.width=16", "condition.text.encoder.depth=1", "condition.text.encoder.heads=2",
        "stage.cached=null", "trainer.max_steps=6",
    ],
}  # fmt: skip
SAMPLE = ["prompt='A red circle moves to the left.'", "num=4", "seed=3", "sampler.num_steps=2", "batch_size=1"]


@dataclass
class World:
    """The data, and runs that nothing happened to, by what was asked of them."""

    folder: Path
    references: dict[Any, Any] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.folder / "datasets"

    def prepare(self) -> None:
        sizes = ("num_train=96", "num_val=8", "num_test=4", "num_heldout=4")
        settings = [f"data.source.{size}" for size in sizes] + ["data.store.samples_per_shard=16", "num_workers=1"]
        command = [sys.executable, "-m", "data.prepare", "data=shapes", f"paths.data_root={self.data}", *settings]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)

    def reference(self, trial: Trial, key: Any, make: Callable[[Trial], None]) -> Any:
        """What comes out when nothing happens."""
        key = (trial.stage, key)
        if key not in self.references:
            name = "-".join(map(str, key)).replace(" ", "_")
            clean = Trial(self, self.folder / "undisturbed" / name, trial.stage, more=trial.more)
            if clean.run.state != "complete":  # of an earlier command in this folder
                make(clean)
            assert not any(clean.codes), f"the undisturbed run ended with {clean.codes}: {clean.said()}"
            self.references[key] = clean.result()
        return self.references[key]

    def undisturbed(self, stage: str) -> Path:
        """The run that others begin with."""
        self.reference(Trial(self, self.folder, stage), "plain", lambda clean: clean.train())
        return self.folder / "undisturbed" / f"{stage}-plain" / "it"


@dataclass
class Trial:
    """One command, given until it is done."""

    world: World
    output: Path
    stage: str
    more: list[str] = field(default_factory=list)
    codes: list[int | None] = field(default_factory=list)
    made: Path | None = None  # what sampling wrote

    @property
    def run(self) -> Run:
        return Run(self.output / "it")

    def train(self, inject: Callable[[], None] | None = None, *more: str, **how: Any) -> int | None:
        """Give the command; its exit code, None where it had to be ended."""
        (code,) = wait([self.start(inject, *more, **how)])
        self.codes.append(code)
        return code

    def start(
        self,
        inject: Callable[[], None] | None = None,
        *more: str,
        environment: dict | None = None,
        said: Path | None = None,
    ) -> Any:
        parent = [f"init.autoencoder={self.world.undisturbed('autoencoder')}"] if self.stage == "vdm" else []
        paths = [f"paths.data_root={self.world.data}", f"paths.output_root={self.output}"]
        given = {
            text.partition("=")[0]: text for text in [*SMALL, *STAGES[self.stage], *parent, *paths, *self.more, *more]
        }
        return self._begin("train", list(given.values()), inject, environment, said)

    def sample(self, inject: Callable[[], None] | None = None) -> int | None:
        self.made = self.output / "videos"
        words = [f"run={self.world.undisturbed('vdm')}", *SAMPLE, f"output={self.made}"]
        (code,) = wait([self._begin("sample", words, inject)])
        self.codes.append(code)
        return code

    def _begin(
        self,
        program: str,
        words: list[str],
        inject: Callable | None,
        environment: dict | None = None,
        said: Path | None = None,
    ) -> Any:
        self.output.mkdir(parents=True, exist_ok=True)
        said = said or self.output / "said.txt"
        process = FORK.Process(target=_child, args=(program, words, inject, environment, said))
        process.start()
        return process

    def said(self) -> str:
        path = self.output / "said.txt"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def result(self) -> Any:
        """Everything that must be the same."""
        if self.made is not None:
            return {path.name: path.read_bytes() for path in sorted(self.made.glob("*.mp4"))}
        files = checkpoint.read_manifest(self.run.last_checkpoint())["files"]
        weights = {name: fact for name, fact in files.items() if name.endswith(".safetensors")}
        return weights, _numbers(self.run.folder / "metrics.csv")

    def verdict(self, reference: Any, expected: Sequence[int]) -> str:
        """What became of it. `expected` are the exit codes with which the disturbed command may end."""
        if None in self.codes:
            return "hung"
        if "Traceback" in self.said():
            return "traceback"
        if self.codes[-1] != 0 or (self.made is None and self.run.state != "complete"):
            return "lost"
        if any(code not in expected for code in self.codes[:-1]):
            return "not as expected"
        if self.made is None and any(checkpoint_damage(folder) for folder in self.run.checkpoints()):
            return "corrupt"
        if self.result() != reference or self._leftovers():
            return "silently other"
        return REFUSED if 2 in self.codes else RECOVERED

    def _leftovers(self) -> list[str]:
        if self.made is not None:
            return [path.name for path in self.made.iterdir() if path.name.startswith(".")]
        names = [path.name for path in (self.run.folder / "checkpoints").iterdir()]
        return [name for name in names if not name.startswith(("step-", DAMAGED))]


checkpoint_damage = checkpoint.damage  # the judge keeps it when --sabotage takes it from the judged


def _child(program: str, words: list[str], inject: Callable | None, environment: dict | None, said: Path) -> None:
    sys.stderr = sys.stdout = open(said, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - until the process ends
    os.dup2(sys.stderr.fileno(), 2)
    server = forkserver._forkserver  # the parent's: a process of its own would not have it
    server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
    os.environ.update(environment or {})
    os.chdir(ROOT)
    sys.argv = [f"{program}.py", *words]
    from vdm.launch import launch

    if inject is not None:
        inject()
    if program == "sample":
        from vdm.sampling.command import sample

        launch(sample, "sample")
    else:
        from vdm import training

        launch(training.train, "train")


def wait(processes: Sequence[Any], limit: float = LIMIT) -> list[int | None]:
    """Exit codes; None for one that had to be ended."""
    deadline = time.monotonic() + limit
    codes = []
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
        codes.append(process.exitcode)
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes


def _numbers(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]
