"""The oracle as a plain function of a clip and the truth stored beside it, for metrics that know no dataset."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.shapes.oracle import score
from data.shapes.script import Script

NAMES = ("colour", "shape", "size", "action", "timing", "order")


def judge(video: np.ndarray, script: dict[str, Any]) -> dict[str, float | None]:
    """Scores of a clip T H W 3 in uint8 against the script it was to show; None where the script asks no such thing.

    `single_action` is the score of the action where there is one event only: what happens, apart from when.
    """
    scores = score(video, Script.from_json(script))
    single = scores.action if len(script["events"]) == 1 else None
    return {name: getattr(scores, name) for name in NAMES} | {"single_action": single}
