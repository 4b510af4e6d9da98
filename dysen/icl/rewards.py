"""What a plan is worth: the reward terms of Dysen-VDM, each in [0, 1], 1 for a perfect answer, less for every error.

These are of plans and graphs, those of videos are in `video_terms`. A plan that could not be made is worth 0. Where the
published terms are unbounded (APR divides by a distance of 0, FVD is divided by), these have the form 1 / (1 + distance).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dysen.action_plan import Event, Plan
from dysen.names import identity
from dysen.scene_graph import DynamicSceneGraph, SceneGraph, event_to_dsg
from vdm.bounds import NonNegativeFloat

EXACT = 6  # events of one triplet whose best pairs are searched for; more are paired in the order of time


@dataclass(frozen=True)
class Outcome:
    """One caption with what was planned for it and the truth. None: there is none."""

    caption: str
    gold: Plan
    plan: Plan | None
    gold_dsg: DynamicSceneGraph | None = None
    dsg: DynamicSceneGraph | None = None
    video: Tensor | None = None  # 3 T H W, the true one
    key: str = ""  # of the caption
    extras: Mapping[str, Any] = field(default_factory=dict)  # what else is known of it


class RewardTerm(ABC):
    """`weight` in the sum of all terms."""

    is_of_batch = False  # True: one score for all outcomes, so none is better than another

    def __init__(self, *, weight: NonNegativeFloat):
        self.weight = weight

    @abstractmethod
    def scores(self, outcomes: Sequence[Outcome]) -> list[float]:
        """In [0, 1], one for each outcome."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a run that continues is rewarded alike. Most have nothing to keep."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """The inverse of `state`."""


