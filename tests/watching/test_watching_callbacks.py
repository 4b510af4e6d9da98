"""Timing and the watchdog around real steps: what they report, what they do not disturb, when they speak and when not."""

import logging
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch.utils.data import DataLoader

from tests.stages.test_autoencoder import batch, samples, stage
from vdm.callbacks.ema import MovingAverage
from vdm.callbacks.timing import Timing, shape_of
from vdm.callbacks.validation import Validation
from vdm.callbacks.watchdog import Watchdog
from vdm.phases import Phases
from vdm.runs import Run
from vdm.watching.stopwatch import Stopwatch

ROOT = Path(__file__).resolve().parents[2]


class Rows(Logger):
    """What was logged, by step."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    name, version = "rows", ""

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.setdefault(step, {}).update(metrics)


def fit(module, steps, *callbacks, every=2):
    rows = Rows()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=rows, callbacks=list(callbacks), log_every_n_steps=every,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples(), batch_size=4))
    return rows.rows


def test_phases_add_up_to_the_step_and_speed_follows_from_them():
    timing = Timing(peak_tflops=2.0, straggler=0.1)
    rows = fit(stage(), 6, MovingAverage(decay=0.9), timing)
    assert sorted(rows) == [2, 4, 6]
    for row in rows.values():
        parts = {
            name: value for name, value in row.items() if name.startswith("perf/time_") and name != "perf/time_step"
        }
        assert {"perf/time_forward", "perf/time_backward", "perf/time_optimizer", "perf/time_ema"} < parts.keys()
        assert all(value > 0 for value in parts.values())
        assert sum(parts.values()) == pytest.approx(row["perf/time_step"])
        assert row["perf/clips_per_second"] == pytest.approx(4 / row["perf/time_step"])
        assert row["perf/mfu"] == row["perf/hfu"] == pytest.approx(row["perf/tflops_per_second"] / 2)
        assert row["perf/peak_memory_gb"] > 0.05
        assert "perf/waiting_for_slowest" not in row  # there is nobody to wait for
    (flops,) = timing.flops.values()
    trains = sum(rows[6][f"perf/time_{name}"] for name in ("forward", "backward"))
    assert rows[6]["perf/tflops_per_second"] < flops.model / trains / 1e12
    assert flops.phases["forward"] < flops.phases["backward"] < 2.5 * flops.phases["forward"]


def test_without_a_peak_there_is_no_use_of_it():
    (row,) = fit(stage(), 2, Timing(peak_tflops=None, straggler=0.1)).values()
    assert "perf/tflops_per_second" in row
    assert "perf/mfu" not in row


def test_watching_changes_no_weight(tmp_path):
    dog = Watchdog(hang_after=30.0, exit_code=None)
    dog.run = Run(tmp_path)
    watched, alone = stage(), stage()
    fit(watched, 4, Timing(peak_tflops=None, straggler=0.1), dog)
    fit(alone, 4)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name
    assert not list(tmp_path.iterdir())
    hooks = [hook for module in watched.modules() for hook in module._forward_pre_hooks.values()]
    assert not hooks


def test_a_change_of_phase_costs_microseconds():
    phases = Phases()
    phases.observers.append(Stopwatch())
    begun = time.process_time()
    for _ in range(10_000):
        with phases("forward"):
            pass
    assert (time.process_time() - begun) / 10_000 < 50e-6  # twenty of them are a millisecond


def test_batches_are_told_apart_by_their_clips():
    data = batch()
    assert shape_of(data) == (4, 3, 4, 16, 16)
    assert shape_of({"latent": torch.zeros(2, 8, 4, 4, 4), "key": ["a", "b"]}) == (2, 8, 4, 4, 4)
    assert shape_of({"key": ["a", "b", "c"]}) == (3,)


def watched(tmp_path, module, steps, *callbacks, hang_after=0.5):
    dog = Watchdog(hang_after=hang_after, exit_code=None)
    dog.run = Run(tmp_path)
    fit(module, steps, *callbacks, dog)
    return sorted((tmp_path / "stacks").glob("*.txt")) if (tmp_path / "stacks").exists() else []


def test_a_hang_leaves_the_stacks_of_all_threads(tmp_path, caplog):
    module = stage()
    losses = type(module).losses

    def waiting_for_ever(data):
        if module.step == 1:
            time.sleep(1.5)
        return losses(module, data)

    module.losses = waiting_for_ever
    with caplog.at_level(logging.ERROR):
        (file,) = watched(tmp_path, module, 3)  # one for one hang
    text = file.read_text()
    assert file.name.startswith("rank-0-")
    assert "phase forward" in text
    assert "step 1" in text
    assert "waiting_for_ever" in text
    assert text.lower().count("thread 0x") >= 2
    assert "no sign of life" in caplog.text
    assert str(file) in caplog.text
    assert module.step == 3


def test_a_long_validation_that_goes_on_is_no_hang(tmp_path):
    module = stage()
    slow = type(module).validation_losses

    def validation_losses(data):
        time.sleep(0.2)
        return slow(module, data)

    class Clips(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(samples(), batch_size=4)

        def val_dataloader(self):
            return DataLoader(samples(), batch_size=1)

    module.validation_losses = validation_losses
    trainer_fit = pl.Trainer.fit

    def with_datamodule(trainer, network, _):
        trainer_fit(trainer, network, datamodule=Clips())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl.Trainer, "fit", with_datamodule)
        assert watched(tmp_path, module, 1, Validation(every=1)) == []


def test_long_sampling_that_goes_on_is_no_hang(tmp_path):
    """Networks that are called are a sign of life, whoever calls them."""
    module = stage()
    video = batch()["video"]

    class Sampling(pl.Callback):
        def on_train_batch_end(self, *_):
            with torch.no_grad(), module.phases("samples"):
                for _ in range(8):
                    time.sleep(0.15)
                    module.autoencoder(video)

    assert watched(tmp_path, module, 1, Sampling()) == []


def test_a_hang_may_end_the_process_with_a_code(tmp_path):
    def hang():
        module = stage()
        module.losses = lambda data: time.sleep(60)
        dog = Watchdog(hang_after=0.5, exit_code=75)
        dog.run = Run(tmp_path)
        fit(module, 2, dog)

    process = multiprocessing.get_context("fork").Process(target=hang)
    process.start()
    process.join(50)
    assert process.exitcode == 75
    assert len(list((tmp_path / "stacks").glob("rank-0-*.txt"))) == 1


TWO = """
import os, sys, time
sys.path.insert(0, {root!r})
import hydra
import vdm
from vdm import training
from vdm.launch import CONF, log_to_stderr
from vdm.stages.autoencoder import AutoencoderStage

