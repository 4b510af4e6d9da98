"""Who comes back: decided on what the controller says, by the first process alone."""

import logging
import os
import signal

import pytest

from vdm.errors import ConfigError, RunError
from vdm.slurm import job

RUNNING = "JobId=7 JobState=RUNNING Reason=None Requeue=1 Restarts=0 BatchFlag=1"


@pytest.fixture
def controller(tmp_path, monkeypatch):
    """A scontrol that tells what a test wants it to, and notes what was asked of it."""
    asked = tmp_path / "asked"

    def say(*answers, requeue="exit 0"):
        for number, answer in enumerate(answers):
            (tmp_path / f"answer-{number}").write_text(answer)
        (tmp_path / "scontrol").write_text(
            f'#!/bin/bash\ncd {tmp_path}\necho "$@" >> asked\nif [ "$1" = requeue ]; then {requeue}; fi\n'
            f"n=$(($(grep -c show asked) - 1)); last={len(answers) - 1}; cat answer-$((n < last ? n : last))\n"
        )
        (tmp_path / "scontrol").chmod(0o755)
        return lambda: [
            line for line in (asked.read_text().splitlines() if asked.exists() else []) if "requeue" in line
        ]

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(job, "PAUSE", 0.01)
    return say


def test_a_running_job_is_requeued(controller):
    requeued = controller(RUNNING)
    with pytest.raises(SystemExit) as left:
        job.leave(signal.SIGUSR1)
    assert left.value.code == job.COMES_BACK
    assert requeued() == ["requeue 7"]


def test_the_first_process_alone_asks(controller, monkeypatch):
    requeued = controller(RUNNING)
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(SystemExit) as left:
        job.leave(signal.SIGUSR1)
    assert left.value.code == 0  # another would have srun end the first one before it has asked
    assert requeued() == []


def test_ctrl_c_means_the_end(controller):
    requeued = controller(RUNNING)
    with pytest.raises(SystemExit) as left:
        job.leave(signal.SIGINT)
    assert left.value.code == 130
    assert requeued() == []


def test_requeued_already(controller):
    requeued = controller(RUNNING.replace("Restarts=0", "Restarts=1").replace("RUNNING", "COMPLETING"))
    assert job.requeue()
    assert requeued() == []


def test_what_was_cancelled_stays_so(controller):
    """SLURM would start it again: scontrol requeue takes jobs that are ending."""
    requeued = controller(RUNNING.replace("RUNNING", "COMPLETING"))
    with pytest.raises(SystemExit) as left:
        job.leave(signal.SIGTERM)
    assert left.value.code == 143
    assert requeued() == []


def test_out_of_time_is_no_cancelling(controller):
    requeued = controller(RUNNING.replace("RUNNING", "COMPLETING").replace("Reason=None", "Reason=TimeLimit"))
    assert job.requeue()
    assert requeued() == ["requeue 7"]


def test_a_busy_controller_is_asked_again(controller, tmp_path):
    busy = "if [ -e was ]; then exit 0; fi; touch was; echo 'Unable to contact slurm controller' >&2; exit 1"
    requeued = controller(RUNNING, requeue=busy)
    assert job.requeue()
    assert len(requeued()) == 2


def test_where_requeueing_is_not_allowed_it_says_so(controller, caplog):
    requeued = controller(RUNNING.replace("Requeue=1", "Requeue=0"), requeue="echo 'disabled' >&2; exit 1")
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as left:
        job.leave(signal.SIGUSR1)
    assert left.value.code == 138
    assert len(requeued()) == 1
    assert "disabled" in caplog.text
    assert "same command" in caplog.text


def test_interactive_jobs_are_left_alone(controller):
    requeued = controller(RUNNING.replace("BatchFlag=1", "BatchFlag=0"))
    assert not job.requeue()
    assert requeued() == []


def test_a_restarted_job_waits_for_what_is_left_of_itself(controller, monkeypatch):
    attempts = []

    def lock():
        attempts.append(1)
        if len(attempts) < 3:
            raise RunError("this run is being trained already", got="process 1 on n1")
        return "held"

    with pytest.raises(RunError):  # first start: somebody else's
        job.patiently(lock)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert job.patiently(lock) == "held"


def test_tasks_and_devices(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    job.has_the_tasks(devices=3, num_nodes=2)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    job.has_the_tasks(devices=2, num_nodes=2)
    job.has_the_tasks(devices=[0, 1], num_nodes=2)
    job.has_the_tasks(devices="auto", num_nodes=2)
    with pytest.raises(ConfigError) as raised:
        job.has_the_tasks(devices=1, num_nodes=2)
    assert "--ntasks-per-node=1" in str(raised.value)


@pytest.mark.parametrize(
    ("listed", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[03-08],m1", "n03"), ("gpu-a[1,4-6]", "gpu-a1"), ("a-1-[2]", "a-1-2")],
)
def test_first_node(listed, first):
    assert job._first_node(listed) == first


def test_tasks_of_srun_are_named_like_those_of_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    given = {
        "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123",
        "SLURM_STEP_NODELIST": "n[1-2]",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    job.name_processes()
    named = [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
    assert named == ["3", "4", "1", "n1", "15123"]