class PlanReliability(RewardTerm):
    """Action-planning reliability (APR): how near planned events are to the true ones in time."""

    def scores(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [reliability(one.plan, one.gold) for one in outcomes]


class TripletRecall(RewardTerm):
    """Triplet recall (TriRec) of graphs: of the enriched ones where both are known, else of those of the plans."""

    def scores(self, outcomes: Sequence[Outcome]) -> list[float]:
        return [self._score(one) for one in outcomes]

    @staticmethod
    def _score(outcome: Outcome) -> float:
        if outcome.plan is None:
            return 0.0
        if outcome.dsg is not None and outcome.gold_dsg is not None:
            return triplet_recall(outcome.dsg, outcome.gold_dsg)
        return triplet_recall(event_to_dsg(outcome.plan), event_to_dsg(outcome.gold))


def rewards(terms: Mapping[str, RewardTerm], outcomes: Sequence[Outcome]) -> tuple[list[float], dict[str, list[float]]]:
    """The weighted mean of the terms for each outcome, again in [0, 1], and each term by itself."""
    parts = {name: term.scores(outcomes) for name, term in terms.items()}
    whole = sum(term.weight for term in terms.values())
    assert whole > 0, "some term has a weight"
    total = [sum(term.weight * parts[name][i] for name, term in terms.items()) / whole for i in range(len(outcomes))]
    return total, parts


# ---- plans ------------------------------------------------------------------------------------------------------------


def reliability(plan: Plan | None, gold: Plan) -> float:
    """Sum of 1 / (1 + distance in time) over matched events, by the larger number of events.

    Events match when agent, predicate and target are the same; one without a partner counts 0.
    """
    if plan is None:
        return 0.0
    mine, theirs = _by_triplet(plan.events), _by_triplet(gold.events)
    total = sum(_best_pairs(tuple(mine[key]), tuple(theirs[key])) for key in mine.keys() & theirs.keys())
    return total / max(len(plan.events), len(gold.events))


def plan_f1(plan: Plan | None, gold: Plan) -> float:
    """F1 of the events, without their times."""
    if plan is None:
        return 0.0
    mine, theirs = _by_triplet(plan.events), _by_triplet(gold.events)
    shared = sum(min(len(mine[key]), len(theirs[key])) for key in mine.keys() & theirs.keys())
    return 2 * shared / (len(plan.events) + len(gold.events))


def order_accuracy(plan: Plan | None, gold: Plan) -> float:
    """Share of the pairs of true events that stand in the right order (before, after, together).

    A missing event makes all its pairs wrong. A plan of one event has no pairs: 1 where the event is there.
    """
    if plan is None:
        return 0.0
    mine, theirs = _by_triplet(plan.events), _by_triplet(gold.events)
    partner: dict[int, Event] = {}
    for key, true in theirs.items():
        for a, b in zip(sorted(true, key=_when), sorted(mine.get(key, []), key=_when), strict=False):
            partner[id(a)] = b
    events = gold.events
    pairs = [(a, b) for i, a in enumerate(events) for b in events[i + 1 :]]
    if not pairs:
        return float(id(events[0]) in partner)
    right = [
        id(a) in partner and id(b) in partner and _order(partner[id(a)], partner[id(b)]) == _order(a, b)
        for a, b in pairs
    ]
    return sum(right) / len(right)


def is_exact(plan: Plan | None, gold: Plan) -> bool:
    """The same events at the same times; the order in which they are told does not matter."""
    return plan is not None and {(_key(e), *_when(e)) for e in plan.events} == {
        (_key(e), *_when(e)) for e in gold.events
    }


def _best_pairs(mine: tuple[Event, ...], theirs: tuple[Event, ...]) -> float:
    """The largest sum of 1 / (1 + distance) over pairs."""
    few, many = sorted((mine, theirs), key=len)
    if len(many) > EXACT:
        pairs = zip(sorted(few, key=_when), sorted(many, key=_when), strict=False)
        return sum(_nearness(a, b) for a, b in pairs)

    @cache
    def best(i: int, left: frozenset[int]) -> float:
        if i == len(few):
            return 0.0
        return max(_nearness(few[i], many[j]) + best(i + 1, left - {j}) for j in left)

    return best(0, frozenset(range(len(many))))


def _nearness(a: Event, b: Event) -> float:
    return 1 / (1 + math.hypot(a.start - b.start, a.end - b.end))


def _key(event: Event) -> tuple[str, str, str | None]:
    target = None if event.target is None else identity(event.target)
    return identity(event.agent), event.predicate.casefold(), target


def _by_triplet(events: Iterable[Event]) -> dict[tuple, list[Event]]:
    found = defaultdict(list)
    for event in events:
        found[_key(event)].append(event)
    return dict(found)


def _when(event: Event) -> tuple[int, int]:
    return event.start, event.end


def _order(a: Event, b: Event) -> int:
    return -1 if a.end <= b.start else 1 if b.end <= a.start else 0


# ---- graphs and videos ------------------------------------------------------------------------------------------------


def triplet_recall(dsg: DynamicSceneGraph, gold: DynamicSceneGraph) -> float:
    """Mean over the true graphs of the share of their triplets found in the graph that they are aligned with.

    The alignment goes forward in time only and is the best one. True graphs without triplets are left out; where all are
    empty, 1 for graphs that are empty as well.
    """
    true = [found for graph in gold if (found := _triplets(graph))]
    made = [_triplets(graph) for graph in dsg]
    if not true:
        return float(not any(made))
    best = [0.0] * len(made)  # the best sum so far when the last true graph is aligned with made[i] or one before it
    for wanted in true:
        reached, so_far = [], -math.inf
        for i, given in enumerate(made):
            so_far = max(so_far, best[i] + len(wanted & given) / len(wanted))
            reached.append(so_far)
        best = reached
    return best[-1] / len(true)


def agreement(dsg: DynamicSceneGraph, gold: DynamicSceneGraph) -> float:
    """Triplet recall in the direction in which it is lower: of what is true, and of what is told."""
    return min(triplet_recall(dsg, gold), triplet_recall(gold, dsg))


def _triplets(graph: SceneGraph) -> set[tuple]:
    return {
        (identity(t.subject), t.predicate.casefold(), None if t.object is None else identity(t.object))
        for t in graph.triplets
    }


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of two sets of features `n d`, each taken as a normal distribution."""
    means = (a.mean(0) - b.mean(0)).square().sum()
    roots = [_root((x - x.mean(0)) / max(len(x) - 1, 1) ** 0.5) for x in (a, b)]
    # trace of the root of the product of both covariances: the nuclear norm of root_a^T root_b
    shared = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    return float((means + roots[0].square().sum() + roots[1].square().sum() - 2 * shared).clamp(min=0))


def _root(x: Tensor) -> Tensor:
    """d k with k <= d, n: a root of the covariance of centred and scaled features `n d`."""
    return torch.linalg.qr(x, mode="r").R.T
