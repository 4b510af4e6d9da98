"""What a metric is: it sees clips as viewers do, in 8 bit, together with the batch they belong to."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from torchmetrics import Metric

from vdm.types import VideoBatch


class VideoMetric(Metric, ABC):
    """States are sums over clips, so the result does not depend on batches or ranks."""

    full_state_update = False

    @abstractmethod
    def update(self, video: Tensor, batch: VideoBatch) -> None:
        """Clips b 3 T H W in uint8; `batch` holds what they are measured against."""

    @abstractmethod
    def compute(self) -> dict[str, float]: ...
