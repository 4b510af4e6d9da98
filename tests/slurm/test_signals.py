"""A warning reaches a process at any moment, from its first line on, and nobody dies of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IN_JOB = {"SLURM_JOB_ID": "7"}

HOLDING = """
import sys, time
from vdm.slurm import signals
signals.hold()
import subprocess
sleeping = "import time; print('child', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", sleeping], stdout=subprocess.PIPE)
child.stdout.readline()
from multiprocessing import forkserver
forkserver.ensure_running()
print("ready", child.pid, forkserver._forkserver._forkserver_pid, flush=True)
while signals.warned() is None:
    time.sleep(0.01)
print("warned", signals.warned(), child.poll(), flush=True)
child.kill()
"""

INTERRUPTED = """
import time
from vdm.slurm import job, signals
with job.coming_back():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.3)
        print("tidied", flush=True)
"""


def start(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_held_warnings_wait_until_somebody_asks_and_children_survive_them():
    for number in (signal.SIGUSR1, signal.SIGTERM):
        process = start(HOLDING, **IN_JOB)
        _, child, server = process.stdout.readline().split()
        for pid in (int(child), int(server), process.pid):  # SLURM sends it to all of a step
            os.kill(pid, number)
        out, err = process.communicate(timeout=30)
        assert out.split() == ["warned", str(int(number)), "None"], err
        assert process.returncode == 0


def test_another_signal_may_be_chosen():
    process = start(HOLDING, **IN_JOB, VDM_WARNING_SIGNAL="USR2")
    process.stdout.readline()
    process.send_signal(signal.SIGUSR2)
    out, err = process.communicate(timeout=30)
    assert out.split()[:2] == ["warned", str(int(signal.SIGUSR2))], err


def test_outside_of_a_job_nothing_is_changed():
    code = "from vdm.slurm import signals; signals.hold(); import signal; print(signal.pthread_sigmask(0, ()))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_program_that_can_stop_anywhere_is_interrupted_and_asks_to_come_back(tmp_path):
    asked = tmp_path / "asked"
    fake = tmp_path / "scontrol"
    fake.write_text(
        f'#!/bin/bash\nif [ "$1" = requeue ]; then echo "$2" >> {asked}; else echo "JobState=RUNNING BatchFlag=1"; fi\n'
    )
    fake.chmod(0o755)
    array = {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = start(INTERRUPTED, **IN_JOB, **array)
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # in the middle of its tidying up
    out, err = process.communicate(timeout=30)
    assert out.strip() == "tidied", err
    assert process.returncode == 75
    assert asked.read_text() == "5_2\n"
    assert "Traceback" not in err
