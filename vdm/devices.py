"""The device of this process: a GPU where there is one, and its own where there are several processes."""

from __future__ import annotations

import os

import torch

from vdm.errors import ConfigError

CHOICES = ("auto", "cpu", "cuda")


def this_device(wanted: str = "auto", *, key: str = "device") -> torch.device:
    """Also makes a GPU the one that plain "cuda" means. `key` is the setting that a message names."""
    if wanted not in CHOICES:
        raise ConfigError("unknown device", key=key, got=wanted, allowed=CHOICES)
    present = torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise ConfigError("no GPU is visible to torch", key=key, got=wanted, allowed="cpu, auto")
    if wanted == "cpu" or not present:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    device = torch.device("cuda", local % torch.cuda.device_count())  # a launcher may show each process its own alone
    torch.cuda.set_device(device)
    return device
