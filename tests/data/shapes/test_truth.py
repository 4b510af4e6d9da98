import json

import numpy as np
import pytest

from data.shapes.motion import frame_times, trajectory
from data.shapes.render import RGB, background, paint
from data.shapes.sampling import sample_script
from data.shapes.script import Background, Event, Placement, Script, ScriptSettings, Thing, active
from data.shapes.truth import action_graph, intervals, truth

SETTINGS = ScriptSettings(ticks=7, min_things=1, max_things=3, min_events=1, max_events=7, textured=0.5)
GROUND = Background("plain", "light", 0.0, 90.0)


def render(script: Script, frames: int = 8, size: int = 32):
    picture = paint(script, trajectory(script, frame_times(frames, script.ticks)), size, size)
    return picture, *truth(script, picture)


@pytest.fixture(scope="module")
def clips():
    return [(script, *render(script)) for script in (sample_script(1, index, SETTINGS) for index in range(40))]


@pytest.fixture(scope="module")
def pair() -> Script:
    """A red square in front of a blue circle, which then leaves to the right and grows."""
    things = (Thing("red square", "red", "square", "small"), Thing("blue circle", "blue", "circle", "large"))
    places = (Placement(0.4, 0.5, 0.0, 0), Placement(0.52, 0.55, 0.0, 1))
    events = (Event(0, "move_left", None, 0, 2), Event(1, "move_right", None, 2, 5), Event(0, "grow", None, 4, 5))
    return Script(things, places, events, GROUND, 5, 0)


def test_the_graphs_of_the_paper():
    """Figure 3: the last graph keeps the events that end with the clip; the released code leaves it empty."""
    spans = [(0, 5), (1, 2), (3, 4), (3, 4), (3, 5)]
    events = tuple(Event(0, "stay", None, start, end) for start, end in spans)
    held = [{i + 1 for i in active(events, tick)} for tick in range(6)]
    assert held == [{1}, {1, 2}, {1}, {1, 3, 4, 5}, {1, 5}, {1, 5}]


def test_the_graphs_of_a_clip(pair):
    _, extras, _ = render(pair, frames=6)
    graphs = extras["scene_graphs"]
    assert [graph["tick"] for graph in graphs] == [0, 1, 2, 3, 4, 5]
    assert [graph["actions"] for graph in graphs] == [
        [["red square", "move_left", None]],
        [["red square", "move_left", None]],
        [["blue circle", "move_right", None]],
        [["blue circle", "move_right", None]],
        [["blue circle", "move_right", None], ["red square", "grow", None]],
        [["blue circle", "move_right", None], ["red square", "grow", None]],
    ]
    touching = [["red square", "overlapping", "blue circle"], ["red square", "in front of", "blue circle"]]
    assert graphs[0]["relations"] == [["red square", "left of", "blue circle"], *touching]
    assert graphs[5]["relations"] == [["red square", "left of", "blue circle"]]
    assert graphs[0]["objects"][1] == {"name": "blue circle", "attributes": ["blue", "large", "circle"]}
    assert action_graph(pair, 4) == graphs[4]["actions"]
    assert extras["depth_order"] == ["red square", "blue circle"]


def test_hidden_things_are_in_no_graph():
    thing = Thing("red square", "red", "square", "small")
    script = Script((thing,), (Placement(0.5, 0.5, 0, 0),), (Event(0, "appear", None, 6, 7),), GROUND, 7, 0)
    _, extras, arrays = render(script)
    assert [len(graph["objects"]) for graph in extras["scene_graphs"]] == [0] * 7 + [1]
    assert extras["boxes"] == [[None] * 7 + [[13, 13, 19, 19]]]
    assert arrays["ids"][:7].max() == 0


def test_masks_agree_with_pixels(clips):
    for script, picture, _, arrays in clips:
        ids, frames = arrays["ids"], picture.frames
        cover = picture.coverage
        order = sorted(range(len(script.things)), key=lambda i: script.placements[i].depth)
        free = np.ones(ids.shape, dtype=bool)
        for i in order:
            whole = free & (cover[i] == 255)
            assert (frames[whole] == RGB[script.things[i].colour]).all()
            assert (ids[whole] == i + 1).all()
            free &= cover[i] == 0
        ground = np.rint(background(script.background, 32, 32)).astype(np.uint8)
        assert (ids[free] == 0).all()
        assert (frames[free] == np.broadcast_to(ground, frames.shape)[free]).all()


