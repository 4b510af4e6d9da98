"""Run folders: found again by the same settings, found by name, locked, and read without surprises."""

import json
import subprocess
import sys
import time

import pytest

from vdm import runs
from vdm.errors import ConfigError, RunError
from vdm.metrics_file import MetricsFile
from vdm.runs import Run

CONFIG = {
    "seed": 0,
    "stage": {"lr": 1e-3},
    "data": {"name": "shapes", "root": "datasets/shapes", "num_workers": 2, "batch_size": 8},
    "trainer": {"max_steps": 10, "devices": 1, "precision": "32-true"},
    "paths": {"output_root": "outputs", "data_root": "datasets"},
    "run": {"id": None},
    "resume": "auto",
}


def changed(path, value):
    config = json.loads(json.dumps(CONFIG))
    node = config
    *folders, last = path.split(".")
    for name in folders:
        node = node[name]
    node[last] = value
    return config


@pytest.mark.parametrize("path", ["seed", "stage.lr", "data.batch_size", "trainer.precision"])
def test_what_decides_the_numbers_changes_the_id(path):
    assert runs.run_id(changed(path, 123)) != runs.run_id(CONFIG)


@pytest.mark.parametrize(
    "path",
    ["trainer.max_steps", "trainer.devices", "data.num_workers", "data.root", "paths.output_root", "resume", "run.id"],
)
def test_where_and_how_long_does_not(path):
    assert runs.run_id(changed(path, 123)) == runs.run_id(CONFIG)


def test_moving_the_data_keeps_the_id():
    moved = changed("paths.data_root", "/elsewhere")
    moved["data"]["root"] = "/elsewhere/shapes"
    moved["data"]["cache"] = {"folder": "/elsewhere/.cache"}
    here = changed("data.cache", {"folder": "datasets/.cache"})
    assert runs.run_id(moved) == runs.run_id(here)


def test_locate_and_bad_names(tmp_path):
    config = changed("paths.output_root", str(tmp_path))
    assert runs.locate(config, stage="autoencoder", data="shapes").name.startswith("autoencoder-shapes-")
    config["run"]["id"] = "mine"
    assert runs.locate(config, stage="autoencoder", data="shapes").folder == tmp_path / "mine"
    for bad in ("../out", "", "a/b", ".hidden", "x" * 200):
        config["run"]["id"] = bad
        with pytest.raises(ConfigError, match="run.id"):
            runs.locate(config, stage="autoencoder", data="shapes")


def make_run(root, name, *, stage="autoencoder", data="shapes", state="complete", finished=1.0, checkpoint=True):
    run = Run(root / name)
    run.folder.mkdir()
    if checkpoint:
        (run.folder / "checkpoints" / "step-00000010").mkdir(parents=True)
    run.update(stage=stage, data=data, state=state, finished=finished)
    return run


def test_newest_complete_prefers_the_same_data(tmp_path):
    make_run(tmp_path, "a", finished=1.0)
    make_run(tmp_path, "b", finished=2.0)
    make_run(tmp_path, "c", finished=3.0, state="running")
    make_run(tmp_path, "d", finished=4.0, checkpoint=False)
    make_run(tmp_path, "e", finished=5.0, data="webvid")
    make_run(tmp_path, "f", finished=6.0, stage="vdm")
    assert runs.newest_complete(tmp_path, "autoencoder", "shapes").name == "b"
    assert runs.newest_complete(tmp_path, "autoencoder", "openvid").name == "e"
    assert runs.newest_complete(tmp_path, "dysen") is None
    assert runs.newest_complete(tmp_path / "nowhere", "dysen") is None


def test_find(tmp_path):
    make_run(tmp_path, "autoencoder-shapes-11")
    make_run(tmp_path, "autoencoder-shapes-12", checkpoint=False)
    assert runs.find(tmp_path, "shapes-11", key="init.autoencoder").name == "autoencoder-shapes-11"
    assert runs.find(tmp_path, str(tmp_path / "autoencoder-shapes-11"), key="k").name == "autoencoder-shapes-11"
    with pytest.raises(RunError, match="(?s)several runs match.*write its whole name"):
        runs.find(tmp_path, "shapes-1", key="k")
    with pytest.raises(RunError, match="(?s)no such run.*init.autoencoder"):
        runs.find(tmp_path, "nothing", key="init.autoencoder")
    with pytest.raises(RunError, match="no complete checkpoint"):
        runs.find(tmp_path, "shapes-12", key="k")
    with pytest.raises(RunError, match="another stage"):
        runs.find(tmp_path, "shapes-11", key="k", stage="vdm")


def test_a_broken_run_json_is_said(tmp_path):
    run = make_run(tmp_path, "a")
    for path in (run.folder / runs.RECORD, run.folder / runs.BEFORE):
        path.write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        _ = run.state


def test_two_processes_cannot_train_one_run(tmp_path):
    code = (
        "import time; from pathlib import Path; from vdm.runs import Run, lock\n"
        f"held = lock(Run(Path({str(tmp_path / 'r')!r}))); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline().strip() == "held"
        with pytest.raises(RunError, match="(?s)trained already.*process"):
            runs.lock(Run(tmp_path / "r"))
    finally:
        other.kill()
        other.wait()
    for _ in range(50):  # the system releases it with the process
        try:
            runs.lock(Run(tmp_path / "r")).close()
            break
        except RunError:
            time.sleep(0.1)
    else:
        pytest.fail("the lock outlived its process")


def test_going_back_keeps_what_was_not_written_yet(tmp_path):
    metrics = MetricsFile(path=str(tmp_path / "metrics.csv"), resumed_step=None)
    metrics.log_metrics({"loss": 1.0}, step=2)
    metrics.log_metrics({"loss": 0.5}, step=4)
    metrics.log_metrics({"val/loss": 0.75}, step=4)  # measured where the checkpoint was written
    metrics.log_metrics({"loss": 9.0, "later": 1.0}, step=5)
    metrics.on_rollback(4)
    metrics.log_metrics({"loss": 0.25}, step=6)
    metrics.finalize("success")
    assert metrics.path.read_text() == "step,loss,val/loss\n2,1.0,\n4,0.5,0.75\n6,0.25,\n"
    metrics.on_rollback(2)
    metrics.log_metrics({"val/loss": 0.5}, step=3)
    metrics.on_rollback(3)
    assert metrics.path.read_text() == "step,loss,val/loss\n2,1.0,\n3,,0.5\n"


def test_metrics_file_resumes_without_gaps_or_repeats(tmp_path):
    path = tmp_path / "metrics.csv"

    def log(steps, logger):
        for step in steps:
            logger.log_metrics({"train/loss": 1 / 3 * step}, step)
            if step % 4 == 0:
                logger.log_metrics({"val/loss": step / 7}, step)
        logger.save()

    log(range(1, 21), MetricsFile(path=str(path), resumed_step=None))
    whole = path.read_text()
    log(range(1, 16), MetricsFile(path=str(path), resumed_step=None))
    with path.open("a") as file:
        file.write("16,0.")  # cut off by a crash
    log(range(11, 21), MetricsFile(path=str(path), resumed_step=10))
    assert path.read_text() == whole
    assert len(whole.splitlines()) == 21


def test_the_command_as_it_was_given(monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["/env/bin/python", "-u", "/code/train.py", "stage=vdm", "seed=0,1", "a b"])
    assert runs.typed("train.py") == "python train.py stage=vdm seed=0,1 'a b'"
    assert runs.typed("evaluate.py") is None
