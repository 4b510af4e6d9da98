"""A killed diffusion run ends with the numbers of one left alone: moving average, dropping and frozen parent included,
whether it reads videos or a cache of their latents.
"""

import hydra
import pytest
import test_resume

from data.precompute import main as precompute
from vdm.launch import CONF

STEPS = 8
of_the_autoencoder = test_resume.settings


def settings(parent, cached="null"):
    def of_the_diffusion_model(root, output, workers):
        return [
            "stage=vdm", "data=shapes", "trainer=cpu", f"paths.data_root={root}", f"paths.output_root={output}",
            "run.id=it", f"init.autoencoder={parent}", "backbone=tiny", "backbone.channels=8", "backbone.norm_groups=4",
            "backbone.head_width=8", "condition.text.encoder.width=16", "condition.text.encoder.depth=1",
            "condition.text.encoder.heads=2", "condition.text.drop_prob=0.3", f"data.num_workers={workers}",
            "data.batch_size=4", "data.val_clips=4", f"trainer.max_steps={STEPS}", "trainer.log_every_n_steps=1",
            "callbacks.checkpoint.every=2", "callbacks.validation.every=4", "callbacks.samples.every=0",
            "stage/scheduler=one_cycle", "stage.scheduler.pct_start=0.25", f"stage.cached={cached}",
        ]  # fmt: skip

    return of_the_diffusion_model


def parent_settings(root, output, workers):
    kept = [entry for entry in of_the_autoencoder(root, output, workers) if "adversarial" not in entry]
    return [*kept, "trainer.max_steps=1", "stage.loss.adversarial=null"]


@pytest.fixture(scope="module")
def on_a_parent(shapes_root, tmp_path_factory):
    """The functions of test_resume, on runs of this stage."""
    with pytest.MonkeyPatch.context() as patch:
        output = tmp_path_factory.mktemp("parent")
        patch.setattr(test_resume, "settings", parent_settings)
        test_resume.train(shapes_root, output, 0)
        patch.setattr(test_resume, "settings", settings(output / "it"))
        patch.setattr(test_resume, "STEPS", STEPS)
        yield output / "it"


@pytest.fixture(scope="module")
def undisturbed(on_a_parent, shapes_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    test_resume.train(shapes_root, output, 0)
    return test_resume.Run(output / "it")


@pytest.fixture(scope="module")
def cache(on_a_parent, shapes_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("caches")
    given = [f"paths.data_root={shapes_root}", f"run={on_a_parent}", f"output={output}", "num_workers=0"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        precompute(hydra.compose("precompute", overrides=["data=shapes", *given]))
    (folder,) = output.iterdir()
    return folder


@pytest.mark.parametrize("source", ["videos", "cache"])
def test_killed_runs_end_alike(request, on_a_parent, undisturbed, shapes_root, tmp_path, monkeypatch, source):
    """From a cache it also ends as the run does that was left alone with the videos."""
    if source == "cache":
        monkeypatch.setattr(test_resume, "settings", settings(on_a_parent, request.getfixturevalue("cache")))
    run = test_resume.interrupted(shapes_root, tmp_path, 0, 3)
    test_resume.assert_same(run, undisturbed)
    losses = [row["train/loss_level_0"] for row in test_resume.losses_of(run) if row["train/loss_level_0"]]
    assert len(losses) == STEPS
