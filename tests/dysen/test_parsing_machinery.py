"""Tracking, relations and merging over time on boxes made by hand, and how a parser is judged."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from dysen.parsing.frames import FrameGraph, Link, Seen, fitted, held, iou
from dysen.parsing.merging import Merging
from dysen.parsing.quality import Quality, printed, report
from dysen.parsing.relations import Relations
from dysen.parsing.tracking import Tracker, assign
from dysen.scene_graph import SceneGraph

MERGING = Merging(ticks=None, min_score=0.3, min_frames=2, max_gap=1, min_link=1, share=0.5)
TRACKER = Tracker(overlap=0.2, reach=1.0, patience=3, num_hits=2, momentum=0.5, relabel=0.7)
RELATIONS = Relations(
    beside=0.1,
    inside=0.9,
    overlapping=0.1,
    near=0.5,
    seconds=0.1,
    moving=0.03,
    growing=1.1,
    toward=0.95,
    neighbours=None,
)


def at(x, y=50.0, size=10.0):
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def seen(track, box, label="dog", **more):
    return Seen(track, label, box, **more)


def words(graph):
    return {(link.subject, link.predicate, link.object) for link in graph.links}


# ---- boxes and assignment


def test_assignment_is_the_cheapest():
    rng = np.random.default_rng(0)
    for _ in range(200):
        cost = rng.normal(size=rng.integers(1, 7, size=2)).round(1)  # rounded: there are ties
        pairs = assign(cost)
        rows, columns = linear_sum_assignment(cost)
        assert len(pairs) == min(cost.shape)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
        assert sum(cost[i, j] for i, j in pairs) == pytest.approx(cost[rows, columns].sum())
    assert assign(np.zeros((0, 3))) == assign(np.zeros((3, 0))) == []


def test_boxes_follow_the_clip_that_shards_keep():
    """A wide picture of 100 x 200 stored as 50 x 50: halved, and 25 cut on both sides."""
    assert fitted((100, 20, 120, 40), (100, 200), (50, 50)) == (25, 10, 35, 20)
    assert fitted((40, 20, 60, 40), (100, 200), (50, 50)) == (0, 10, 5, 20)
    assert fitted((0, 20, 40, 40), (100, 200), (50, 50)) is None
    assert iou((0, 0, 2, 1), (1, 0, 3, 1)) == pytest.approx(1 / 3)
    first, second = FrameGraph(), FrameGraph((seen(0, None),))
    assert held({1: first, 4: second}, 6) == [first, first, first, second, second, second]


# ---- tracking


def test_two_dogs_that_pass_each_other_keep_their_identity():
    frames = [[seen(0, at(10 + 8 * f, 50)), seen(1, at(90 - 8 * f, 58))] for f in range(11)]
    rng = np.random.default_rng(1)
    shuffled = [[frame[i] for i in rng.permutation(2)] for frame in frames]
    tracked = TRACKER.track(shuffled)
    by_track = {entry.track: [] for entry in tracked[0]}
    for frame in tracked:
        for entry in frame:
            by_track[entry.track].append(entry.box[1])
    assert sorted(map(tuple, by_track.values())) == [(45.0,) * 11, (53.0,) * 11]


def test_a_lost_thing_is_found_again_where_it_was_going_but_not_for_ever():
    path = [[seen(0, at(10 + 6 * f))] for f in range(12)]
    hidden = [[] if f in (4, 5) else frame for f, frame in enumerate(path)]
    assert {entry.track for frame in TRACKER.track(hidden) for entry in frame} == {0}
    long = [[] if f in range(3, 8) else frame for f, frame in enumerate(path)]
    assert {entry.track for frame in TRACKER.track(long) for entry in frame} == {0, 1}


def test_flashes_are_no_tracks_and_labels_divide():
    flash = [[seen(0, at(50)), *([seen(1, at(20))] if f == 2 else [])] for f in range(5)]
    assert {entry.track for frame in TRACKER.track(flash) for entry in frame} == {0}
    other = [[seen(0, at(50), "dog" if f < 3 else "cat")] for f in range(6)]
    assert {entry.track for frame in TRACKER.track(other) for entry in frame} == {0}  # the very same box
    strict = replace(TRACKER, relabel=1.0)
    assert {entry.track for frame in strict.track(other) for entry in frame} == {0, 1}


# ---- relations


def test_where_things_stand():
    frame = [seen("a", at(20, 20)), seen("b", at(60, 50)), seen("c", at(60, 50, 40)), seen("d", at(45, 80, 10))]
    said = words(RELATIONS.link([frame], (100, 100), 10.0)[0])
    assert ("a", "left of", "b") in said
    assert ("a", "above", "b") in said
    assert ("b", "inside", "c") in said
    assert ("c", "near", "d") in said
    assert not [w for w in said if w[1] in ("moving", "overlapping")]
    assert not {(o, p, s) for s, p, o in said} & said, "said once"
    near = replace(RELATIONS, neighbours=1).link([frame], (100, 100), 10.0)[0]
    assert ("a", "left of", "b") in words(near)
    assert ("a", "left of", "c") not in words(near) or ("b", "left of", "c") not in words(near)
    assert len(words(near)) < len(said)


@pytest.mark.parametrize(
    ("step", "direction"),
    [((5, 0), "right"), ((0, 5), "down"), ((-5, -5), "up left"), ((5, -1), "right"), ((-4, 4), "down left")],
)
def test_directions(step, direction):
    frames = [[seen("a", at(50 + step[0] * f, 50 + step[1] * f))] for f in range(4)]
    graphs = RELATIONS.link(frames, (100, 100), 10.0)
    assert [words(graph) for graph in graphs] == [{("a", f"moving {direction}", None)}] * 4


def test_who_approaches_whom():
    frames = [[seen("a", at(10 + 5 * f)), seen("b", at(80)), seen("c", at(30 + 5 * f, 50))] for f in range(5)]
    said = words(RELATIONS.link(frames, (100, 100), 10.0)[1])
    assert ("a", "approaching", "b") in said
    assert ("c", "approaching", "b") in said
    assert ("a", "approaching", "c") not in said, "who runs after somebody as fast comes no closer"
    assert not {w for w in said if w[0] == "b" and w[1] in ("approaching", "leaving")}, "who stands does nothing"
    back = words(RELATIONS.link(frames[::-1], (100, 100), 10.0)[1])
    assert ("a", "leaving", "b") in back


def test_growing_takes_both_sides():
    grows = [[seen("a", at(50, 50, 10 * 1.2**f))] for f in range(3)]
    assert words(RELATIONS.link(grows, (100, 100), 10.0)[0]) == {("a", "growing", None)}
    assert words(RELATIONS.link(grows[::-1], (100, 100), 10.0)[0]) == {("a", "shrinking", None)}
    turns = [[seen("a", (40, 45, 60, 55))], [seen("a", (44, 40, 56, 60))]]  # a bar that rotates
    assert words(RELATIONS.link(turns, (100, 100), 10.0)[0]) == set()


# ---- merging


def near(a, b, predicate="near"):
    return Link(a, predicate, b)


def test_gaps_are_filled_and_moments_are_dropped():
    merging = replace(MERGING, min_link=3, max_gap=1)
    flags = [1, 1, 0, 1, 1, 0, 0, 0, 1, 0]
    both = (seen(0, at(10)), seen(1, at(30), "cat"))
    parsed = merging.merge([FrameGraph(both, (near(0, 1),) if f else ()) for f in flags])
    assert [len(graph.relations) for graph in parsed.dsg] == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert parsed.plan is None


def test_a_thing_that_is_hidden_has_a_place_between_and_no_relations_when_it_is_gone():
    frames = [
        FrameGraph((seen(1, at(30), "cat"), *([seen(0, at(10 + 10 * f))] if f not in (1, 4, 5, 6) else [])),
                   (near(0, 1),)) for f in range(8)
    ]  # fmt: skip
    parsed = MERGING.merge(frames)
    assert parsed.boxes["dog"][1] == at(20)
    assert [box is not None for box in parsed.boxes["dog"]] == [True] * 4 + [False] * 3 + [True]
    assert [len(graph.relations) for graph in parsed.dsg] == [1] * 4 + [0] * 3 + [1]
    assert [("dog" in graph.names) for graph in parsed.dsg] == [True] * 4 + [False] * 3 + [True]


def test_names_are_the_votes_of_a_track_and_numbered_where_they_clash():
    frames = [
        FrameGraph((seen(7, at(10), "dog" if f else "cat"), seen(3, at(50)), seen(5, at(90), "person #4")))
        for f in range(3)
    ]
    assert MERGING.merge(frames).dsg.objects == ("dog #1", "dog #2", "person #4")
    again = [FrameGraph((seen(0, at(10), "person #2"), seen(1, at(50), "person #2"))) for f in range(3)]
    assert MERGING.merge(again).dsg.objects == ("person #1", "person #2")


def test_doubtful_and_short_things_are_left_out_with_what_is_said_of_them():
    frames = [
        FrameGraph((seen(0, at(10)), seen(1, at(50), "cat", score=0.2), *([seen(2, at(80), "cow")] if f == 1 else [])),
                   (near(0, 1), near(0, 2), Link(2, "barking", None, True))) for f in range(4)
    ]  # fmt: skip
    parsed = MERGING.merge(frames)
    assert parsed.dsg.objects == ("dog",)
    assert parsed.dsg.graphs == (SceneGraph.build(parsed.dsg[0].objects),) * 4


def test_a_tick_says_what_holds_in_half_of_its_frames():
    merging = replace(MERGING, ticks=3, max_gap=0)
    flags = [1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1]
    frames = [
        FrameGraph((seen(0, at(10), attributes=("wet",) if f else ()),), (Link(0, "barking", None, True),) if f else ())
        for f in flags
    ]
    parsed = merging.merge(frames)
    assert [len(graph.actions) for graph in parsed.dsg] == [1, 0, 1]
    assert [graph.objects[0].attributes for graph in parsed.dsg] == [("wet",), (), ("wet",)]
    assert parsed.plan.to_json() == [["dog", "barking", None, [0, 1]], ["dog", "barking", None, [1, 2]]]


def test_of_two_directions_at_a_time_the_more_frequent_stays():
    merging = replace(MERGING, ticks=1, max_gap=3)
    turns = ["left", "up left", "left", "left", "up left", "left"]
    frames = [FrameGraph((seen(0, at(10)),), (Link(0, f"moving {turn}", None, True),)) for turn in turns]
    assert [action.predicate for action in merging.merge(frames).dsg[0].actions] == ["moving left"]


def test_nothing_at_all_and_far_too_much_are_graphs_too():
    assert MERGING.merge([FrameGraph()] * 3).dsg.objects == ()
    crowd = tuple(seen(i, at(i)) for i in range(200))
    links = tuple(near(i, j) for i in range(30) for j in range(30) if i != j)
    parsed = MERGING.merge([FrameGraph(crowd, links)] * 2)
    assert len(parsed.dsg[0].objects) == 128
    assert len(parsed.dsg[0].relations) == 512
    assert len(MERGING.merge([FrameGraph(crowd[:1])] * 700).dsg) == 256


# ---- quality


def clip(moves, label="dog", flip=None, predicate="left of"):
    """Two things for six frames; from frame `flip` on, the tracks are exchanged."""
    frames = []
    for f in range(6):
        names = ("a", "b") if flip is None or f < flip else ("b", "a")
        objects = (seen(names[0], at(20 + moves), label), seen(names[1], at(80 + moves), "cat"))
        frames.append(FrameGraph(objects, (Link(names[0], predicate, names[1]),)))
    return replace(MERGING, max_gap=0).merge(frames)


QUALITY = Quality(overlap=0.5, same_as={"west of": "left of"})


def test_a_perfect_parser_is_perfect_whatever_it_calls_things():
    content = report(QUALITY.count(clip(0, "hound"), clip(0)))
    assert content["objects"] == {"precision": 1, "recall": 1, "f1": 1, "overlap": 1}
    assert content["identity_switches"] == 0
    assert content["relations"]["all"]["f1"] == 1
    assert report(QUALITY.count(clip(0), clip(0, predicate="west of")))["relations"]["all"]["f1"] == 1
    assert any("left of" in line for line in printed(content))


def test_the_same_said_the_other_way_round_is_right_and_the_contrary_is_wrong():
    truth, turned = clip(0), clip(0, predicate="right of")
    assert report(QUALITY.count(turned, truth))["relations"]["all"]["f1"] == 0
    frames = [FrameGraph((seen("a", at(20)), seen("b", at(80), "cat")), (Link("b", "right of", "a"),))] * 6
    assert report(QUALITY.count(MERGING.merge(frames), truth))["relations"]["all"]["f1"] == 1


def test_misses_and_switches_are_counted():
    far = report(QUALITY.count(clip(6), clip(0)))  # a box of 10, off by 6: overlap 0.25
    assert far["objects"]["recall"] == far["things"]["recall"] == 0
    assert far["relations"]["all"]["f1"] == 0
    switched = QUALITY.count(clip(0, flip=3), clip(0))
    assert switched["identity switches"] == 2
    assert report(switched)["objects"]["f1"] == 1
    empty = report(QUALITY.count(MERGING.merge([FrameGraph()] * 6), clip(0)))
    assert empty["objects"] == {"precision": None, "recall": 0, "f1": 0, "overlap": 0}
    twice = report(QUALITY.count(clip(0), clip(0)) + QUALITY.count(clip(0), clip(0)))
    assert twice["clips"] == 2
    assert twice["relations"]["all"]["f1"] == 1
