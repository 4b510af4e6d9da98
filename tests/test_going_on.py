"""The same run.id with other settings: another stage, network or objective is refused before anything is written."""

import hashlib
import logging

import pytest
import test_resume

from vdm.errors import ConfigError, RunError
from vdm.runs import DEBUG, Run, newest_complete, write_atomically
from vdm.runs.same import changes, check_goes_on, written

ORIGINAL = test_resume.settings
FEW = ["trainer.max_steps=3", "callbacks.validation.every=0", "callbacks.checkpoint.monitor=null"]


@pytest.fixture
def train(shapes_root, tmp_path, monkeypatch):
    def begin(*more):
        given = {entry.partition("=")[0]: entry for entry in (*ORIGINAL(shapes_root, tmp_path, 0), *FEW, *more)}
        monkeypatch.setattr(test_resume, "settings", lambda *_: list(given.values()))
        test_resume.train(shapes_root, tmp_path, 0)
        return Run(tmp_path / "it")

    return begin


def files(run):
    found = [path for path in run.folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_another_run_of_this_name(train, caplog):
    run = train()
    before = files(run)
    with caplog.at_level(logging.INFO):
        train("autoencoder.channels=32")  # it is finished
    assert "autoencoder.channels 16 -> 32" in caplog.text
    assert "nothing to do" in caplog.text
    with pytest.raises(RunError, match="weights of another network"):
        train("autoencoder.channels=32", "trainer.max_steps=6")
    assert files(run) == before
    with caplog.at_level(logging.WARNING):
        train("trainer.max_steps=4", "stage.optimizer.lr=1e-5")
    assert run.info["step"] == 4
    assert "goes on with other settings than it had: stage.optimizer.lr" in caplog.text
    assert "-> 1e-05" in caplog.text
    run.update(stage="vdm")
    before = files(run)
    for more in ("trainer.max_steps=4", "trainer.max_steps=6"):
        with pytest.raises(ConfigError, match="another stage"):
            train(more)
    assert files(run) == before


def settings(**changed):
    return {
        "stage": {"name": "vdm", "optimizer": {"lr": 1e-4}},
        "data": {"root": "a"},
        "objective": {"shift": 1.0},
    } | changed


@pytest.fixture
def begun(tmp_path):
    run = Run(tmp_path / "run")
    run.update(stage="vdm")
    (run.folder / "checkpoints" / "step-00000003").mkdir(parents=True)
    write_atomically(run.folder / "config.yaml", written(settings()))
    return run


def test_what_is_a_change(begun):
    assert changes(begun, settings()) == []
    assert changes(begun, settings(data={"root": "b"}, seed=3)) == [], "a place, and a setting that was not there"
    stage = {"name": "vdm", "optimizer": {"lr": 1e-3}}
    assert changes(begun, settings(stage=stage)) == ["stage.optimizer.lr 0.0001 -> 0.001"]
    check_goes_on(begun, settings(stage=stage), leader=False)
    with pytest.raises(ConfigError, match="another objective"):
        check_goes_on(begun, settings(objective={"shift": 2.0}), leader=True)
    (begun.folder / "config.yaml").write_text("half: [")
    check_goes_on(begun, settings(objective={"shift": 2.0}), leader=True)


def test_nobody_builds_on_a_debug_run(tmp_path):
    for name in (DEBUG, "real"):
        run = Run(tmp_path / name)
        run.update(stage="autoencoder", state="complete", finished=float(name == DEBUG))
        (run.folder / "checkpoints" / "step-00000003").mkdir(parents=True)
    assert newest_complete(tmp_path, "autoencoder").name == "real"
