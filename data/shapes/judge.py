"""The oracle as a plain function of a clip and the truth stored beside it, for metrics that know no dataset."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.shapes.oracle import score
from data.shapes.script import Script


def judge(video: np.ndarray, script: dict[str, Any]) -> dict[str, float | None]:
    """Scores of a clip T H W 3 in uint8 against the script it was to show; None where the script asks no such thing."""
    scores = score(video, Script.from_json(script))
    return {name: getattr(scores, name) for name in ("colour", "shape", "size", "action", "timing", "order")}
