"""hydra/launcher=slurm as it is typed, where there is no SLURM."""

import os
import subprocess
import sys

import pytest
from clusters import LAUNCHER, ROOT, SMALL

from vdm.slurm import launcher


@pytest.fixture
def call(shapes_root, tmp_path):
    def run(*words, sweep=True):
        given = [
            *SMALL,
            *LAUNCHER,
            "trainer.max_steps=1",
            f"paths.data_root={shapes_root}",
            f"paths.output_root={tmp_path}",
        ]
        command = [sys.executable, "train.py", *(["-m"] if sweep else []), *given, *words]
        environment = {**os.environ, "PATH": str(tmp_path)}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
        )

    return run


def test_a_script_is_shown_and_nothing_is_left(call, tmp_path):
    done = call("seed=0,1", "hydra.launcher.dry_run=true", "trainer.devices=2", "hydra.launcher.gpus=auto")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-1\n" in done.stdout
    assert "#SBATCH --ntasks-per-node=2\n" in done.stdout
    assert "--gres" not in done.stdout  # trainer=cpu
    assert f"  1) set -- {' '.join(SMALL[:3])} " in done.stdout
    assert "seed=1" in done.stdout
    assert str(ROOT / "train.py") in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=0,1"], ["sbatch is not on the PATH", "hydra.launcher.dry_run=true"]),
        (["seed=0,1", "hydra.launcher.partitio=gpu"], ["hydra.launcher.partitio", "did you mean 'partition'?"]),
        (["seed=0,1", "run.id=it", "hydra.launcher.dry_run=true"], ["these jobs would all be one run", "run.id"]),
        (["seed=0,-1", "hydra.launcher.dry_run=true"], ["key:     seed", "-1"]),  # before it is submitted
    ],
)
def test_what_is_wrong_is_one_message(call, tmp_path, words, said):
    done = call(*words)
    assert done.returncode == 2, done.stdout
    assert all(text in done.stderr for text in said), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_launcher_needs_a_sweep(call):
    done = call("hydra.launcher.dry_run=true", sweep=False)
    assert done.returncode == 2
    assert "add -m" in done.stderr


def test_two_sweeps_of_one_second_do_not_meet(tmp_path):
    folders = [launcher._claimed(tmp_path / "12-00-00") for _ in range(3)]
    assert [folder.name for folder in folders] == ["12-00-00", "12-00-00-2", "12-00-00-3"]
