"""A SLURM cluster of two nodes on this machine, and what tests ask of it and of its jobs."""

import os
import signal
import subprocess
import time
from pathlib import Path

import hydra

from vdm import checkpoint, sweeps, training
from vdm.launch import CONF
from vdm.runs import Run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OF_JOBS = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_STEP_ID", "RANK", "WORLD_SIZE")
SMALL = [
    "stage=autoencoder", "data=shapes", "autoencoder=tiny", "trainer=cpu", "autoencoder.channels=8",
    "stage.accumulate=1", "stage.loss.perceptual=null", "stage.loss.adversarial=null", "data.num_workers=0",
    "data.batch_size=2", "data.val_clips=2", "trainer.log_every_n_steps=1", "callbacks.checkpoint.every=100",
    "callbacks.checkpoint.finish_batches=1", "callbacks.validation.every=0", "callbacks.samples.every=0",
]  # fmt: skip
LAUNCHER = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.time=60"]


class Cluster:
    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items() if name not in OF_JOBS}
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "WANDB_MODE": "offline"}

    def call(self, *command, check=True):
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *command):
        """The folder of the sweep, when it has been submitted."""
        said = self.call(*command)
        assert said.startswith("submitted "), said
        return Path(next(line.split()[1] for line in said.splitlines() if line.strip().startswith("folder:")))

    def facts(self, job):
        words = self.call("scontrol", "show", "job", "-o", job, check=False).split()
        return dict(word.partition("=")[::2] for word in words)

    def lose_daemon(self, node):
        """What runs on the node goes on, and nobody hears of it any more."""
        os.kill(int((self.folder / "run" / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)

    def bring_back(self, node):
        self.call("slurmd", "-N", node)
        until(lambda: "idle" in self.call("sinfo", "--noheader", f"--nodes={node}", "--format=%T"), 60)

    def wait(self, sweep, *, seconds=240):
        """Until all jobs of a sweep have ended. Says what they said if they do not."""
        until(lambda: self.have_ended(sweep), seconds, lambda: f"{self.call('squeue', '--array')}\n{logs(sweep)}")

    def have_ended(self, sweep):
        states = [self.facts(sweeps.noted(folder)["job"]).get("JobState") for folder in sweeps.job_folders(sweep)]
        return all(state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED") for state in states)


def until(condition, seconds, otherwise=lambda: ""):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.2)
    return found


def logs(sweep):
    return "\n".join(f"--- {path}\n{path.read_text()}" for path in sorted(Path(sweep).glob(f"*/{sweeps.LOG}")))


def steps(run: Path) -> int:
    """Rows of its metrics."""
    path = run / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def weights(run: Path) -> dict[str, str]:
    """SHA-256 of all weights it ended with."""
    files = checkpoint.read_manifest(Run(run).last_checkpoint())["files"]
    return {name: fact["sha256"] for name, fact in files.items() if name.endswith(".safetensors")}


def train(*overrides):
    """The same training here, undisturbed."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        training.train(hydra.compose("train", overrides=list(overrides)))
