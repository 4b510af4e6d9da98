"""Scene graphs: the paper's figure, merging, enrichment, and 10,000 random graphs through every form and back."""

import json
import random

import pytest
import random_graphs
from test_action_plan import PAPER

from dysen.action_plan import MAX_TICK, Event, Plan, Triplet
from dysen.names import identity
from dysen.scene_graph import (
    MAX_ATTRIBUTES,
    MAX_OBJECTS,
    MAX_TRIPLETS,
    DynamicSceneGraph,
    Node,
    SceneGraph,
    SceneObject,
    enrich,
    event_to_dsg,
    merge,
)
from dysen.text_form import dsg_from_text, dsg_to_text, graph_from_text, graph_to_text
from vdm.errors import PlanError

ADDED = (Triplet("lady", "in", "dress"), Triplet("lady", "holding", "cup"), Triplet("table", "in front of", "lady"))


def test_step_two_is_the_figure_of_the_paper():
    dsg = event_to_dsg(PAPER)
    e1, e2, e3, e4, e5 = (event.triplet for event in PAPER.events)
    held = [graph.actions for graph in dsg]
    assert held == [(e1,), (e1, e2), (e1,), (e1, e3, e4, e5), (e1, e5), (e1, e5)]
    assert dsg.objects == PAPER.objects
    assert dsg[3].names == ("lady", "chair", "friend", "window"), "a name that is said again is one node"
    assert dsg_to_text(dsg).splitlines()[4] == "4v: *(lady, sitting on, chair), *(lady, looking out, window)"


def test_the_enriched_graph_of_the_paper():
    enriched = enrich(event_to_dsg(PAPER)[1], SceneGraph.build(relations=ADDED))
    assert len(enriched.objects) == 6
    assert len(enriched.triplets) == 5
    kinds = [node.kind for node in enriched.nodes()]
    assert (kinds.count("object"), kinds.count("relation")) == (6, 5)


def test_nodes_and_edges():
    graph = SceneGraph.build(
        [SceneObject("person #2", ("old", "tall"))],
        [Triplet("person #2", "waving", None)],
        [Triplet("dog", "near", "person #2")],
    )
    assert graph.nodes() == (
        *(Node("object", "person"), Node("object", "dog"), Node("attribute", "old"), Node("attribute", "tall")),
        *(Node("relation", "waving", is_planned=True), Node("relation", "near")),
    )
    assert graph.edges() == ((0, 2), (0, 3), (0, 4), (1, 5), (5, 0))


def test_no_event_is_lost_and_none_is_invented():
    rng = random.Random(2)
    for _ in range(10_000):
        plan = random_graphs.plan(rng)
        dsg = event_to_dsg(plan)
        assert len(dsg) == plan.num_ticks
        for event in plan.events:
            assert all(event.triplet in dsg[tick].actions for tick in range(event.start, event.end))
        assert {t for graph in dsg for t in graph.actions} == {e.triplet for e in plan.events}
        assert dsg[plan.last].actions, "the last graph is not empty"
        assert set(dsg.objects) == set(plan.objects)


def test_ten_thousand_graphs_survive_json_and_text_and_merging():
    rng = random.Random(3)
    before = SceneGraph()
    for _ in range(10_000):
        graph = random_graphs.graph(rng)
        assert SceneGraph.from_json(json.loads(json.dumps(graph.to_json()))) == graph
        assert graph_from_text(graph_to_text(graph)) == graph
        assert merge(graph, graph) == merge(graph, SceneGraph()) == graph
        both = merge(graph, before)
        assert merge(both, before) == merge(both, graph) == both
        assert set(both.actions) == {*graph.actions, *before.actions}
        assert set(both.triplets) == {*graph.triplets, *before.triplets}
        assert merge(merge(graph, before), both) == merge(graph, merge(before, both))
        places = range(len(graph.nodes()))
        assert all(a in places and b in places for a, b in graph.edges())
        before = graph


def test_dynamic_graphs_survive_json_and_text():
    rng = random.Random(4)
    for _ in range(1_000):
        dsg = random_graphs.dsg(rng)
        assert DynamicSceneGraph.from_json(json.loads(json.dumps(dsg.to_json()))) == dsg
        assert dsg_from_text(dsg_to_text(dsg)) == dsg


