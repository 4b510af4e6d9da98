"""Rewards: finite, in [0, 1], 1 for a perfect answer and for nothing else, less for every error."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dysen.action_plan import Event, Plan
from dysen.icl.rewards import (
    Outcome,
    PlanReliability,
    TripletRecall,
    frechet,
    is_exact,
    order_accuracy,
    plan_f1,
    reliability,
    rewards,
    triplet_recall,
)
from dysen.scene_graph import DynamicSceneGraph, SceneGraph, event_to_dsg

NAMES = ("lady", "cup", "dog")
EVENTS = st.builds(
    lambda agent, act, target, start, length: Event(agent, act, target, start, start + length),
    st.sampled_from(NAMES),
    st.sampled_from(("holding", "meeting")),
    st.sampled_from((None, *NAMES)),
    st.integers(0, 6),
    st.integers(1, 4),
)
PLANS = st.lists(EVENTS, min_size=1, max_size=6, unique=True).map(lambda events: Plan(tuple(events)))
SCORES = (reliability, plan_f1, order_accuracy)


def event(agent="lady", predicate="holding", target="cup", start=0, end=1):
    return Event(agent, predicate, target, start, end)


def plan(*events):
    return Plan(events)


@given(PLANS, PLANS)
@settings(max_examples=300, deadline=None)
def test_scores_are_bounded_and_maximal_for_the_truth(mine, gold):
    for score in SCORES:
        assert 0 <= score(mine, gold) <= 1
        assert score(gold, gold) == pytest.approx(1)
        assert score(None, gold) == 0
    assert (reliability(mine, gold) > 1 - 1e-9) == is_exact(mine, gold)
    a, b = event_to_dsg(mine), event_to_dsg(gold)
    assert 0 <= triplet_recall(a, b) <= 1 + 1e-12
    assert triplet_recall(b, b) == pytest.approx(1)


@given(PLANS, st.data())
@settings(max_examples=200, deadline=None)
def test_reliability_falls_with_every_error(gold, data):
    """Of a true plan: an event that moves away, changes, goes missing or is one too many."""
    i = data.draw(st.integers(0, len(gold.events) - 1))
    chosen, others = gold.events[i], [e for j, e in enumerate(gold.events) if j != i]
    values = [1.0]
    for late in range(1, 4):
        moved = Event(chosen.agent, chosen.predicate, chosen.target, chosen.start + late, chosen.end + late)
        if moved in others or any(e.triplet == chosen.triplet for e in others):
            return
        values.append(reliability(plan(*others, moved), gold))
    assert all(a > b for a, b in itertools.pairwise(values))
    other = Event(chosen.agent, "greeting", chosen.target, chosen.start, chosen.end)
    assert reliability(plan(*others, other), gold) < values[-1]
    assert reliability(plan(*gold.events, other), gold) < 1
    if others:
        assert reliability(plan(*others), gold) < 1


@given(PLANS, PLANS, st.data())
@settings(max_examples=150, deadline=None)
def test_a_lost_triplet_never_raises_the_recall(mine, gold, data):
    dsg = event_to_dsg(mine)
    tick = data.draw(st.integers(0, len(dsg) - 1))
    kept = dsg[tick].actions[:-1]
    less = DynamicSceneGraph((*dsg.graphs[:tick], SceneGraph.build(actions=kept), *dsg.graphs[tick + 1 :]))
    assert triplet_recall(less, event_to_dsg(gold)) <= triplet_recall(dsg, event_to_dsg(gold)) + 1e-12


def test_reliability_by_hand():
    gold = plan(event(start=0, end=2), event(predicate="meeting", start=3, end=4))
    late = plan(event(start=3, end=6), event(predicate="meeting", start=3, end=4))
    assert reliability(late, gold) == pytest.approx((1 / (1 + 5) + 1) / 2)  # 3-4-5
    assert reliability(plan(event(agent="The Lady", start=0, end=2)), gold) == pytest.approx(1 / 2)
    # Two holds: the pairs are the best ones, whatever their order.
    twice = plan(event(start=4, end=5), event(start=0, end=1))
    assert reliability(plan(event(start=0, end=1), event(start=4, end=5)), twice) == 1


def test_triplet_recall_by_hand():
    def graphs(*acts):
        return DynamicSceneGraph(tuple(SceneGraph.build(actions=[event(a).triplet for a in names]) for names in acts))

    gold = graphs(["lady"], ["lady", "dog"], ["dog"])
    assert triplet_recall(graphs(["lady"], ["dog"]), gold) == pytest.approx((1 + 0.5 + 1) / 3)
    assert triplet_recall(graphs(["dog"], ["lady"]), gold) == pytest.approx((0 + 0.5 + 1) / 3)  # forward only
    assert triplet_recall(graphs(["lady", "dog"]), gold) == 1
    assert triplet_recall(graphs([]), gold) == 0
    assert triplet_recall(graphs(["lady"], []), graphs(["lady"], [], [])) == 1
    assert triplet_recall(graphs([]), graphs([])) == 1
    assert triplet_recall(graphs(["lady"]), graphs([])) == 0


def test_order_accuracy_looks_at_order_only():
    gold = plan(event(start=0, end=1), event(agent="dog", start=1, end=2), event(agent="cup", start=1, end=2))
    longer = plan(event(start=0, end=3), event(agent="dog", start=5, end=9), event(agent="cup", start=6, end=7))
    assert order_accuracy(longer, gold) == 1
    assert reliability(longer, gold) < 1
    turned = plan(event(start=2, end=3), event(agent="dog", start=0, end=1), event(agent="cup", start=0, end=1))
    assert order_accuracy(turned, gold) == pytest.approx(1 / 3)
    assert order_accuracy(plan(event(), event(agent="dog", start=1, end=2)), gold) == pytest.approx(1 / 3)
    assert order_accuracy(plan(event()), plan(event(start=3, end=4))) == 1


def test_the_sum_of_terms_keeps_each_of_them():
    gold = plan(event())
    outcomes = [Outcome("c", gold, gold), Outcome("c", gold, plan(event(start=3, end=4))), Outcome("c", gold, None)]
    total, parts = rewards({"apr": PlanReliability(weight=1.0), "tri": TripletRecall(weight=3.0)}, outcomes)
    assert total[0] == 1
    assert total[2] == 0
    assert parts["apr"][1] == pytest.approx(1 / (1 + 18**0.5))
    assert parts["tri"][1] == 1
    assert total[1] == pytest.approx((parts["apr"][1] + 3) / 4)


def test_recall_prefers_enriched_graphs_where_both_are_known():
    gold = plan(event())
    rich = DynamicSceneGraph(tuple(SceneGraph.build(graph.objects, graph.actions, [event("dog").triplet])
                                   for graph in event_to_dsg(gold)))  # fmt: skip
    term = TripletRecall(weight=1.0)
    assert term.scores([Outcome("c", gold, gold, gold_dsg=rich, dsg=event_to_dsg(gold))]) == [0.5]
    assert term.scores([Outcome("c", gold, gold, gold_dsg=rich)]) == [1.0]


def test_frechet_distance_of_known_distributions():
    torch.manual_seed(0)
    x = torch.randn(4000, 3, dtype=torch.float64)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet(x, x + 2) == pytest.approx(12, rel=1e-6)
    assert frechet(x, 3 * x) == pytest.approx(
        4 * float(x.var(0).sum()) + float((2 * x.mean(0)).square().sum()), rel=1e-6
    )
