"""One process and two train the same text-to-video model: noise, dropping and order belong to clips, not to processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import test_resume
import torch
from test_resume_diffusion import parent_settings, settings

from vdm import checkpoint
from vdm.runs import Run

ROOT = Path(__file__).resolve().parents[1]
STEPS = 3


def train(root, output, parent, processes):
    given = {entry.partition("=")[0]: entry for entry in settings(parent)(root, output, 0)}
    changed = [
        "trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}", "trainer.precision=32-true",
        f"trainer.max_steps={STEPS}", f"data.batch_size={4 // processes}", "callbacks.checkpoint.every=1",
    ]  # fmt: skip
    given |= {entry.partition("=")[0]: entry for entry in changed}
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, "train.py", *given.values()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    return Run(output / "it")


def test_two_processes_end_with_the_weights_of_one(shapes_root, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_resume, "settings", parent_settings)
        test_resume.train(shapes_root, tmp_path / "parent", 0)
    one, two = (train(shapes_root, tmp_path / str(n), tmp_path / "parent" / "it", n) for n in (1, 2))
    for name in ("backbone", "conditions"):
        ours, theirs = (checkpoint.network_weights(run.last_checkpoint(), name, averaged=False) for run in (one, two))
        moved = 0.0
        for key, tensor in ours.items():
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-4, atol=2e-6, msg=lambda m, key=key: f"{key}: {m}")
            moved = max(moved, tensor.float().abs().max().item())
        assert moved > 0
    losses = [
        [float(row["train/loss"]) for row in test_resume.losses_of(run) if row["train/loss"]] for run in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
