"""Damaged checkpoints, half a record, a full disk, processes that are gone: what is done about each, and what is said."""

import errno
import json
import multiprocessing
import os
import resource
from types import SimpleNamespace

import pytest
import torch

from vdm import checkpoint, runs, training
from vdm.callbacks.rollback import Rollback
from vdm.errors import RunError
from vdm.faults import told_plainly
from vdm.runs import Run

FORK = multiprocessing.get_context("fork")


def content(value):
    return {"state_dict": {"net.weight": torch.full((64, 64), float(value))}, "ema": {}, "global_step": value}


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "it")
    for step in (1, 2, 3):
        checkpoint.save(run.folder / "checkpoints" / f"step-{step:08d}", content(step), step=step)
    run.update(state="complete", step=3, lineage=[{"run": "parent"}])
    return run


def flip(path):
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 4
    path.write_bytes(text)


HARM = {
    "flipped bit": lambda folder: flip(folder / "weights" / "net.safetensors"),
    "cut": lambda folder: os.truncate(folder / "trainer.pt", 100),
    "deleted": lambda folder: (folder / "trainer.pt").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: os.truncate(folder / "manifest.json", 40),
    "another manifest": lambda folder: (folder / "manifest.json").write_text('{"format": 1, "files": [3]}'),
}


@pytest.mark.parametrize("harm", HARM)
def test_the_newest_whole_checkpoint_is_taken_and_the_damaged_one_is_set_aside(run, caplog, harm):
    newest = run.last_checkpoint()
    assert checkpoint.damage(newest) is None
    HARM[harm](newest)
    assert checkpoint.damage(newest)
    other_rank = training._newest_whole(run, leader=False)
    assert other_rank.name == "step-00000002"
    assert newest.exists(), "one process moves it"
    assert training._newest_whole(run, leader=True) == other_rank
    assert "step-00000003 is damaged" in caplog.text
    assert "goes on from step-00000002" in caplog.text
    assert run.last_checkpoint().name == "step-00000002"
    assert (run.folder / "checkpoints" / "damaged-step-00000003").is_dir()
    assert run.damaged_behind(other_rank), "the run is not complete any more"
    assert not run.damaged_behind(newest)


def test_several_are_damaged_and_all_are(run):
    for folder in run.checkpoints()[1:]:
        flip(folder / "weights" / "net.safetensors")
    assert training._newest_whole(run, leader=True).name == "step-00000001"
    flip(run.last_checkpoint() / "weights" / "net.safetensors")
    with pytest.raises(RunError, match="no checkpoint of this run is whole") as error:
        training._newest_whole(run, leader=True)
    assert "step-00000001" in str(error.value)
    assert run.last_checkpoint().name == "step-00000001", "nothing is moved where nothing is left"
    assert training._newest_whole(Run(run.folder / "nowhere"), leader=True) is None


def test_half_a_record_falls_back_to_what_it_said_before(run, caplog):
    record = run.folder / "run.json"
    os.truncate(record, record.stat().st_size // 2)
    assert run.info["lineage"] == [{"run": "parent"}], "of its only change there is a copy"
    assert "cannot be read" in caplog.text
    run.update(step=4)
    assert json.loads(record.read_text())["step"] == 4
    record.write_text("[]")
    assert run.info["step"] == 3
    (run.folder / runs.BEFORE).write_text("{")
    with pytest.raises(RunError, match=r"run.json cannot be read"):
        _ = run.info
    record.unlink()
    assert run.info == {}


def test_a_run_that_cannot_be_read_is_in_nobody_elses_way(run, caplog):
    run.update(stage="autoencoder", finished=1.0)
    other = run.folder.with_name("other")
    other.mkdir()
    (other / "run.json").write_text('{"stage": "auto')
    assert runs.newest_complete(run.folder.parent, "autoencoder") == run
    assert "other is left out" in caplog.text


def _save_with(room, folder, said):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        checkpoint.save(folder, content(9), step=9)
    except RunError as error:
        said.send(str(error))
    except BaseException as error:
        said.send(f"{type(error)}: {error}")


@pytest.mark.parametrize("room", [0, 30, 600, 1500, 10_000, 16_000])
def test_a_disk_that_is_full_anywhere_in_a_checkpoint(run, room):
    """For weights, for the rest, for the manifest: libraries tell it in different ways."""
    folder = run.last_checkpoint()
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=_save_with, args=(room, folder, theirs))
    process.start()
    theirs.close()
    assert "the checkpoint could not be written" in ours.recv()
    process.join(30)
    assert checkpoint.damage(folder) is None
    assert checkpoint.load(folder)["global_step"] == 3
    assert sorted(path.name for path in folder.parent.iterdir()) == [f"step-{step:08d}" for step in (1, 2, 3)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_message(number):
    with pytest.raises(RunError, match="(?s)the disk is full.*it resumes"), told_plainly():
        raise OSError(number, "no room", "metrics.csv")


@pytest.mark.parametrize(
    "text",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234",
        "[enforce fail] Read error [127.0.0.1]:5: Connection reset by peer",
        "NCCL error: remote process exited or there was a network error, ncclRemoteError",
    ],
)
def test_a_process_that_is_gone_is_one_message(text):
    with pytest.raises(RunError, match="another process of this run is gone"), told_plainly():
        raise RuntimeError(text)


def test_defects_keep_their_traceback():
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(errno.EACCES, "no")):
        with pytest.raises(type(error)), told_plainly():
            raise error


def test_ranks_that_begin_at_different_steps_are_told():
    guard = Rollback(limit=1)
    stage = SimpleNamespace(step=3, device="cpu", all_gather=lambda mine: torch.stack([mine, mine]))
    guard.on_train_start(None, stage)
    stage.all_gather = lambda mine: torch.stack([mine, mine - 1])
    with pytest.raises(RunError, match="start from different checkpoints"):
        guard.on_train_start(None, stage)
