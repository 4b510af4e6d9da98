"""Agreement of raters and intervals of their means: plain maths, without files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

LEVEL = 0.95  # of intervals

Scale = Literal["ordinal", "interval"]


def krippendorff_alpha(units: Sequence[Sequence[float]], *, scale: Scale) -> float | None:
    """1 where raters agree, 0 where they agree as by chance; None where nothing can be said about it.

    `units` are what was rated, each with the ratings it got, from anybody and in any order. Units with one rating say nothing
    about agreement; without two different ratings in all there is no chance to compare with.
    """
    pairable = [np.asarray(unit, dtype=np.float64) for unit in units if len(unit) > 1]
    if not pairable:
        return None
    values, counts = np.unique(np.concatenate(pairable), return_counts=True)
    if len(values) < 2:
        return None
    total = counts.sum()
    apart = _squared_differences(values, counts, scale)  # v v
    observed = 0.0
    for unit in pairable:
        held = np.array([(unit == value).sum() for value in values], dtype=np.float64)
        observed += held @ apart @ held / (len(unit) - 1)  # a rating and itself differ by nothing
    expected = counts @ apart @ counts / (total - 1)
    return float(1 - observed / expected)


def _squared_differences(values: np.ndarray, counts: np.ndarray, scale: Scale) -> np.ndarray:
    if scale == "interval":
        return (values[:, None] - values[None, :]) ** 2
    # As far apart as there are ratings between two, with half of those that are equal to either.
    middle = np.cumsum(counts) - counts / 2
    return (middle[:, None] - middle[None, :]) ** 2


def bootstrap(
    statistic: Callable[[np.ndarray], float], items: int, *, draws: int, seed: int
) -> tuple[float, float] | None:
    """The interval of a statistic of item positions, drawn with repetition. None of fewer than two items."""
    if items < 2:
        return None
    generator = np.random.default_rng(seed)
    found = np.array([statistic(generator.integers(0, items, items)) for _ in range(draws)])
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
