"""The plans and graphs that the shapes world writes beside its clips, read from shards as they are stored."""

import json
from pathlib import Path

import pytest

from data.building import SplitBuilder
from data.records import StoreSettings
from data.shapes.source import ShapesSource
from data.shards import read_index
from data.tar import member_table, open_shard, read_member
from dysen.action_plan import Plan
from dysen.alignment import ticks_at
from dysen.drawing import main
from dysen.scene_graph import DynamicSceneGraph, event_to_dsg
from dysen.text_form import dsg_from_text, dsg_to_text, plan_from_text, plan_to_text

NUM_CLIPS = 40


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The json of each clip of a split that was really built."""
    root = tmp_path_factory.mktemp("shapes")
    counts = {"num_train": NUM_CLIPS, "num_val": 0, "num_test": 0, "num_heldout": 0}
    size = {"height": 32, "width": 32, "frames": 8, "fps": 8.0, "ticks": 7, "num_captions": 2}
    script = {"min_things": 1, "max_things": 3, "min_events": 1, "max_events": 7, "textured": 0.5}
    script |= {"shades": ["dark", "grey", "light"], "scatter": 1.0, "tilted": True}
    script |= {"rests": True, "sizes": ["small", "medium", "large"], "reordered": 0.5, "new_verbs": 0}
    stored_as = {"gop": 8, "crf": 12, "pixel_format": "yuv444p", "samples_per_shard": 100}
    store = StoreSettings(frames=8, height=32, width=32, fps=8.0, **stored_as)
    source = ShapesSource(seed=3, **counts, **size, **script)
    builder = SplitBuilder(
        name="shapes", source=source, root=str(root), store=store, clips_per_video=1, min_frames=1, num_workers=0,
        timeout=60.0, max_rejected=0.0, limit=None,
    )  # fmt: skip
    builder.build("train", overwrite=False, on_progress=lambda *_: None)
    index, found = read_index(Path(root) / "train"), []
    for info in index.shards:
        with open_shard(index.path(info)) as file:
            found += [json.loads(read_member(file, *sample.members["json"])) for sample in member_table(file)]
    return found


def test_plans(stored):
    assert len(stored) == NUM_CLIPS
    for info in (sample["extras"] for sample in stored):
        plan = Plan.from_json(info["plan"])
        assert plan.to_json() == info["plan"]
        assert plan_from_text(plan_to_text(plan)) == plan
        assert plan.last == 7


def test_gold_graphs_hold_step_two_and_more(stored):
    for info in (sample["extras"] for sample in stored):
        plan, gold = Plan.from_json(info["plan"]), DynamicSceneGraph.from_json(info["scene_graphs"])
        assert gold.planned() == event_to_dsg(plan), "the world and step II agree, at the last tick too"
        assert dsg_from_text(dsg_to_text(gold)) == gold
        assert DynamicSceneGraph.from_json(gold.to_json()) == gold
        for graph, entry in zip(gold, info["scene_graphs"], strict=True):
            assert [[t.subject, t.predicate, t.object] for t in graph.relations] == entry["relations"]
            attributes = {seen["name"]: tuple(seen["attributes"]) for seen in entry["objects"]}
            assert {o.name: o.attributes for o in graph.objects if o.attributes} == attributes
    assert any(
        DynamicSceneGraph.from_json(info["scene_graphs"])[0].relations
        for info in (sample["extras"] for sample in stored)
    )


def test_frames_find_their_graph(stored):
    for info in (sample["extras"] for sample in stored):
        gold = DynamicSceneGraph.from_json(info["scene_graphs"])
        assert ticks_at(info["frame_ticks"], len(gold)) == tuple(range(8))


def test_the_json_of_a_clip_can_be_drawn(stored, tmp_path):
    (tmp_path / "clip.json").write_text(json.dumps(stored[0]))
    assert main([str(tmp_path / "clip.json"), str(tmp_path / "clip.svg")]) == 0
