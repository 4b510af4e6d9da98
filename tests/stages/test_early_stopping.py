"""Training that ends when the held-out loss gets no better, with the checkpoint that was best."""

import logging
from types import SimpleNamespace

import pytest
from test_finetune import composed, parent, tune

from vdm import training
from vdm.callbacks.checkpoint import Checkpoint
from vdm.errors import ConfigError
from vdm.runs import Run
from vdm.stages.finetune import FinetuneStage

STILL = ["stage.optimizer.lr=0", "trainer.max_steps=20", "callbacks.checkpoint.patience=2"]  # it never gets better


@pytest.fixture(scope="module")
def world(shapes_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("stopping")
    parent(root, "text")
    return root, [f"paths.data_root={shapes_root}", f"paths.output_root={root}"]


def steps(run):
    return [int(folder.name.rpartition("-")[2]) for folder in run.checkpoints()]


def test_it_stops_and_ends_with_the_best(world, caplog):
    with caplog.at_level(logging.INFO):
        run = tune(world, "still", *STILL)
    assert (run.state, run.info["step"], run.info["best"]["step"]) == ("complete", 6, 2)
    assert run.info["stopped"] == {"patience": 2, "min_delta": 0.0}
    assert run.info["metrics"]["val/loss"] == run.info["best"]["value"]
    assert steps(run) == [2]
    assert "2 validations without a better val/loss, the end" in caplog.text
    assert "complete at step 6" in caplog.text
    with caplog.at_level(logging.INFO):
        tune(world, "still", *STILL)
    assert "nothing to do" in caplog.text
    tune(world, "still", *STILL, "callbacks.checkpoint.patience=3")  # more of it goes on from the best
    assert (run.info["step"], run.info["stopped"]["patience"], steps(run)) == (8, 3, [2])
    tune(world, "still", *STILL, "callbacks.checkpoint.patience=null", "trainer.max_steps=10")
    assert (run.info["step"], run.info["stopped"], steps(run)) == (10, None, [2, 6, 8, 10])


def test_a_killed_run_decides_alike(world, monkeypatch):
    losses = FinetuneStage.losses

    def dies(stage, batch):
        if stage.step == 5:
            raise OSError("power cut")
        return losses(stage, batch)

    monkeypatch.setattr(FinetuneStage, "losses", dies)
    with pytest.raises(OSError, match="power cut"):
        tune(world, "killed", *STILL)
    run = Run(world[0] / "killed")
    assert steps(run) == [2, 4]
    monkeypatch.undo()
    tune(world, "killed", *STILL)
    assert (run.info["step"], run.info["best"]["step"], steps(run)) == (6, 2, [2])


@pytest.mark.slow
def test_one_that_learns_goes_on(world):
    run = tune(world, "learns", "stage.optimizer.lr=2e-3", "trainer.max_steps=8", "callbacks.checkpoint.patience=2")
    best = run.info["best"]
    assert run.info["step"] == 8
    assert best["step"] > 2
    assert steps(run)[-1] == best["step"]
    assert "stopped" not in run.info


def judged(values, **settings):
    """After how many validations it ends."""
    given = {
        "every": 1,
        "keep": 1,
        "background": False,
        "monitor": "val/loss",
        "mode": "min",
        "finish_batches": 1,
        "patience": 2,
        "min_delta": 0.0,
    }
    callback = Checkpoint(**given | settings)
    for step, value in enumerate(values, start=1):
        stage = SimpleNamespace(metrics={"val/loss": value}, validated_step=step, step=step)
        for _ in range(3):  # steps of an accumulated gradient
            callback._judge(stage)
        if callback.stopped_early:
            return step
    return None


def test_what_counts_as_better():
    nan = float("nan")
    assert judged([5, 4, 3, 2, 1]) is None
    assert judged([5, 4, 4, 4]) == 4
    assert judged([5, 4, 5, 3, 3, 2]) is None
    assert judged([1, 2, 3, 4], mode="max") is None
    assert judged([4, 3, 2], mode="max") == 3
    assert judged([5, 4.8, 4.6, 4.4, 4.3], min_delta=0.5) == 3
    assert judged([5, 4.8, 4.4, 4.2, 4.0], min_delta=0.5) == 5, "against the last value that counted"
    assert judged([nan, nan, 1]) == 2
    assert judged([5, nan, 4, 5, 3]) is None
    assert judged([5, 5, 5, 5], patience=None) is None


def test_settings_that_make_no_sense(world):
    with pytest.raises(ConfigError, match="needs a metric"):
        judged([1], monitor=None)
    cfg = composed("stage=autoencoder", "data=shapes", "trainer=cpu", "autoencoder=tiny", "trainer.max_steps=2", *world[1],
                   "callbacks.checkpoint.patience=1", "stage.loss.perceptual=null", "data.num_workers=0")  # fmt: skip
    with pytest.raises(ConfigError, match="measures at its end"):
        training.train(cfg)
