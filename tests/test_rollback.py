"""Steps that keep failing: back to the last whole checkpoint, on with the data, and an end with the reason."""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import test_resume
import torch

from vdm import checkpoint
from vdm.errors import RunError
from vdm.runs import Run
from vdm.stages.base import Stage

STEPS = 10
MORE = [
    f"trainer.max_steps={STEPS}", "stage.max_skipped=2", "stage.loss.adversarial=null", "callbacks.validation.every=5",
    "callbacks.moving_average.decay=0.5",
]  # fmt: skip


def settings(root, output, workers):
    """The last word wins, and a command says everything once."""
    given = {entry.partition("=")[0]: entry for entry in ORIGINAL(root, output, workers)}
    given |= {entry.partition("=")[0]: entry for entry in MORE}
    return [entry for name, entry in given.items() if not name.startswith("stage.loss.adversarial.")]


ORIGINAL = test_resume.settings


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(test_resume, "settings", settings)


def break_batches(monkeypatch, broken, seen=None):
    """The loss is not finite for these batches of the stream, whichever steps they are asked for."""
    step = Stage.training_step
    inner = {}

    def training_step(self, batch, batch_idx):
        if type(self) not in inner:
            inner[type(self)] = type(self).losses

            def losses(stage, batch):
                found = inner[type(stage)](stage, batch)
                if seen is not None:
                    seen.append((stage.step, stage.batches_seen, tuple(batch["key"])))
                if broken(stage.batches_seen):
                    found["loss"] = found["loss"] * float("nan")
                return found

            monkeypatch.setattr(type(self), "losses", losses)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Stage, "training_step", training_step)


def weights(run):
    files = checkpoint.read_manifest(run.last_checkpoint())["files"]
    return {name: fact for name, fact in files.items() if name.endswith(".safetensors")}


