"""How much memory there is for one process: of its GPU, or its share of the machine, of a container or of a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

CONTEXT = 600_000_000  # what a GPU's driver and libraries keep for themselves in each process


@dataclass(frozen=True)
class Limit:
    bytes: int
    name: str


def limit_of(device: torch.device, *, processes: int, resident: int) -> Limit:
    """`processes` share a machine; `resident` is what this one has taken of it already."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device)
        return Limit(min(free + own, total - CONTEXT), f"of {torch.cuda.get_device_name(device)}")
    found = [(each, "of the control group") for each in control_groups()]
    found.append((available(), "free in this machine"))
    most, name = min(found)
    return Limit((most + resident) // max(processes, 1), name if processes == 1 else f"{name}, for each of {processes}")


def available() -> int:
    """What the system could give without swapping."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if Path("/proc/meminfo").exists() else []
    for line in lines:
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 1 << 62  # nobody knows


def control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """What is left below the limits of the groups that this process is in, of either version."""
    try:
        lines = own.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names, base = ("memory.max", "memory.current"), root
        elif "memory" in controllers.split(","):
            names, base = ("memory.limit_in_bytes", "memory.usage_in_bytes"), root / "memory"
        else:
            continue
        folder = base / path.lstrip("/")
        while folder == base or base in folder.parents:
            left += _left(folder, *names)
            if folder == base:
                break
            folder = folder.parent
    return left


def _left(folder: Path, limit: str, usage: str) -> list[int]:
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        cache = _cached(folder)
    except (OSError, ValueError):
        return []
    if most == "max" or int(most) >= 1 << 60:
        return []
    return [max(int(most) - used + cache, 0)]


def _cached(folder: Path) -> int:
    """Pages of files count as used, and are given up when somebody needs them."""
    for line in (folder / "memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0
