"""Shared by all tests: small shards of the embedded world, made once by the command a user types."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes on two cores, not four threads

import pytest
import torch

import vdm  # noqa: F401  # first: it lets torchvision be imported beside a CPU torch

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("num_train=96", "num_val=12", "num_test=8", "num_heldout=8")

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """A data root with `shapes/{train,val,test,heldout}`."""
    root = tmp_path_factory.mktemp("datasets")
    settings = [f"data.source.{size}" for size in SIZES]
    command = [sys.executable, "-m", "data.prepare", "data=shapes", f"paths.data_root={root}", *settings]
    command += ["data.store.samples_per_shard=32", "num_workers=2"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    return root