def test_boxes_agree_with_masks(clips):
    for script, _, extras, arrays in clips:
        for i in range(len(script.things)):
            for name, masks in (("boxes", arrays["ids"] == i + 1), ("whole_boxes", arrays["whole"][i] > 0)):
                for box, mask in zip(extras[name][i], masks, strict=True):
                    if box is None:
                        assert not mask.any()
                        continue
                    left, top, right, bottom = box
                    assert mask[top:bottom, left:right].sum() == mask.sum() > 0
                    edges = mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]
                    assert all(edge.any() for edge in edges)


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear values of H W c at pixel centres x, y."""
    x, y = x.clip(0, image.shape[1] - 1.001), y.clip(0, image.shape[0] - 1.001)
    left, top = x.astype(int), y.astype(int)
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    upper = image[top, left] * (1 - fx) + image[top, left + 1] * fx
    lower = image[top + 1, left] * (1 - fx) + image[top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def test_flow_warps_each_frame_to_the_next():
    moved = 0
    for index in range(25):
        script = sample_script(2, index, SETTINGS)
        picture, _, arrays = render(script, frames=15, size=64)
        frames, ids, flow = picture.frames.astype(float), arrays["ids"], arrays["flow"].astype(float)
        assert flow.shape == (14, 64, 64, 2)
        assert arrays["flow"].dtype == np.float16
        for f in range(14):
            for i in range(len(script.things)):
                row, column = np.nonzero(ids[f] == i + 1)
                dx, dy = flow[f, row, column].T
                x, y = column + dx, row + dy
                inside = sample((ids[f + 1] == i + 1)[..., None].astype(float), x, y)[:, 0] > 0.999
                inside &= (frames[f, row, column] == RGB[script.things[i].colour]).all(axis=1)
                warped = sample(frames[f + 1], x, y)[inside]
                if len(warped):
                    close = np.abs(warped - frames[f, row, column][inside]).max(axis=1) < 60  # edges are blends
                    assert close.mean() > 0.9
                    # Almost the whole thing arrives on itself, unless something hides it there.
                    moved += np.abs(dx).max() + np.abs(dy).max() > 0.5
            assert (flow[f][ids[f] == 0] == 0).all()
    assert moved > 100


def test_flow_lands_on_the_same_thing(clips):
    """Where nothing overlaps and nothing is switched off, the flow's ends cover the next frame's mask."""
    shares = []
    for script, _, _, arrays in clips:
        if (arrays["whole"].sum(axis=0) > 1).any():
            continue
        for f in range(7):
            for i in range(len(script.things)):
                here, there = arrays["ids"][f] == i + 1, arrays["ids"][f + 1] == i + 1
                if here.any() and there.any():
                    row, column = np.nonzero(here)
                    dx, dy = arrays["flow"][f, row, column].astype(float).T
                    shares.append((sample(there[..., None].astype(float), column + dx, row + dy) > 0.3).mean())
    assert len(shares) > 100
    assert np.mean(shares) > 0.97
    assert min(shares) > 0.7


def test_times_and_intervals(clips):
    assert intervals((Event(0, "grow", None, 1, 3), Event(1, "grow", None, 2, 5)), 6) == [
        {"start": 0, "end": 1, "events": []},
        {"start": 1, "end": 2, "events": [0]},
        {"start": 2, "end": 3, "events": [0, 1]},
        {"start": 3, "end": 5, "events": [1]},
        {"start": 5, "end": 6, "events": []},
    ]
    for script, _, extras, _ in clips:
        assert extras["frame_ticks"] == [0, 1, 2, 3, 4, 5, 6, 7]
        edges = [interval["start"] for interval in extras["intervals"]] + [7]
        assert edges[0] == 0
        assert edges[1:] == [interval["end"] for interval in extras["intervals"]]
        assert extras["plan"] == script.plan()
        assert len(extras["scene_graphs"]) == 8
        assert Script.from_json(json.loads(json.dumps(extras))["script"]) == script


def test_subjects_are_the_things_alone(clips):
    for script, picture, extras, arrays in clips:
        for i, (thing, subject) in enumerate(zip(script.things, extras["subjects"], strict=True)):
            crop = arrays[subject["array"]]
            left, top, right, bottom = subject["box"]
            assert subject["name"] == thing.name
            assert crop.shape == (bottom - top + 2, right - left + 2, 4)
            assert (crop[..., :3] == RGB[thing.colour]).all()
            assert (crop[1:-1, 1:-1, 3] == picture.coverage[i, subject["frame"], top:bottom, left:right]).all()
            assert crop[..., 3].max() == 255
            assert picture.coverage[i, subject["frame"]].astype(int).sum() == crop[..., 3].astype(int).sum()
