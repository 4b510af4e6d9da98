"""What a metric is: it sees clips as viewers do, in 8 bit, together with the batch they belong to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from vdm.types import VideoBatch


class VideoMetric(Metric, ABC):
    """The result does not depend on batches, their order or the number of processes."""

    full_state_update = False
    of_originals = False  # whether the clips the captions belong to are measured as well, by a second one
    needs: tuple[str, ...] = ()  # of the clips, besides their pixels: captions, originals, truth
    skipped: str | None = None  # after compute: why there is no number

    @abstractmethod
    def update(self, video: Tensor, batch: VideoBatch) -> None:
        """Clips b 3 T H W in uint8; `batch` holds what they are measured against."""

    @abstractmethod
    def compute(self) -> dict[str, float]: ...

    def keep_features(self, folder: Path) -> None:  # noqa: B027 - most have none
        """From here on what networks give is kept in files, and taken from there."""

    def check_ready(self) -> None:  # noqa: B027 - most need nothing
        """Skipped where it is certain before any clip is seen that there will be no number."""

    def facts(self) -> dict[str, Any]:
        """After compute: what somebody needs beside the numbers to get them again."""
        return {}
