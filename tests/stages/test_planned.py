"""Planned graphs take the place of a clip's own where there are some, under the names of the own ones."""

from __future__ import annotations

import pytest

from vdm.errors import DataError
from vdm.stages.planned import ENOUGH, check_some_are_found, with_planned

GRAPH = {"objects": [{"name": "ball", "attributes": []}], "actions": [], "relations": []}


class Rows(dict):
    folder = "plans"

    def get(self, key, caption):
        return dict.get(self, (key, caption))


class Heard:
    reads, times = "scene_graphs", "frame_ticks"


ROWS = Rows({("a", "x"): {"scene_graphs": [GRAPH] * 3}, ("b", "other"): {"scene_graphs": [GRAPH]},
             ("c", "z"): {"scene_graphs": None}})  # fmt: skip


def clips() -> dict:
    extras = {"scene_graphs": [[GRAPH], None, [GRAPH, GRAPH]], "frame_ticks": [[0], None, [0]]}
    return {"key": ["a", "b", "c"], "caption": ["x", "y", "z"], "extras": extras}


def test_planned_graphs_come_first():
    batch = clips()
    told, asked, found = with_planned(batch, ROWS, Heard)
    assert told["extras"] == {"scene_graphs": [[GRAPH] * 3, None, [GRAPH, GRAPH]], "frame_ticks": [None, None, [0]]}
    assert (asked, found) == (3, 1)
    assert batch == clips(), "the batch itself is as it was"


def test_only_those_that_are_wanted():
    told, asked, found = with_planned(clips(), ROWS, Heard, lambda key: key != "a")
    assert (told["extras"], asked, found) == (clips()["extras"], 2, 0)


def test_clips_without_graphs_of_their_own():
    bare, asked, found = with_planned({"key": ["a"], "caption": ["x"]}, ROWS, Heard)
    assert (bare["extras"], asked, found) == ({"scene_graphs": [[GRAPH] * 3]}, 1, 1)


def test_plans_of_other_clips_are_said():
    check_some_are_found(ROWS, ENOUGH - 1, ENOUGH - 1)
    check_some_are_found(ROWS, ENOUGH, ENOUGH - 1)
    with pytest.raises(DataError, match=f"none of the first {ENOUGH} clips has a plan of its caption here"):
        check_some_are_found(ROWS, ENOUGH, ENOUGH)
