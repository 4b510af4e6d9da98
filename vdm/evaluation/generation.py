"""What a text-to-video model makes of captions it has not seen, or what somebody else's videos are like beside real ones.

The clips that the captions belong to are measured as well, because a judge's own mistakes are not the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from vdm.bounds import Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from vdm.evaluation.breakdowns import Events, Frames, Words


class Generation:
    """A protocol: which captions, how many, which of the stored clips, the sampler, and what stands on the real side.

    Args:
        name: its id begins with it.
        stage: of runs that can be measured; the newest complete one is taken where none is named.
        graphs: what a model hears besides captions, where it hears scene graphs. auto: planned ones.
        plans: makes a reader of planned graphs from their folder.
        drawing: how plans are read (`read`) and drawn (`plan`, `graphs`); None: not at all.
        split, clips, order: the clips whose captions are sampled. order=first: the first ones; spread: evenly over the split.
        repeat: captions are sampled again, with other noise, where there are fewer than `clips`.
        reference_split: one or several; None: the clips that the captions belong to.
        reference_clips: evenly over these splits; None: all.
        seed: of the noise, together with the key of a clip.
        breakdowns: by name.
        shown: clips that are written as videos: half of them the first, a quarter the best and a quarter the worst.
        scale: enlargement on sheet.png.
    """

    kind = "samples"

    def __init__(
        self,
        *,
        name: str,
        stage: str | Sequence[str],
        graphs: Literal["gold", "planned", "none", "auto"],
        plans: Callable[..., object],
        drawing: Mapping[str, Callable[..., Any]] | None,
        split: str,
        clips: PositiveInt,
        order: Literal["first", "spread"],
        repeat: bool,
        reference_split: str | Sequence[str] | None,
        reference_clips: PositiveInt | None,
        sampler: Callable[..., Tensor],
        guidance: NonNegativeFloat,
        guidance_rescale: Fraction,
        guidance_interval: Sequence[float],
        seed: NonNegativeInt,
        breakdowns: Mapping[str, Events | Words | Frames],
        shown: NonNegativeInt,
        scale: PositiveInt,
    ):
        self.name, self.stage, self.graphs, self.plans, self.drawing = name, stage, graphs, plans, drawing
        self.split, self.clips, self.order, self.repeat = split, clips, order, repeat
        named = [reference_split] if isinstance(reference_split, str) else reference_split
        self.reference_splits = None if named is None else tuple(named)
        self.reference_clips = reference_clips
        self.sampler, self.guidance, self.guidance_rescale = sampler, guidance, guidance_rescale
        self.guidance_interval = (float(guidance_interval[0]), float(guidance_interval[1]))
        self.seed, self.breakdowns, self.shown, self.scale = seed, dict(breakdowns), shown, scale
