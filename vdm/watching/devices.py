"""What a device could do and how much memory was taken: peak operations per second from a table, peak bytes from the system."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch

# Dense TFLOP/s as the makers state them, without sparsity: bfloat16 (float16 where there is none), TF32, float32.
# The first entry that is part of a device's name counts.
PEAKS = (
    ("B200", 2250.0, 1125.0, 75.0),
    ("H200", 989.0, 494.0, 67.0),
    ("H100 PCIe", 756.0, 378.0, 51.0),
    ("H100 NVL", 835.0, 417.0, 60.0),
    ("H100", 989.0, 494.0, 67.0),
    ("H800", 989.0, 494.0, 67.0),
    ("A100", 312.0, 156.0, 19.5),
    ("A800", 312.0, 156.0, 19.5),
    ("A40", 149.7, 74.8, 37.4),
    ("A30", 165.0, 82.0, 10.3),
    ("L40S", 362.0, 183.0, 91.6),
    ("L40", 181.0, 90.5, 90.5),
    ("L4", 121.0, 60.0, 30.3),
    ("RTX 4090", 165.2, 82.6, 82.6),
    ("RTX 3090", 71.0, 35.6, 35.6),
    ("RTX A6000", 154.8, 77.4, 38.7),
    ("V100", 125.0, 15.7, 15.7),
    ("T4", 65.0, 8.1, 8.1),
    ("MI300X", 1307.0, 654.0, 163.4),
    ("MI250", 362.0, 90.5, 90.5),
)


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Of one device in the trainer's precision; None where no table knows it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, half, tf32, single in PEAKS:
        if part.lower() in name.lower():
            if "16" in str(precision):
                return half
            is_exact = torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32
            return single if is_exact else tf32
    return None


def measured_tflops(device: torch.device, precision: str, *, size: int | None = None, seconds: float = 0.5) -> float:
    """Of a matrix product on this device: what a step could reach at best."""
    size = size or (8192 if device.type == "cuda" else 1024)
    dtype = {"bf16": torch.bfloat16, "16": torch.float16}.get(str(precision).split("-")[0], torch.float32)
    a = torch.ones(size, size, dtype=dtype, device=device)
    best, until = float("inf"), time.perf_counter() + seconds
    a @ a  # the first one sets up
    while time.perf_counter() < until:
        best = min(best, product_seconds(a))
    return 2 * size**3 / best / 1e12


def product_seconds(a: torch.Tensor) -> float:
    """How long this device takes for a product."""
    is_cuda = a.device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(a.device)
    begun = time.perf_counter()
    a @ a
    if is_cuda:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - begun


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has had at once: of its GPU, or resident in the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resident_peak()


def resident_peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the peak of the parent
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident() -> int:
    """Memory of this process now."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else resident_peak()
