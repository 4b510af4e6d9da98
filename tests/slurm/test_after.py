"""Jobs that wait for others: what SLURM is told, and what is said when one before has failed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vdm import sweeps
from vdm.errors import RunError
from vdm.slurm import after

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(after, "SLOW_DISK", 0.0)
    return tmp_path


def submit(output, sweep, number, *, run=None, job="7", name="x", parents=()):
    folder = output / "sweeps" / sweep / str(number)
    where = None if run is None else str(output / run)
    sweeps.ask(folder, name=name, overrides=["seed=0"], run=where, after=[str(parent) for parent in parents])
    sweeps.submitted(folder.parent, program="train.py", jobs={number: f"{job}_{number}"})
    return folder


def complete(output, run, state="complete"):
    (output / run).mkdir(exist_ok=True)
    (output / run / "run.json").write_text(json.dumps({"state": state}))


def test_numbers_runs_names_and_sweeps(output):
    first, second = (submit(output, "a", number, run=f"run-{number}") for number in (0, 1))
    plans = submit(output, "b", 0, job="8", name="chain-plans")
    assert after.resolve([12, "13_1"], output) == after.Awaited("afterok:12:13_1", [])
    assert after.resolve(["run-1"], output) == after.Awaited("afterany:7_1", [str(second)])
    assert after.resolve(["chain-plans"], output) == after.Awaited("afterany:8_0", [str(plans)])
    found = after.resolve([str(first.parent), "12", "run-0"], output)
    assert found.dependency == "afterany:7_0:7_1,afterok:12"


def test_the_newest_job_of_a_run_counts(output):
    submit(output, "a", 0, run="run", job="7")
    (output / "sweeps" / "a" / "0" / sweeps.EXIT_CODE).write_text("1\n")
    newer = submit(output, "b", 0, run="run", job="9")
    os.utime(newer / sweeps.ASKED, (2e9, 2e9))
    assert after.resolve(["run"], output).dependency == "afterany:9_0"


def test_what_is_complete_is_not_waited_for(output):
    complete(output, "done-by-hand")
    folder = submit(output, "a", 0, name="plans")
    (folder / sweeps.EXIT_CODE).write_text("0\n")
    assert after.resolve(["done-by-hand", "plans"], output) == after.Awaited("", [])


def test_nobody_knows_it(output):
    submit(output, "a", 0, run="autoencoder-shapes-1")
    with pytest.raises(RunError) as raised:
        after.resolve(["autoencoder-shape-1"], output)
    assert "did you mean 'autoencoder-shapes-1'" in str(raised.value)


@pytest.mark.parametrize(
    ("code", "state", "said"),
    [
        ("0", None, None),
        (None, "complete", None),  # somebody completed it by hand
        ("1", "complete", None),
        ("2", "running", "exit code 2"),
        (None, "running", "ended from outside"),
        (None, None, "ended from outside"),
    ],
)
def test_what_a_job_says_of_those_before_it(output, code, state, said):
    parent = submit(output, "a", 0, run="parent")
    if state is not None:
        complete(output, "parent", state)
    if code is not None:
        (parent / sweeps.EXIT_CODE).write_text(f"{code}\n")
    child = submit(output, "b", 0, run="child", parents=[parent])
    if said is None:
        after.check(child)
        return
    with pytest.raises(RunError) as raised:
        after.check(child)
    assert said in str(raised.value)
    assert "parent" in str(raised.value)
    assert str(parent / "log.txt") in str(raised.value)


def test_the_command_that_scripts_call(output):
    parent = submit(output, "a", 0)
    (parent / sweeps.EXIT_CODE).write_text("2\n")
    child = submit(output, "b", 0, parents=[parent])
    command = [sys.executable, "-m", "vdm.slurm.after"]
    assert subprocess.run([*command, str(parent)], cwd=ROOT, check=False).returncode == 0
    done = subprocess.run([*command, str(child)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("RunError: what this job was to come after has not ended well")
