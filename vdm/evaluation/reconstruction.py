"""What an autoencoder keeps of clips it has not seen: encode with the posterior's mean, decode, measure.

The clips themselves are measured beside it, because a judge's own mistakes are not the autoencoder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.evaluation.breakdowns import Events, Frames, Words


class Reconstruction:
    """A protocol: which clips of which split, and what is shown of them."""

    kind = "reconstructions"
    repeat = False
    graphs, drawing = "none", None
    reference_splits, reference_clips = None, None

    def __init__(
        self,
        *,
        name: str,
        stage: str,
        split: str,
        clips: PositiveInt,
        order: Literal["first", "spread"],
        breakdowns: Mapping[str, Events | Words | Frames],
        shown: NonNegativeInt,
        scale: PositiveInt,
    ):
        self.name, self.stage, self.split, self.clips, self.order = name, stage, split, clips, order
        self.breakdowns, self.shown, self.scale = dict(breakdowns), shown, scale