def test_one_failed_step_is_skipped_and_two_go_back(shapes_root, tmp_path, monkeypatch, caplog):
    seen = []
    break_batches(monkeypatch, lambda number: number in (1, 5, 6), seen)
    test_resume.train(shapes_root, tmp_path, 0)
    run = Run(tmp_path / "it")
    assert run.state == "complete"
    # Batch 1 is skipped. Steps 3 and 4 are taken, a checkpoint is at 3, and two failures lead back to it.
    assert [step for step, _, _ in seen] == [0, 1, 1, 2, 3, 4, 4, 3, 4, 5, 6, 7, 8, 9]
    assert [number for _, number, _ in seen] == list(range(14)), "the data goes on"
    assert len({keys for _, _, keys in seen}) == 14
    assert "Going back to step-00000003, 1 of 3 times" in caplog.text
    loaded = checkpoint.load(run.last_checkpoint())
    assert loaded["stage"]["skipped"] == 3
    assert loaded["stage"]["batches"] == 14
    assert loaded["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["consumed"] == 14 * 4
    assert loaded["ema_updates"] == STEPS, "a step that was taken again is averaged once"
    steps = [int(row["step"]) for row in test_resume.losses_of(run)]
    assert steps == sorted(set(steps))


def test_it_goes_on_from_the_very_state_of_the_checkpoint(shapes_root, tmp_path, monkeypatch):
    """As a run that begins at this checkpoint and reads the same data would."""
    break_batches(monkeypatch, lambda number: number in (1, 5, 6))
    states = {}
    backward = Stage.manual_backward

    def note(self, *arguments):
        optimizer = self.optimizers().optimizer
        moments = [state["exp_avg"].clone() for state in optimizer.state.values() if "exp_avg" in state]
        states[self.batches_seen] = [p.detach().clone() for p in self.autoencoder.parameters()] + moments
        return backward(self, *arguments)

    monkeypatch.setattr(Stage, "manual_backward", note)
    test_resume.train(shapes_root, tmp_path, 0)
    assert len(states[4]) == len(states[7])
    assert all(torch.equal(one, other) for one, other in zip(states[4], states[7], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(states[5], states[7], strict=True))


def test_a_run_that_is_killed_after_it_went_back_ends_alike(shapes_root, tmp_path, monkeypatch):
    break_batches(monkeypatch, lambda number: number in (1, 5, 6))
    test_resume.train(shapes_root, tmp_path / "whole", 0)
    report = Stage.report

    def killed(root, output, workers, at):
        def dying_report(self, values, *, reduce=True):
            report(self, values, reduce=reduce)
            if self.batches_seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

        Stage.report = dying_report
        test_resume.train_afresh(root, output, workers)

    fork = multiprocessing.get_context("fork")
    for at in (7, 8):  # between the failures, and after it went back but before the next checkpoint
        process = fork.Process(target=killed, args=(shapes_root, tmp_path / "killed", 0, at))
        process.start()
        process.join(200)
        assert process.exitcode == -signal.SIGKILL
    process = fork.Process(target=test_resume.train_afresh, args=(shapes_root, tmp_path / "killed", 0))
    process.start()
    process.join(200)
    whole, again = Run(tmp_path / "whole" / "it"), Run(tmp_path / "killed" / "it")
    assert again.state == "complete"
    assert weights(whole) == weights(again)
    assert test_resume.losses_of(whole) == test_resume.losses_of(again)


def test_it_gives_up_with_the_reason_and_the_samples(shapes_root, tmp_path, monkeypatch, caplog):
    seen = []
    break_batches(monkeypatch, lambda number: number >= 4, seen)
    with pytest.raises(RunError, match="2 steps in a row had a loss or gradient that is not finite") as error:
        test_resume.train(shapes_root, tmp_path, 0)
    assert sum("Going back" in record.getMessage() for record in caplog.records) == 3
    last = [key for _, _, keys in seen[-2:] for key in keys]
    assert all(key in error.value.got for key in last)
    run = Run(tmp_path / "it")
    assert checkpoint.damage(run.last_checkpoint()) is None
    assert run.last_checkpoint().name == "step-00000003"


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(shapes_root, tmp_path, monkeypatch):
    break_batches(monkeypatch, lambda number: number < 5)
    with pytest.raises(RunError, match="not finite"):
        test_resume.train(shapes_root, tmp_path, 0)


RANKS = """
from vdm import training
from vdm.launch import launch
from vdm.stages.base import Stage

backward = Stage.manual_backward

def broken(self, loss, *rest):
    is_broken = self.batches_seen in (1, 5, 6) and self.global_rank == self.trainer.world_size - 1
    backward(self, loss * float("nan") if is_broken else loss, *rest)

Stage.manual_backward = broken
launch(training.train, "train")
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("trainer", ["ddp_sim", "fsdp", "deepspeed_zero2"])
def test_all_ranks_go_back_where_one_of_them_fails(shapes_root, tmp_path, trainer):
    """And end with the weights of one process that has failed at the same batches."""
    if "deepspeed" in trainer and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs the extra [deepspeed]")
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    runs = []
    for processes, name in ((1, "cpu"), (2, trainer)):
        given = {entry.partition("=")[0]: entry for entry in settings(shapes_root, tmp_path / name, 0)}
        changed = [f"trainer={name}", f"data.batch_size={4 // processes}", "callbacks.validation.every=0"]
        if processes > 1:
            changed += ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
        given |= {entry.partition("=")[0]: entry for entry in changed}
        launch = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        done = subprocess.run([sys.executable, *launch, str(script), *given.values()], env=environment, text=True,
                              capture_output=True, timeout=400, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Going back to step-00000003" in done.stderr
        runs.append(Run(tmp_path / name / "it"))
    one, two = (checkpoint.load(run.last_checkpoint()) for run in runs)
    assert two["ema_updates"] == one["ema_updates"] == STEPS
    for kind in ("state_dict", "ema"):
        for name, tensor in one[kind].items():
            torch.testing.assert_close(two[kind][name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
