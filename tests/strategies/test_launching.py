"""A job that needs several processes starts them by itself; what happens to one is said once, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vdm.errors import ConfigError, DataError, RunError
from vdm.runs import Run
from vdm.strategies import launching

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


def trainer(**changed):
    return OmegaConf.create({"accelerator": "cpu", "devices": 1, "num_nodes": 1, **changed})


# ---- how many


@pytest.mark.parametrize(("devices", "expected"), [(1, 1), (2, 2), ("3", 3), ("auto", 1), ([0, 2], 2), ("0,1,2,", 3)])
def test_count(devices, expected):
    assert launching.count(trainer(devices=devices)) == expected


@pytest.mark.parametrize("name", ["RANK", "SLURM_STEP_NUM_TASKS"])
def test_who_was_started_among_others_starts_nobody(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    assert launching.count(trainer(devices=2, num_nodes=4)) == 1


def test_a_shell_that_srun_has_opened_is_no_task_among_others(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert launching.count(trainer(devices=2)) == 2


def test_nodes_are_started_by_others():
    with pytest.raises(ConfigError, match="torchrun --nnodes"):
        launching.count(trainer(num_nodes=2))


def test_torchrun_says_how_many(monkeypatch):
    asked = {"devices": "auto", "num_nodes": 1, "strategy": "auto"}
    assert launching.started(asked) == asked
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    found = {"devices": 8, "num_nodes": 2, "strategy": "ddp_find_unused_parameters_true"}
    assert launching.started(asked) == found
    assert launching.started(asked | {"strategy": "x"}) == found | {"strategy": "x"}


# ---- what they do, with programs in the place of training


@pytest.fixture
def programs(monkeypatch):
    """Processes that run these lines, with `folder` and `rank`."""

    def use(*texts):
        def start(folder, rank, processes, port):
            head = f"import json, os, signal, sys, time\nfolder, rank = {str(folder)!r}, {rank}\n"
            return subprocess.Popen([sys.executable, "-c", head + textwrap.dedent(texts[rank])], start_new_session=True)

        monkeypatch.setattr(launching, "_start", start)
        return OmegaConf.create({"seed": 1})

    return use


RESULT = "open(folder + '/result.json', 'w').write('0.25')"


def test_the_result_of_the_first(programs):
    assert launching.run(programs(RESULT, "time.sleep(0.1)"), 2) == 0.25


def test_they_get_the_composed_configuration(programs):
    read = "text = open(folder + '/job.yaml').read(); open(folder + '/result.json', 'w').write(json.dumps(text))"
    assert launching.run(programs(read, ""), 2) == "seed: 1\n"


def test_the_error_of_a_user_is_raised_here(programs, monkeypatch):
    monkeypatch.setattr(launching, "GRACE", 0.5)
    told = {"kind": "DataError", "what": "no clip", "key": "data.root", "got": "[1]", "allowed": None, "remedy": "look"}
    fails = f"open(folder + '/error-1.json', 'w').write({json.dumps(told)!r}); sys.exit(2)"
    begun = time.monotonic()
    with pytest.raises(DataError, match="no clip") as caught:
        launching.run(programs("time.sleep(60)", fails), 2)
    assert (caught.value.key, caught.value.remedy) == ("data.root", "look")
    assert time.monotonic() - begun < 20, "nobody waits for a process that waits for the dead"


def test_what_is_told_is_what_is_raised(tmp_path):
    launching.tell(ConfigError("wrong", key="a.b", got=[1, 2], allowed="3", remedy="mend"), tmp_path, 0)
    with pytest.raises(ConfigError) as caught:
        launching._raise_theirs(tmp_path, 2)
    assert str(caught.value) == str(ConfigError("wrong", key="a.b", got=[1, 2], allowed="3", remedy="mend"))


def test_a_killed_process(programs, monkeypatch):
    monkeypatch.setattr(launching, "GRACE", 0.2)
    with pytest.raises(RunError, match="was killed"):
        launching.run(programs("time.sleep(60)", "os.kill(os.getpid(), signal.SIGKILL)"), 2)


def test_a_defect_keeps_its_exit_code(programs):
    with pytest.raises(SystemExit) as caught:
        launching.run(programs("", "sys.exit(1)"), 2)
    assert caught.value.code == 1


def test_a_signal_is_passed_on_and_all_may_finish(programs):
    waits = """
        def stop(number, frame):
            time.sleep(0.5 * (1 - rank))  # the first one writes a checkpoint
            open(f"{folder}/../asked-{os.path.basename(folder)}-{rank}", "w").close()
            sys.exit(128 + number)
        signal.signal(signal.SIGTERM, stop)
        open(folder + f"/ready-{rank}", "w").close()
        time.sleep(60)
    """
    config = programs(waits, waits)
    before = signal.getsignal(signal.SIGTERM)

    def ask():
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            folders = list(Path(launching.tempfile.gettempdir()).glob("vdm-job-*/ready-1"))
            if any((path.parent / "ready-0").exists() for path in folders):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(SystemExit) as caught:
        launching.run(config, 2)
    thread.join()
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    asked = list(Path(launching.tempfile.gettempdir()).glob("asked-vdm-job-*"))
    assert {path.name[-1] for path in asked} == {"0", "1"}, "both had their time"
    for path in asked:
        path.unlink()


# ---- the command


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_of_two_jobs_with_two_processes_each(shapes_root, tmp_path):
    """Each job in a run folder of its own, and not one folder more."""
    given = [
        "stage=autoencoder", "data=shapes", "trainer=ddp_sim", "autoencoder=tiny", "autoencoder.channels=16", "seed=0,1",
        f"paths.data_root={shapes_root}", f"paths.output_root={tmp_path}", "data.num_workers=0", "data.batch_size=2",
        "stage.loss.perceptual=null", "stage.loss.adversarial=null", "stage.accumulate=1", "trainer.max_steps=2",
        "callbacks.samples.every=0", "callbacks.checkpoint.finish_batches=1", "data.val_clips=4",
    ]  # fmt: skip
    command = [sys.executable, "train.py", "-m", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stderr
    runs = [Run(path) for path in tmp_path.iterdir() if path.name != "sweeps"]
    assert len(runs) == 2
    for run in runs:
        assert run.state == "complete"
        assert run.info["step"] == 2
        assert run.last_checkpoint().name == "step-00000002"
        assert run.info["command"].startswith("python train.py -m stage=autoencoder"), "as it was typed"
    (sweep,) = (tmp_path / "sweeps").iterdir()
    noted = {json.loads(path.read_text())["run"] for path in sweep.glob("*/started.json")}
    assert noted == {str(run.folder) for run in runs}
