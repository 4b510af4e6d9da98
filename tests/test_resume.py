"""An interrupted run ends with the numbers of an uninterrupted one: SIGKILL anywhere, any number of times."""

import csv
import multiprocessing
import os
import random
import signal
from multiprocessing import forkserver

import hydra
import pytest

from vdm import checkpoint, training
from vdm.launch import CONF
from vdm.runs import Run
from vdm.stages.base import Stage

STEPS = 24


def settings(root, output, workers):
    return [
        "stage=autoencoder",
        "data=shapes",
        "autoencoder=tiny",
        "trainer=cpu",
        f"paths.data_root={root}",
        f"paths.output_root={output}",
        "run.id=it",
        "autoencoder.channels=16",
        f"data.num_workers={workers}",
        "data.batch_size=4",
        "data.val_clips=8",
        "stage.accumulate=1",
        "stage.loss.perceptual=null",
        "stage.loss.adversarial.start_step=6",
        "stage.loss.adversarial.discriminator.channels=8",
        f"trainer.max_steps={STEPS}",
        "trainer.log_every_n_steps=1",
        "callbacks.checkpoint.every=3",
        "callbacks.checkpoint.finish_batches=2",
        "callbacks.validation.every=8",
        "callbacks.samples.every=0",
    ]


def train_afresh(*arguments):
    """A forked process inherits the handle of its parent's fork server, which a process of its own would not have."""
    server = forkserver._forkserver
    server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
    train(*arguments)


def train(root, output, workers):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides=settings(root, output, workers))
    training.train(cfg)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(root, output, workers, step, moment):
    """Runs in a forked process, so that dying is real and starting again costs no imports."""
    if moment == "before the step":
        losses = Stage.training_step

        def training_step(self, batch, batch_idx):
            return die() if self.step == step else losses(self, batch, batch_idx)

        Stage.training_step = training_step
    elif moment == "after the step":
        report = Stage.report

        def dying_report(self, values, *, reduce=True):
            report(self, values, reduce=reduce)
            if self.step == step:
                die()

        Stage.report = dying_report
    else:
        save, sync = checkpoint.save, checkpoint._sync

        def dying_save(folder, content, *, step: int, at=step):
            checkpoint._sync = (lambda path: die()) if step >= at else sync
            save(folder, content, step=step)

        checkpoint.save = dying_save
    train_afresh(root, output, workers)


def losses_of(run):
    with (run.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = [name for name in rows[0] if not name.startswith("perf/")]
    return [{name: row[name] for name in kept} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(shapes_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    train(shapes_root, output, 0)
    return Run(output / "it")


def interrupted(shapes_root, output, workers, count):
    randomly = random.Random(workers)
    steps = sorted(randomly.sample(range(1, STEPS), count))
    fork = multiprocessing.get_context("fork")
    for step in steps:
        moment = randomly.choice(["before the step", "after the step", "while saving"])
        process = fork.Process(target=train_and_die, args=(shapes_root, output, workers, step, moment))
        process.start()
        process.join(240)
        assert process.exitcode == -signal.SIGKILL, f"{moment} {step}: exit code {process.exitcode}"
    process = fork.Process(target=train_afresh, args=(shapes_root, output, workers))
    process.start()
    process.join(240)
    assert process.exitcode == 0
    return Run(output / "it")


def assert_same(run, reference):
    assert run.state == reference.state == "complete"
    assert losses_of(run) == losses_of(reference)
    last = f"step-{STEPS:08d}"
    ours, theirs = (checkpoint.read_manifest(r.folder / "checkpoints" / last)["files"] for r in (run, reference))
    weights = [name for name in theirs if name.endswith(".safetensors")]
    assert any(name.startswith("ema/") for name in weights)
    assert {name: ours[name] for name in weights} == {name: theirs[name] for name in weights}
    assert not list((run.folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize(("workers", "count"), [(0, 10), (1, 1), (2, 2)])
def test_killed_runs_end_alike(shapes_root, undisturbed, tmp_path, workers, count):
    assert_same(interrupted(shapes_root, tmp_path, workers, count), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_ten_times_with_workers(shapes_root, undisturbed, tmp_path, workers):
    assert_same(interrupted(shapes_root, tmp_path, workers, 10), undisturbed)


def test_a_complete_run_is_left_alone(shapes_root, undisturbed):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.folder.rglob("*") if p.is_file() and p.name != ".lock"}
    train(shapes_root, undisturbed.folder.parent, 0)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_latents_have_unit_variance_and_travel(undisturbed):
    tensors = checkpoint.network_weights(undisturbed.last_checkpoint(), "autoencoder")
    assert tensors["latent_scale"].ne(1).any()
    assert tensors["latent_shift"].ne(0).any()


def test_lineage_and_provenance(undisturbed):
    info = undisturbed.info
    assert info["stage"] == "autoencoder"
    assert info["data"] == "shapes"
    assert len(info["data_fingerprint"]) == 64
    assert info["packages"]["torch"]
    assert info["step"] == STEPS
