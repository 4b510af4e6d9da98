"""What is asked of SLURM for a sweep."""

import subprocess
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vdm.errors import ConfigError
from vdm.launch import CONF
from vdm.slurm.script import Job, Settings, Shape, render, seconds

SWEEP = Path("/runs/a sweep")


def settings(**changed):
    given = OmegaConf.to_container(OmegaConf.load(CONF / "hydra" / "launcher" / "slurm.yaml"))
    return Settings(**{name: value for name, value in given.items() if name != "_target_"} | changed)


def script(*, jobs=None, dependency="", **changed):
    jobs = jobs or [Job(0, ["seed=0"], SWEEP / "0", Shape(1, 1, 1)), Job(1, ["seed=1"], SWEEP / "1", Shape(1, 1, 1))]
    return render(
        settings(**changed),
        jobs,
        name="train",
        program=["/code/train.py"],
        python="/env/bin/python",
        directory=Path("/here"),
        sweep=SWEEP,
        dependency=dependency,
        looks=False,
    )


def asked(text):
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH --")]
    return dict(line.partition("=")[::2] for line in lines)


def test_what_is_asked_for():
    options = asked(
        script(partition="gpu", time="2-0", mem="64G", parallel=4, gpu_type="a100", dependency="afterany:7")
    )
    assert options == {
        "job-name": "train", "array": "0-1%4", "nodes": "1", "ntasks-per-node": "1", "cpus-per-task": "8",
        "gres": "gpu:a100:1", "mem": "64G", "time": "2-0", "partition": "gpu", "signal": "USR1@120",
        "dependency": "afterany:7", "output": "'/runs/a sweep/%a/log.txt'", "open-mode": "append", "requeue": "",
    }  # fmt: skip


def test_several_nodes_and_no_gpus():
    options = asked(script(jobs=[Job(3, [], SWEEP / "3", Shape(2, 4, 0))], requeue=False, lines=["--exclusive"]))
    assert (options["nodes"], options["ntasks-per-node"], options["array"]) == ("2", "4", "3")
    assert "gres" not in options
    assert "no-requeue" in options
    assert "exclusive" in options


def test_each_job_gets_its_own_words(tmp_path):
    """Run by bash, with programs that say what they were given."""
    odd = ["a='x y'", "b=[1,2]", 'c="$HOME"', "d=`ls`", "e=it\\'s"]
    sweep = tmp_path / "odd $folder"
    jobs = [Job(n, [*odd, f"seed={n}"], sweep / str(n), Shape(1, 1, 0)) for n in (0, 1, 5)]
    for job in jobs:
        job.folder.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name, text in {
        "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
        "scontrol": "echo n7",
        "python": 'if [ "$1" = "-m" ]; then [ "$2" = vdm.slurm.after ]; exit; fi; printf "%s\\n" "$@" "$MASTER_ADDR"; exit 4',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    text = render(
        settings(),
        jobs,
        name="train",
        program=["train.py"],
        python=str(tmp_path / "bin" / "python"),
        directory=tmp_path,
        sweep=sweep,
        dependency="",
        looks=True,
    )
    assert asked(text)["array"] == "0-1,5"
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "5", "SLURM_JOB_NODELIST": "n[7-8]",
        "SLURM_CPUS_PER_TASK": "8",
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["train.py", *odd, "seed=5", "n7"], done.stderr
    assert done.returncode == 4
    assert (sweep / "5" / "exit_code").read_text().strip() == "4"


@pytest.mark.parametrize(
    ("time", "expected"),
    [("90", 5400), ("1:30", 90), ("24:00:00", 86400), ("7-0", 604800), ("1-12:30", 131400), ("0-0:0:5", 5)],
)
def test_time_limits(time, expected):
    assert seconds(time) == expected
    settings(time=time, signal_seconds=1).check()


@pytest.mark.parametrize(
    "changed",
    [
        {"time": "tomorrow"},
        {"time": "1:2:3:4"},
        {"time": 1},  # a minute, and a warning two minutes before
        {"mem": "64 GB"},
        {"gpus": "two"},
        {"gpus": -1},
        {"signal": "KILL"},
        {"lines": ["mail-type=FAIL"]},
    ],
)
def test_what_cannot_be_asked_for(changed):
    with pytest.raises(ConfigError) as raised:
        settings(**changed).check()
    assert raised.value.key.startswith("hydra.launcher.")