log_to_stderr()
losses = AutoencoderStage.losses
def late(self, batch):
    if self.global_rank == 1:
        time.sleep(6.0 if self.step == 4 else 0.5)
    return losses(self, batch)
AutoencoderStage.losses = late
with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
    training.train(hydra.compose("train", overrides=sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_ranks_name_the_late_one_and_both_leave_stacks(shapes_root, tmp_path):
    from test_training import SMALL

    script = tmp_path / "two.py"
    script.write_text(TWO.format(root=str(ROOT)))
    words = [*SMALL, f"paths.data_root={shapes_root}", f"paths.output_root={tmp_path}", "run.id=two", "trainer=ddp",
             "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true", "data.batch_size=2",
             "trainer.log_every_n_steps=2", "callbacks.validation.every=0", "callbacks.samples.every=0",
             "callbacks.watchdog.hang_after=2"]  # fmt: skip
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *words], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "rank 1 is the slowest in the forward pass" in done.stderr
    stacks = {path.name.rsplit("-", 3)[0][:6]: path.read_text() for path in (tmp_path / "two" / "stacks").iterdir()}
    assert stacks.keys() == {"rank-0", "rank-1"}
    assert "in late" in stacks["rank-1"]
    header = (tmp_path / "two" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "perf/waiting_for_slowest" in header
