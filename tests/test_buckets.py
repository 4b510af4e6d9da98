"""Training on videos, images and another aspect ratio in one run, killed and continued to the same bits."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import test_resume

from vdm import checkpoint
from vdm.runs import Run
from vdm.stages.autoencoder import AutoencoderStage
from vdm.stages.diffusion import DiffusionStage

ROOT = Path(__file__).resolve().parents[1]
STEPS = 6
VIDEO = "{frames: 8, height: 32, width: 32, weight: 1, batch_size: 2}"
IMAGE = "{frames: 1, height: 32, width: 32, weight: 1, batch_size: 4}"
WIDE = "{frames: 4, height: 24, width: 32, weight: 1, batch_size: 3}"
SHAPES = {(2, 3, 8, 32, 32), (4, 3, 1, 32, 32), (3, 3, 4, 24, 32)}
BUCKETS = f"data.buckets=[{VIDEO},{IMAGE},{WIDE}]"
COMMON = [
    "data=shapes", "trainer=cpu", "run.id=it", "trainer.log_every_n_steps=1", "data.batch_size=4", "data.val_clips=4",
    f"trainer.max_steps={STEPS}", "callbacks.checkpoint.every=2", "callbacks.checkpoint.finish_batches=4",
    "callbacks.validation.every=3", "callbacks.samples.every=0", "stage.accumulate=1", BUCKETS,
]  # fmt: skip


def autoencoder(root, output, workers):
    return [*COMMON, "stage=autoencoder", "autoencoder=tiny", "autoencoder.channels=16", "stage.loss.perceptual=null",
            "stage.loss.adversarial.start_step=2", "stage.loss.adversarial.discriminator.channels=8",
            "stage.loss.adversarial.discriminator.dims=3", f"data.num_workers={workers}",
            f"paths.data_root={root}", f"paths.output_root={output}"]  # fmt: skip


def diffusion(parent):
    def settings(root, output, workers):
        return [*COMMON, "stage=vdm", f"init.autoencoder={parent}", "backbone=tiny", "backbone.channels=8",
                "backbone.norm_groups=4", "backbone.head_width=8", "backbone.temporal_position=relative",
                "objective=flow", "objective.schedule.base_tokens=64",
                "condition.text.encoder.width=16", "condition.text.encoder.depth=1", "condition.text.encoder.heads=2",
                f"data.num_workers={workers}", f"paths.data_root={root}", f"paths.output_root={output}"]  # fmt: skip

    return settings


@pytest.fixture(scope="module")
def parent(shapes_root, tmp_path_factory):
    """A run of stage=autoencoder on the same buckets; the shapes it trained on."""
    output, shapes = tmp_path_factory.mktemp("parent"), Counter()
    losses = AutoencoderStage.losses

    def recorded(self, batch):
        shapes[tuple(batch["video"].shape)] += 1
        return losses(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_resume, "settings", autoencoder)
        patch.setattr(AutoencoderStage, "losses", recorded)
        test_resume.train(shapes_root, output, 0)
    return Run(output / "it"), shapes


def test_the_autoencoder_learns_from_all_buckets(parent):
    run, shapes = parent
    assert run.state == "complete"
    assert set(shapes) == SHAPES
    losses = [row["train/loss"] for row in test_resume.losses_of(run) if row["train/loss"]]
    assert len(losses) == STEPS
    tensors = checkpoint.network_weights(run.last_checkpoint(), "autoencoder")
    assert tensors["latent_scale"].ne(1).any()


def test_killed_runs_of_the_diffusion_model_end_alike(parent, shapes_root, tmp_path, monkeypatch):
    monkeypatch.setattr(test_resume, "settings", diffusion(parent[0].folder))
    monkeypatch.setattr(test_resume, "STEPS", STEPS)
    shapes, losses = [], DiffusionStage.losses

    def recorded(self, batch):
        shapes.append(tuple(batch["video"].shape))
        return losses(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionStage, "losses", recorded)
        test_resume.train(shapes_root, tmp_path / "undisturbed", 0)
    assert len(shapes) == STEPS
    assert set(shapes) == SHAPES
    reference = Run(tmp_path / "undisturbed" / "it")
    fork = multiprocessing.get_context("fork")
    for step, moment in ((3, "after the step"), (4, "while saving")):
        arguments = (shapes_root, tmp_path / "killed", 1, step, moment)
        process = fork.Process(target=test_resume.train_and_die, args=arguments)
        process.start()
        process.join(240)
        assert process.exitcode == -signal.SIGKILL
    process = fork.Process(target=test_resume.train_afresh, args=(shapes_root, tmp_path / "killed", 1))
    process.start()
    process.join(240)
    assert process.exitcode == 0
    test_resume.assert_same(Run(tmp_path / "killed" / "it"), reference)


@pytest.mark.slow
def test_two_processes_train_on_the_same_buckets(parent, shapes_root, tmp_path):
    """Collectives of unequal steps would hang."""
    settings = diffusion(parent[0].folder)(shapes_root, tmp_path, 0)
    settings = [entry for entry in settings if entry != "trainer=cpu"]
    settings += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    done = subprocess.run([*command, *settings], cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "it").state == "complete"


WRONG = {  # buckets: words of the message
    f"[{VIDEO},{IMAGE.replace('width: 32', 'width: 30')}]": ["data.buckets[1].width", "got:     30", "multiples of"],
    "[{frames: 8, height: 32, width: 32, weight: 1, batch_size: 0}]": ["data.buckets[0].batch_size", "an integer >= 1"],
    "[{frames: 16, height: 32, width: 32, weight: 1, batch_size: 1}]": ["data.buckets[0].frames", "up to 8"],
}  # fmt: skip


def refused(root, output, *settings):
    command = [sys.executable, "train.py", f"paths.data_root={root}", f"paths.output_root={output}", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (Path(output) / "it" / "checkpoints").exists()
    return done.stderr


@pytest.mark.parametrize("buckets", WRONG)
def test_wrong_buckets_are_refused(shapes_root, tmp_path, buckets):
    message = refused(shapes_root, tmp_path, "data=shapes", "autoencoder=tiny", f"data.buckets={buckets}")
    assert all(words in message for words in WRONG[buckets]), message


def test_an_image_needs_an_autoencoder_that_keeps_every_frame(shapes_root, tmp_path):
    message = refused(shapes_root, tmp_path, "data=shapes", "autoencoder=conv3d", f"data.buckets=[{IMAGE}]")
    assert "data.buckets[0].frames" in message
    assert "multiples of 4" in message


def test_a_bucket_that_the_backbone_cannot_halve_is_refused(parent, shapes_root, tmp_path):
    odd = "[{frames: 8, height: 32, width: 28, weight: 1, batch_size: 2}]"
    settings = ["stage=vdm", "data=shapes", f"init.autoencoder={parent[0].folder}", f"data.buckets={odd}"]
    message = refused(shapes_root, tmp_path, *settings)
    assert "data.buckets[0].width" in message
    assert "multiples of 8" in message
