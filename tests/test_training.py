"""The command a user types, end to end: files, loggers, sweeps, stopping, starting from another run, two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vdm import checkpoint, sweeps
from vdm.runs import Run, all_runs
from vdm.video import decode

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "stage=autoencoder", "data=shapes", "autoencoder=tiny", "trainer=cpu", "autoencoder.channels=16",
    "stage.accumulate=1", "stage.loss.perceptual=null", "stage.loss.adversarial=null", "data.num_workers=0",
    "data.batch_size=4", "data.val_clips=4", "trainer.max_steps=6", "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every=2", "callbacks.checkpoint.keep=2", "callbacks.checkpoint.finish_batches=1",
    "callbacks.validation.every=3", "callbacks.samples.every=3", "callbacks.samples.count=2",
]  # fmt: skip


def command(root, output, *more, launcher=(sys.executable,)):
    flags = [word for word in more if word == "-m"]
    more = [word for word in more if word != "-m"]
    return [*launcher, "train.py", *flags, *SMALL, f"paths.data_root={root}", f"paths.output_root={output}", *more]


def run(*arguments, **options):
    environment = {**os.environ, "WANDB_MODE": "offline"}
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=200, env=environment, **options
    )


@pytest.fixture(scope="module")
def first(shapes_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("outputs")
    done = run(shapes_root, output, "run.id=first", "logger=tensorboard", check=False)
    assert done.returncode == 0, done.stderr
    return Run(output / "first")


def test_what_a_run_leaves(first):
    assert first.state == "complete"
    assert [p.name for p in first.checkpoints()][-1] == "step-00000006"
    assert len(first.checkpoints()) <= 3  # two to keep and the best
    assert sorted(p.name for p in (first.folder / "samples").iterdir()) == ["step-00000003", "step-00000006"]
    clips = list((first.folder / "samples" / "step-00000006").glob("*.mp4"))
    assert len(clips) == 2
    assert decode(clips[0]).shape == (8, 32, 64, 3)  # the clip and its reconstruction side by side
    assert (first.folder / "samples" / "step-00000006" / "sheet.png").read_bytes()[1:4] == b"PNG"
    assert list(first.folder.rglob("events.out.tfevents*"))
    assert "val/psnr" in (first.folder / "metrics.csv").read_text().splitlines()[0]
    config = (first.folder / "config.yaml").read_text()
    assert "${" not in config


def test_repeating_the_command_does_nothing(first, shapes_root):
    done = run(shapes_root, first.folder.parent, "run.id=first", check=True)
    assert "complete at step 6" in done.stderr


def test_more_steps_continue_it_and_it_can_be_a_parent(first, shapes_root, tmp_path):
    done = run(
        shapes_root, first.folder.parent, "init.autoencoder=first", "run.id=child", "trainer.max_steps=1", check=False
    )
    assert done.returncode == 0, done.stderr
    assert "starts from first" in done.stderr
    lineage = json.loads((first.folder.parent / "child" / "run.json").read_text())["lineage"]
    assert lineage[0]["run"] == "first"
    manifest = checkpoint.read_manifest(first.last_checkpoint())
    assert lineage[0]["sha256"] == manifest["files"]["weights/autoencoder.safetensors"]["sha256"]


def test_weights_of_another_shape_are_refused(first, shapes_root):
    done = run(
        shapes_root,
        first.folder.parent,
        "init.autoencoder=first",
        "run.id=wide",
        "autoencoder.channels=24",
        check=False,
    )
    assert done.returncode == 2
    assert "init.autoencoder" in done.stderr
    assert "misshapen" in done.stderr
    assert "Traceback" not in done.stderr


def test_sweep_returns_the_metric_and_makes_one_run_each(shapes_root, tmp_path):
    more = [
        "-m",
        "seed=0,1",
        "trainer.max_steps=1",
        "callbacks.samples.every=0",
        "callbacks.validation.every=1",
        "optimized_metric=val/psnr",
    ]
    done = run(shapes_root, tmp_path, *more, check=False)
    assert done.returncode == 0, done.stderr
    runs = all_runs(tmp_path)
    assert len(runs) == 2
    assert all(r.state == "complete" and "val/psnr" in r.info["metrics"] for r in runs)
    rows = sweeps.table(next((tmp_path / "sweeps").iterdir()))
    assert [(row["seed"], row["state"], row["step"]) for row in rows] == [("0", "complete", 1), ("1", "complete", 1)]
    assert {row["run"] for row in rows} == {r.name for r in runs}


def test_asked_to_stop_it_saves_and_continues(shapes_root, tmp_path):
    more = ["run.id=long", "trainer.max_steps=100000", "callbacks.checkpoint.every=100000", "callbacks.samples.every=0"]
    arguments = command(shapes_root, tmp_path, *more, "callbacks.validation.every=0")
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "long" / "metrics.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) > 4):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, message
    stopped = Run(tmp_path / "long")
    assert stopped.state == "interrupted"
    assert stopped.last_checkpoint().name == f"step-{stopped.info['step']:08d}"


def test_wandb_offline_has_the_videos_of_a_run_and_of_its_continuation(shapes_root, tmp_path):
    """The second command goes on in the same run of Weights & Biases, in a folder of its own, as offline runs do."""
    for steps in (2, 4):
        words = ["run.id=w", "logger=wandb", f"trainer.max_steps={steps}", "callbacks.samples.every=2"]
        done = run(shapes_root, tmp_path, *words, check=False)
        assert done.returncode == 0, done.stderr
        time.sleep(1)  # its folders are named by the second
    folders = sorted((tmp_path / "w" / "wandb").glob("offline-run-*-w"))
    assert len(folders) == 2
    for folder, step in zip(folders, (2, 4), strict=True):
        videos = list((folder / "files" / "media" / "videos").glob("*.mp4"))
        assert [path.name.startswith(f"samples_{step}_") for path in videos] == [True, True]
        assert decode(videos[0]).shape == (8, 32, 64, 3)
        (record,) = folder.glob("run-w.wandb")
        content = record.read_bytes()
        assert all(path.name.encode() in content for path in videos)
        assert b"videos" in content


def test_two_processes_train_one_run(shapes_root, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    more = [
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.precision=32-true",
        "trainer.max_steps=2",
    ]
    more += [
        "run.id=two",
        "data.batch_size=2",
        "data.val_clips=3",
        "callbacks.validation.every=2",
        "callbacks.samples.every=2",
    ]
    arguments = command(shapes_root, tmp_path, *more, launcher=launcher)
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    two = Run(tmp_path / "two")
    assert two.state == "complete"
    assert two.info["step"] == 2
    # One process goes on where two stopped: the position in the data counts samples, not batches of a rank.
    alone = run(shapes_root, tmp_path, "run.id=two", "trainer.max_steps=3", "callbacks.samples.every=0", check=False)
    assert alone.returncode == 0, alone.stderr
    assert "from step 2 of 3" in alone.stderr
    loops = checkpoint.load(two.last_checkpoint())["loops"]
    loader = loops["fit_loop"]["state_dict"]["combined_loader"][0]
    assert loader["consumed"] == 2 * 4 + 4
