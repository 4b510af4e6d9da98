"""Checkpoints that are written beside the next steps are those that training would have waited for."""

import threading

import pytest
import test_resume

from vdm import checkpoint
from vdm.errors import RunError
from vdm.runs import Run
from vdm.stages.base import Stage

ORIGINAL = test_resume.settings
BACKGROUND = "callbacks.checkpoint.background=true"


@pytest.fixture
def in_background(monkeypatch):
    monkeypatch.setattr(test_resume, "settings", lambda *given: [*ORIGINAL(*given), BACKGROUND])


@pytest.fixture(scope="module")
def undisturbed(shapes_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    test_resume.train(shapes_root, output, 0)
    return Run(output / "it")


def test_killed_runs_end_alike(shapes_root, undisturbed, tmp_path, in_background):
    test_resume.assert_same(test_resume.interrupted(shapes_root, tmp_path, 0, 5), undisturbed)


def test_training_goes_on_meanwhile(shapes_root, undisturbed, tmp_path, in_background, monkeypatch):
    begun, went_on = threading.Condition(), []
    reached = [0]
    training_step, save = Stage.training_step, checkpoint.save

    def noted(self, batch, batch_idx):
        with begun:
            reached[0] = self.step
            begun.notify_all()
        return training_step(self, batch, batch_idx)

    def slow(folder, content, *, step):
        if step < test_resume.STEPS:
            with begun:  # the step that led here began with one less
                went_on.append(begun.wait_for(lambda: reached[0] >= step, timeout=60))
        save(folder, content, step=step)

    monkeypatch.setattr(Stage, "training_step", noted)
    monkeypatch.setattr(checkpoint, "save", slow)
    test_resume.train(shapes_root, tmp_path, 0)
    assert len(went_on) >= test_resume.STEPS // 3 - 1
    assert all(went_on)
    ours, theirs = Run(tmp_path / "it").checkpoints(), undisturbed.checkpoints()
    assert [folder.name for folder in ours] == [folder.name for folder in theirs]
    for one, other in zip(ours, theirs, strict=True):  # what was copied did not move with the steps that followed
        first, second = (checkpoint.read_manifest(folder)["files"] for folder in (one, other))
        weights = [name for name in second if name.endswith(".safetensors")]
        assert {name: first[name] for name in weights} == {name: second[name] for name in weights}
        first, second = (checkpoint.load(folder)["optimizer_states"][0]["state"] for folder in (one, other))
        assert all((first[n][key] == value).all() for n, entry in second.items() for key, value in entry.items())


def test_an_error_ends_the_run(shapes_root, tmp_path, in_background, monkeypatch):
    def full(folder, content, *, step):
        raise RunError("the checkpoint could not be written", got=f"step {step}")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(RunError, match="could not be written"):
        test_resume.train(shapes_root, tmp_path, 0)
    assert Run(tmp_path / "it").checkpoints() == []
