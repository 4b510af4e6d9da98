"""What a preflight found, as a person reads it: memory by bucket and part, what would make it fit, what the job will cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vdm.preflight.limits import Limit
from vdm.preflight.sharding import Sharing, parts
from vdm.preflight.simulate import Usage

# Beside tensors: on a CPU what the first step loads, and the buffers of its kernels; on a GPU what its allocator loses.
LOADED, LOST = {"cpu": 70_000_000, "cuda": 0}, {"cpu": 0.0, "cuda": 0.03}
CERTAIN = 1.15  # of the limit: this far above it a job is stopped before it begins
CLOSE = 0.9
NAMES = {
    "weights": "weights", "frozen": "frozen networks", "gradients": "gradients", "optimizer": "optimizer",
    "average": "moving average", "working": "activations", "sharing": "sharing",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Clips of one size, as a batch of a process."""

    name: str  # frames x height x width
    key: str  # of the setting that says how many clips a batch has
    count: int


@dataclass(frozen=True)
class Remedy:
    """A setting with which it would take so many bytes."""

    setting: str
    bytes: int


@dataclass
class Bucket:
    """What one bucket takes on a process."""

    shape: Shape
    usage: Usage
    sharing: Sharing
    device: str
    resident: int  # of the process before it has built anything
    remedies: list[Remedy] = field(default_factory=list)

    @property
    def parts(self) -> dict[str, int]:
        return parts(self.usage, self.sharing, on_host=self.device == "cpu")

    @property
    def bytes(self) -> int:
        """Of the whole process."""
        return self.resident + predicted(sum(self.parts.values()), self.device)


@dataclass(frozen=True)
class Cost:
    """`measured`: the step was taken; otherwise `seconds` comes from its operations and an assumed speed."""

    seconds: float | None  # of an optimizer step
    steps: int  # that are left
    devices: int
    is_measured: bool
    assumed: str = ""


def predicted(counted: int, device: str) -> int:
    return int(counted * (1 + LOST[device])) + LOADED[device]


def verdict(bytes_: int, limit: Limit) -> str:
    if bytes_ > CERTAIN * limit.bytes:
        return "does not fit"
    if bytes_ > limit.bytes:
        return "may not fit"
    return "is close" if bytes_ > CLOSE * limit.bytes else "fits"


def table(buckets: Sequence[Bucket], limit: Limit) -> str:
    """Memory of one process in GB, a line a bucket."""
    present = [name for name in NAMES if any(bucket.parts[name] for bucket in buckets)]
    lines = [["clips", "batch", *(NAMES[name] for name in present), "process", "worst in", ""]]
    for bucket in buckets:
        values = [_gb(bucket.parts[name]) for name in present]
        ending = [_gb(bucket.bytes), bucket.usage.worst_phase, verdict(bucket.bytes, limit)]
        lines.append([bucket.shape.name, str(bucket.shape.count), *values, *ending])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = ["  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*rows, f"there are {_gb(limit.bytes)} GB {limit.name}"])


def advice(buckets: Sequence[Bucket], limit: Limit) -> list[str]:
    """For each bucket that does not fit: which settings, each by itself, make it fit."""
    lines = []
    for bucket in buckets:
        if bucket.bytes <= limit.bytes:
            continue
        enough = [remedy for remedy in bucket.remedies if remedy.bytes <= CLOSE * limit.bytes]
        least = min(bucket.remedies, key=lambda remedy: remedy.bytes, default=None)
        said = [f"{remedy.setting} ({_gb(remedy.bytes)} GB)" for remedy in enough]
        if not said and least is not None:
            said = [f"nothing by itself; the most is gained by {least.setting} ({_gb(least.bytes)} GB)"]
        lines.append(
            f"{bucket.shape.name} {verdict(bucket.bytes, limit)}; it would with: " + " or ".join(said or ["less"])
        )
    return lines


def cost(cost: Cost) -> str:
    if cost.seconds is None:
        return f"nothing is said about time: {cost.assumed}"
    hours = cost.seconds * cost.steps / 3600
    how = "measured on this device" if cost.is_measured else f"estimated from its operations, {cost.assumed}"
    per = f"{1 / cost.seconds:.3g} steps/s" if cost.seconds < 1 else f"{cost.seconds:.3g} s a step"
    text = f"{per}, {how}: {_hours(hours)} for {cost.steps:,} steps"
    if cost.devices > 1:
        text += f" on each of {cost.devices} devices, {_hours(hours * cost.devices)} of devices; without communication"
    return text


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f}"


def _hours(hours: float) -> str:
    return f"{60 * hours:.3g} minutes" if hours < 1 else f"{hours:,.3g} hours"
