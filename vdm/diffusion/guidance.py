"""Guidance as a table: a prediction is a weighted sum of predictions under subsets of the conditions.

    classifier-free (Ho and Salimans 2022)     {c}: s              {}: 1 - s
    InstructPix2Pix (Brooks et al. 2023)       {i, c}: s_c         {i}: s_i - s_c      {}: 1 - s_i
    Video Alchemist (Chen et al. 2025)         {i, c}: 1 + s_c + s_i   {i}: -s_c       {c}: -s_i

The weights sum to 1, so the sum means the same for any kind of prediction. One function runs every table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vdm.errors import ConfigError
from vdm.types import Controls

Predict = Callable[[Tensor, Tensor], Tensor]  # x b c t h w, timestep b -> prediction b c t h w
Predictor = Callable[[Controls], Predict]
Subset = frozenset[str]  # names of the conditions that are said; the others are null

NEGLIGIBLE = 1e-9  # 1 - 0.9 - 0.1 is not quite 0


@dataclass(frozen=True)
class Guidance:
    """A table of (conditions that are said, weight).

    Args:
        terms: the table. A subset may come several times, its weights add up.
        rescale: 0 to 1, how far the spread of each sample is pulled back to that of the fully conditioned prediction
            (Lin et al. 2024, Sec. 3.4), against overexposure at large weights.
        interval: where in the schedule guidance acts, as shares of its timesteps, 0 the clean end and 1 pure noise
            (Kynkäänniemi et al. 2024). Elsewhere the fully conditioned prediction is taken as it is, for its cost alone.
    """

    terms: Sequence[tuple[Iterable[str], float]]
    rescale: float
    interval: tuple[float, float]

    def __post_init__(self):
        table: dict[Subset, float] = {}
        for names, weight in self.terms:
            if isinstance(names, str):
                raise ConfigError("a term is a list of conditions and a weight", key="guidance.terms", got=names)
            table[frozenset(names)] = table.get(frozenset(names), 0.0) + float(weight)
        if not table or not math.isclose(sum(table.values()), 1.0, abs_tol=1e-6):
            raise ConfigError(
                "the weights of guidance sum to 1", key="guidance.terms", got=[[sorted(s), w] for s, w in table.items()]
            )
        if not 0 <= self.rescale <= 1:
            raise ConfigError("a share", key="guidance.rescale", got=self.rescale, allowed="between 0 and 1")
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ConfigError(
                "the interval is a range of shares",
                key="guidance.interval",
                got=list(self.interval),
                allowed="[low, high] with 0 <= low <= high <= 1",
            )
        active = tuple((subset, weight) for subset, weight in table.items() if abs(weight) > NEGLIGIBLE)
        object.__setattr__(self, "terms", active)
        object.__setattr__(self, "interval", tuple(self.interval))

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """The branches that are computed: those with a weight."""
        return tuple(subset for subset, _ in self.terms)

    @property
    def full(self) -> Subset:
        """The branch that says the most; among equals, the one with the largest weight."""
        return max(self.terms, key=lambda term: (len(term[0]), term[1]))[0]


def classifier_free(
    conditions: Iterable[str],
    scale: float,
    *,
    dropped: Iterable[str] | None = None,
    rescale: float,
    interval: tuple[float, float],
) -> Guidance:
    """Away from what is predicted without the `dropped` conditions (all of them, if not given); the others always stay."""
    said = frozenset(conditions)
    kept = frozenset() if dropped is None else said - frozenset(dropped)
    _check_scale("guidance", scale)
    return Guidance([(said, scale), (kept, 1 - scale)], rescale, interval)


def instruct_pix2pix(
    first: Iterable[str],
    second: Iterable[str],
    first_scale: float,
    second_scale: float,
    *,
    rescale: float,
    interval: tuple[float, float],
) -> Guidance:
    """Two scales, the second condition on top of the first (Brooks et al. 2023, Eq. 3: first image, then text)."""
    first, both = frozenset(first), frozenset(first) | frozenset(second)
    _check_scale("guidance.first_scale", first_scale)
    _check_scale("guidance.second_scale", second_scale)
    terms = [(both, second_scale), (first, first_scale - second_scale), (frozenset(), 1 - first_scale)]
    return Guidance(terms, rescale, interval)


def alchemist(
    first: Iterable[str],
    second: Iterable[str],
    first_scale: float,
    second_scale: float,
    *,
    rescale: float,
    interval: tuple[float, float],
) -> Guidance:
    """Two scales, each away from a prediction that lacks one condition and has the other; (0, 0) is no guidance."""
    first, second = frozenset(first), frozenset(second)
    _check_scale("guidance.first_scale", first_scale)
    _check_scale("guidance.second_scale", second_scale)
    terms = [(first | second, 1 + first_scale + second_scale), (first, -second_scale), (second, -first_scale)]
    return Guidance(terms, rescale, interval)


def guided(
    predictor: Predictor,
    controls_for: Callable[[Subset], Controls],
    guidance: Guidance,
    *,
    num_timesteps: int,
    batched: bool = True,
    shared: bool = False,
) -> Predict:
    """One prediction out of the branches of a table.

    Args:
        predictor: what the backbone predicts under given controls, over a batch of any size. It is called here, once for
            each set of branches, so what a backbone makes of its controls is made once per clip.
        controls_for: the controls of the whole batch with only these conditions said and the others null.
        guidance: the table.
        num_timesteps: of the schedule, for the interval.
        batched: all branches in one call. False: one after the other, in the memory of one.
        shared: a prediction takes the latents once for all `branches` of a call, and repeats them itself where they part.
    """
    branches = {subset: controls_for(subset) for subset in guidance.subsets}
    if len(branches) == 1:
        return predictor(branches[guidance.full])
    everywhere = guidance.interval == (0.0, 1.0)
    plain = None if everywhere else predictor(branches[guidance.full])
    compute = _together(predictor, branches, shared) if batched else _apart(predictor, branches)
    weights = [weight for _, weight in guidance.terms]
    low, high = (share * num_timesteps for share in guidance.interval)

    def predict(x: Tensor, timestep: Tensor) -> Tensor:
        if not everywhere and not low <= timestep[0].item() <= high:
            return plain(x, timestep)
        parts = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in compute(x, timestep)]
        combined = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        if guidance.rescale == 0:
            return combined
        return rescaled(combined, parts[guidance.subsets.index(guidance.full)], guidance.rescale)

    return predict


def _together(
    predictor: Predictor, branches: dict[Subset, Controls], shared: bool
) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
    k = len(branches)
    predict = predictor(Controls.cat(list(branches.values())))
    if shared:
        return lambda x, timestep: predict(x, timestep, branches=k).chunk(k)
    return lambda x, timestep: predict(x.repeat(k, *[1] * (x.ndim - 1)), timestep.repeat(k)).chunk(k)


def _apart(predictor: Predictor, branches: dict[Subset, Controls]) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
    predicts = [predictor(controls) for controls in branches.values()]
    return lambda x, timestep: [predict(x, timestep) for predict in predicts]


def rescaled(combined: Tensor, conditioned: Tensor, share: float) -> Tensor:
    """Give a guided prediction the standard deviation of the conditioned one, by a share (Lin et al. 2024, Eq. 15-16)."""
    dims = tuple(range(1, combined.ndim))
    spread = conditioned.std(dim=dims, keepdim=True) / combined.std(dim=dims, keepdim=True)
    return combined * (share * spread + 1 - share)


def _check_scale(key: str, scale: float) -> None:
    if not (math.isfinite(scale) and scale >= 0):
        raise ConfigError(
            "guidance points towards the conditions, or nowhere",
            key=key,
            got=scale,
            allowed="a number >= 0: 0 ignores the prompt, 1 is the plain model, 5 to 15 is usual",
        )
