"""A real SLURM cluster of two nodes: jobs that are warned, requeued, preempted or lose their node end as if nothing had been."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import test_resume
from clusters import LAUNCHER, ROOT, SMALL, logs, steps, train, until, weights
from test_resume_diffusion import parent_settings
from test_resume_diffusion import settings as diffusion_settings

from vdm import sweeps
from vdm.runs import Run

TRAIN = (sys.executable, "train.py", "-m", *SMALL, *LAUNCHER)


def paths(root, output):
    return [f"paths.data_root={root}", f"paths.output_root={output}"]


def run_of(folder) -> Path:
    return Path(sweeps.noted(folder)["run"])


def job_of(folder) -> str:
    return sweeps.noted(folder)["job"]


def test_a_sweep_comes_back_from_a_warning_and_ends_alike(cluster, shapes_root, tmp_path):
    sweep = cluster.submit(*TRAIN, *paths(shapes_root, tmp_path / "cluster"), "trainer.max_steps=6", "seed=0,1")
    warned, other = sweeps.job_folders(sweep)
    until(lambda: (warned / sweeps.STARTED).exists(), 120, lambda: logs(sweep))
    cluster.call("scancel", "--signal=USR1", job_of(warned))  # it has still to build its networks
    cluster.wait(sweep)
    assert cluster.facts(job_of(warned))["Restarts"] == "1", logs(sweep)
    assert "from step 1 of 6" in (warned / sweeps.LOG).read_text()
    rows = sweeps.table(sweep)
    assert [(row["seed"], row["state"], row["step"]) for row in rows] == [("0", "complete", 6), ("1", "complete", 6)]
    for folder, seed in ((warned, 0), (other, 1)):
        train(*SMALL, *paths(shapes_root, tmp_path), "trainer.max_steps=6", f"seed={seed}", f"run.id=here-{seed}")
        assert weights(run_of(folder)) == weights(tmp_path / f"here-{seed}")
        assert steps(run_of(folder)) == 6


def test_what_comes_after_a_failed_job_says_so(cluster, shapes_root, tmp_path):
    more = [*paths(shapes_root, tmp_path), "trainer.max_steps=1"]
    parent = cluster.submit(*TRAIN, *more, "run.id=parent", "hydra.launcher.python=/bin/false")
    child = cluster.submit(*TRAIN, *more, "run.id=child", "hydra.launcher.after=[parent]")
    cluster.wait(child)
    assert [row["state"] for row in sweeps.table(parent)] == ["failed (1)"]
    assert [row["state"] for row in sweeps.table(child)] == ["failed (2)"]
    said = (child / "0" / sweeps.LOG).read_text()
    assert "what this job was to come after has not ended well" in said
    assert f"parent (job {job_of(parent / '0')}, exit code 1)" in said


def test_what_slurm_refuses_is_one_message(cluster, shapes_root, tmp_path):
    command = [*TRAIN, *paths(shapes_root, tmp_path), "trainer.max_steps=1", "hydra.launcher.partition=nowhere"]
    done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "SLURM refuses these jobs" in done.stderr
    assert "invalid partition" in done.stderr
    assert "Traceback" not in done.stderr


# ---- slow ones ---------------------------------------------------------------------------------------------------------


def readme_sweep():
    """The README's command, as words after the program."""
    line = re.search(r"^python train\.py (-m .*hydra/launcher=slurm[^#\n]*)", (ROOT / "README.md").read_text(), re.M)
    return shlex.split(line[1])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_sweep_of_the_readme(cluster, shapes_root, tmp_path):
    """Three jobs: one is warned, one is requeued by hand, the node daemon of one is killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_resume, "settings", parent_settings)
        test_resume.train(shapes_root, tmp_path / "parent", 0)
    given = readme_sweep()
    groups = ("stage=", "objective=", "run.id=", "paths.output_root=", "trainer.max_steps=", "callbacks.")
    tiny = [
        s for s in diffusion_settings(tmp_path / "parent" / "it")(shapes_root, tmp_path, 0) if not s.startswith(groups)
    ]
    tiny += [
        "trainer.max_steps=200",  # longer than SLURM waits for a lost node
        "callbacks.checkpoint.every=20",
        "callbacks.validation.every=30",
        "callbacks.samples.every=0",
    ]
    launcher = [word for word in LAUNCHER if word not in given]
    sweep = cluster.submit(
        sys.executable, "train.py", *given, *tiny, *launcher, f"paths.output_root={tmp_path / 'cluster'}"
    )
    warned, requeued, lost = sweeps.job_folders(sweep)
    for folder in (warned, requeued, lost):
        until(lambda folder=folder: (folder / sweeps.STARTED).exists(), 300, lambda: logs(sweep))
        until(lambda folder=folder: steps(run_of(folder)) > 5, 300, lambda: logs(sweep))
    cluster.call("scancel", "--signal=USR1", job_of(warned))
    cluster.call("scontrol", "requeue", job_of(requeued))
    node = cluster.facts(job_of(lost))["NodeList"]
    cluster.lose_daemon(node)
    try:
        cluster.wait(sweep, seconds=900)
    finally:
        cluster.bring_back(node)
    assert {row["state"] for row in sweeps.table(sweep)} == {"complete"}, logs(sweep)
    restarts = [int(cluster.facts(job_of(folder))["Restarts"]) for folder in (warned, requeued, lost)]
    assert min(restarts) >= 1, logs(sweep)  # more, where SLURM sends one to the lost node before it knows
    objectives = [word.partition("=")[2].split(",") for word in given if word.startswith("objective=")][0]
    for folder, objective in zip((warned, requeued, lost), objectives, strict=True):
        here = [f"objective={objective}", "stage=vdm", f"run.id=here-{objective}", f"paths.output_root={tmp_path}"]
        train(*here, *tiny)
        assert weights(run_of(folder)) == weights(tmp_path / f"here-{objective}")
        assert steps(run_of(folder)) == 200


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_processes_on_two_nodes_come_back_together(cluster, shapes_root, tmp_path):
    more = [
        "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2", "trainer.precision=32-true",
        "hydra.launcher.gpus=0", 'hydra.launcher.setup=["export MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo"]',
        "trainer.max_steps=60", "run.id=alone,warned,requeued",
    ]  # fmt: skip
    sweep = cluster.submit(*TRAIN, *paths(shapes_root, tmp_path), *more, "hydra.launcher.parallel=1")
    alone, warned, requeued = sweeps.job_folders(sweep)
    until(lambda: steps(tmp_path / "warned") > 3, 600, lambda: logs(sweep))
    cluster.call("scancel", "--signal=USR1", job_of(warned))
    until(lambda: steps(tmp_path / "requeued") > 3, 600, lambda: logs(sweep))
    cluster.call("scontrol", "requeue", job_of(requeued))
    cluster.wait(sweep, seconds=900)
    assert {row["state"] for row in sweeps.table(sweep)} == {"complete"}, logs(sweep)
    for folder in (warned, requeued):
        assert cluster.facts(job_of(folder))["Restarts"] == "1", logs(sweep)  # of two processes one has asked
        assert weights(run_of(folder)) == weights(run_of(alone))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_warned_again_and_again(cluster, shapes_root, tmp_path):
    """Two warnings and a requeue in one second, a warning at the first moment of a start, and a preemption."""
    more = [
        *paths(shapes_root, tmp_path),
        "trainer.max_steps=150",
        "callbacks.checkpoint.every=1",
        "data.num_workers=1",
    ]
    sweep = cluster.submit(*TRAIN, *more, "run.id=it")
    (folder,) = sweeps.job_folders(sweep)
    until(lambda: steps(tmp_path / "it") > 3, 300, lambda: logs(sweep))  # a checkpoint is being written all the time
    for number in ("USR1", "TERM"):
        cluster.call("scancel", f"--signal={number}", job_of(folder))
    cluster.call("scontrol", "requeue", job_of(folder), check=False)
    until(lambda: cluster.facts(job_of(folder)).get("Restarts") == "1", 120)
    until(lambda: cluster.facts(job_of(folder)).get("JobState") == "RUNNING", 120)
    until(lambda: "slurm_script" in cluster.call("ps", "-eo", "args", check=False), 60)
    before = steps(tmp_path / "it")
    until(lambda: steps(tmp_path / "it") > before + 3, 300, lambda: logs(sweep))
    urgent = cluster.call("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--nodes=2", "--output=/dev/null",
                          "--wrap", "sleep 1").strip()  # fmt: skip
    until(lambda: cluster.facts(urgent).get("JobState") == "COMPLETED", 300, lambda: logs(sweep))
    cluster.wait(sweep, seconds=600)
    assert int(cluster.facts(job_of(folder))["Restarts"]) >= 2, logs(sweep)
    train(*SMALL, *more, "run.id=here")
    assert weights(tmp_path / "it") == weights(tmp_path / "here")
    assert steps(tmp_path / "it") == 150


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_was_cancelled_stays_so(cluster, shapes_root, tmp_path):
    sweep = cluster.submit(*TRAIN, *paths(shapes_root, tmp_path), "trainer.max_steps=100000", "run.id=it")
    (folder,) = sweeps.job_folders(sweep)
    until(lambda: steps(tmp_path / "it") > 3, 300, lambda: logs(sweep))
    cluster.call("scancel", job_of(folder))
    cluster.wait(sweep)
    assert cluster.facts(job_of(folder))["Restarts"] == "0"
    assert Run(tmp_path / "it").state == "interrupted"
    assert Run(tmp_path / "it").last_checkpoint() is not None  # it was told in time
    assert "was cancelled" in (folder / sweeps.LOG).read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_in_wandb_and_its_requeue_are_one(cluster, shapes_root, tmp_path):
    wandb_records = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    more = [
        "trainer.max_steps=40", "run.id=it", "logger=wandb", "callbacks.samples.every=10", "callbacks.samples.count=1",
        "callbacks.validation.every=10", "callbacks.checkpoint.every=10",
    ]  # fmt: skip
    sweep = cluster.submit(*TRAIN, *paths(shapes_root, tmp_path), *more)
    (folder,) = sweeps.job_folders(sweep)
    until(lambda: steps(tmp_path / "it") > 12, 300, lambda: logs(sweep))
    cluster.call("scancel", "--signal=USR1", job_of(folder))
    cluster.wait(sweep)
    assert cluster.facts(job_of(folder))["Restarts"] == "1", logs(sweep)
    are_one(tmp_path / "it", wandb_records.Record)


def are_one(run, kind):
    """Two starts under one id, each step once, with all its videos."""
    files = sorted((run / "wandb").glob("offline-run-*/run-it.wandb"), key=lambda path: path.parent.name)
    assert len(files) == 2
    parts = [records(path, kind) for path in files]
    assert {record.run.run_id for part in parts for record in part if record.HasField("run")} == {"it"}
    history = [row for part in parts for row in rows(part)]
    counted = [row["_step"] for row in history]
    assert counted == sorted(set(counted)), "each step once, in order, over both parts"
    assert counted == list(range(1, 41))
    videos = {row["_step"]: row["samples/videos"][0]["path"] for row in history if "samples/videos" in row}
    assert sorted(videos) == [10, 20, 30, 40]
    assert all(any((path.parent / "files" / name).is_file() for path in files) for name in videos.values())


def records(path, kind):
    """A file of wandb: seven bytes, then the log format of LevelDB, blocks of 32 KiB with records in parts."""
    content, found, part, place = path.read_bytes(), [], b"", 7
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, which = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part += content[place + 7 : place + 7 + size]
        place += 7 + size
        if which in (1, 4):  # whole, or the last part
            record = kind()
            record.ParseFromString(part)
            found.append(record)
            part = b""
    return found


def rows(part):
    for record in part:
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            yield items


@pytest.mark.slow
def test_nothing_of_lightning_is_left(cluster, shapes_root, tmp_path):
    """Its own checkpoints of a cluster would be found before ours."""
    sweep = cluster.submit(*TRAIN, *paths(shapes_root, tmp_path), "trainer.max_steps=2000", "run.id=it")
    (folder,) = sweeps.job_folders(sweep)
    until(lambda: steps(tmp_path / "it") > 3, 300, lambda: logs(sweep))
    cluster.call("scancel", f"--signal={int(signal.SIGUSR1)}", job_of(folder))
    until(lambda: cluster.facts(job_of(folder)).get("Restarts") == "1", 120, lambda: logs(sweep))
    cluster.call("scancel", job_of(folder))
    cluster.wait(sweep)
    assert not list(tmp_path.rglob("hpc_ckpt*"))
