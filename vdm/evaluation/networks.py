"""Feature networks as files of the user: TorchScript, found by path, checked by SHA-256, never downloaded.

Where a file is absent or another one, the metric is skipped with a reason that says which file, from where, under which
licence. Every set of clips goes through the same call, in 8 bit, so both sides are resized by the same code.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdm.bounds import PositiveInt
from vdm.evaluation.keyed import Skipped
from vdm.evaluation.pooling import QuickPools

log = logging.getLogger(__name__)


class TorchScript:
    """A network that takes 8-bit clips `b 3 T H W`, or frames `b 3 H W`, and gives features `b d`.

    Args:
        sha256: of the file, null where the publisher and everybody else are silent, or to use a file of your own.
        origin, licence: said when the file is not there.
        arguments: further arguments of the call, as the published networks have them.
        resize: in words how the network resizes; stored beside the number.
        batch_size: inputs a call.
    """

    def __init__(
        self,
        *,
        file: str,
        sha256: str | None,
        origin: str,
        licence: str,
        arguments: Mapping[str, Any] | None,
        resize: str,
        batch_size: PositiveInt,
    ):
        self.file, self.sha256, self.origin, self.licence = Path(file), sha256, origin, licence
        self.arguments, self.resize, self.batch_size = dict(arguments or {}), resize, batch_size

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """b d in float32, on the CPU."""
        assert pictures.dtype == torch.uint8, "networks see what viewers see"
        path = checked(self.file, self.sha256, self.origin, self.licence)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network, parts = _loaded(path, digest(path), device), []
        for part in pictures.split(self.batch_size):
            try:
                with QuickPools():
                    found = network(part.to(device).contiguous(), **self.arguments)
            except (RuntimeError, torch.jit.Error) as error:
                reason = (str(error).strip().splitlines() or ["no reason given"])[-1][:200]
                shape = "x".join(map(str, part.shape[1:]))
                raise Skipped(f"the network {path.name} does not take inputs of 3 T H W = {shape}: {reason}") from None
            parts.append(found.flatten(1).float().cpu())
        return torch.cat(parts)

    def check_ready(self) -> None:
        checked(self.file, self.sha256, self.origin, self.licence)

    def facts(self) -> dict[str, Any]:
        known = digest(self.file) if self.file.is_file() else None
        return {"network": self.file.name, "sha256": known, "arguments": self.arguments, "resize": self.resize}


def checked(path: Path, sha256: str | None, origin: str, licence: str) -> Path:
    """The path, if the file is there and is the one that is meant."""
    if not path.is_file():
        raise Skipped(f"{path} is not there, and nothing is downloaded. It is {origin}; licence: {licence}")
    actual = digest(path)
    if sha256 is not None and actual != sha256.lower():
        raise Skipped(
            f"{path} is not the file that is meant: its sha256 is {actual}, expected {sha256}. It is {origin}. "
            "For a network of your own set sha256=null and give the metric another label"
        )
    return path


def digest(path: Path) -> str:
    stat = path.stat()
    return _digest(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _digest(path: str, _changed: int, _size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=4)
def _loaded(path: Path, _sha256: str, device: str) -> Any:
    """One copy in memory for all metrics that use it."""
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise Skipped(f"{path} cannot be read as TorchScript: {reason}") from None