def test_enrichment_never_loses_anything():
    rng = random.Random(5)
    for _ in range(3_000):
        graph, addition = random_graphs.graph(rng), random_graphs.graph(rng)
        rich = enrich(graph, addition)
        assert rich.actions == graph.actions
        assert rich.names[: len(graph.names)] == graph.names
        assert rich.relations[: len(graph.relations)] == graph.relations
        for old, entry in zip(graph.objects, rich.objects, strict=False):
            assert entry.attributes[: len(old.attributes)] == old.attributes
        assert enrich(rich, addition) == rich
        assert {identity(name) for name in rich.names} == {identity(n) for n in graph.names + addition.names}
        assert rich.planned() == graph.planned()


def test_another_spelling_is_the_same_object():
    graph = event_to_dsg(PAPER)[0]
    addition = SceneGraph.build([SceneObject("The Chair", ("wooden",))], relations=[Triplet("the Lady", "in", "Dress")])
    rich = enrich(graph, addition)
    assert rich.objects == (SceneObject("lady"), SceneObject("chair", ("wooden",)), SceneObject("Dress"))
    assert rich.relations == (Triplet("lady", "in", "Dress"),)


def test_what_is_imagined_as_an_action_stays_imagined():
    graph = event_to_dsg(PAPER)[0]
    rich = enrich(
        graph, SceneGraph.build(actions=[Triplet("lady", "flying", None), Triplet("lady", "eating", "chair")])
    )
    assert rich.actions == graph.actions
    assert rich.relations == (Triplet("lady", "eating", "chair"),)


def test_enrichment_stays_within_the_limits():
    many = [SceneObject(f"thing {i}", tuple(f"{j}" for j in range(MAX_ATTRIBUTES))) for i in range(MAX_OBJECTS)]
    triplets = [Triplet("thing 0", f"does {i}", "thing 1") for i in range(MAX_TRIPLETS)]
    addition = SceneGraph.build(many, relations=triplets)
    graph = event_to_dsg(PAPER)[3]
    rich = enrich(enrich(graph, addition), SceneGraph.build([SceneObject("thing 0", ("another",))]))
    assert rich.actions == graph.actions
    assert (len(rich.objects), len(rich.triplets)) == (MAX_OBJECTS, MAX_TRIPLETS)


def test_without_imagination():
    rich = DynamicSceneGraph(tuple(enrich(g, SceneGraph.build(relations=ADDED)) for g in event_to_dsg(PAPER)))
    assert rich.planned() == event_to_dsg(PAPER)


@pytest.mark.parametrize(
    "build",
    [
        lambda: SceneGraph((SceneObject("a"), SceneObject("a"))),
        lambda: SceneGraph((SceneObject("a"),), (Triplet("a", "sees", "b"),)),
        lambda: SceneGraph((SceneObject("a"),), (), (Triplet("a", "sees", None),)),
        lambda: SceneGraph((SceneObject("a"),), (Triplet("a", "is", "a"),), (Triplet("a", "is", "a"),)),
        lambda: SceneObject("a", ("red", "red")),
        lambda: SceneObject("a", (" red",)),
        lambda: DynamicSceneGraph(()),
        lambda: DynamicSceneGraph((SceneGraph(),) * (MAX_TICK + 2)),
        lambda: DynamicSceneGraph.from_json([{"tick": 1, "objects": [], "actions": [], "relations": []}]),
        lambda: DynamicSceneGraph.from_json([{"objects": [], "actions": []}]),
        lambda: DynamicSceneGraph.from_json([{"objects": [3], "actions": [], "relations": []}]),
        lambda: DynamicSceneGraph.from_json([{"objects": [], "actions": [["a"]], "relations": []}]),
        lambda: DynamicSceneGraph.from_json([[["a", "b", "c"]]]),
        lambda: graph_from_text("(a, b"),
        lambda: graph_from_text("lady"),
        lambda: graph_from_text("*(a, b)"),
        lambda: graph_from_text("(a, b, -)"),
        lambda: dsg_from_text("1v: -"),
    ],
)
def test_what_is_no_graph(build):
    with pytest.raises(PlanError):
        build()


def test_the_longest_plan_has_all_its_graphs():
    plan = Plan((Event("a", "waits", None, 0, MAX_TICK),))
    assert len(event_to_dsg(plan)) == MAX_TICK + 1
