import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from data.shapes.figures import PERIOD, REACH, distance
from data.shapes.lessons import NewVerbs
from data.shapes.motion import frame_times, trajectory
from data.shapes.render import RGB, background, paint
from data.shapes.sampling import SPLITS, sample_script
from data.shapes.script import (
    ACTIONS,
    COLOURS,
    CONVERSES,
    MOVES,
    RELATIONS,
    ROTATABLE,
    SHADES,
    SHAPES,
    SIZES,
    TEXTURES,
    Background,
    Event,
    Placement,
    Script,
    ScriptSettings,
    Thing,
    heldout_compositions,
    is_heldout,
    is_heldout_composition,
    order,
    ordered_pairs,
    precedes,
)
from data.shapes.source import ShapesSource
from data.shapes.staging import LARGEST, SMALLEST
from vdm.errors import ConfigError

SETTINGS = ScriptSettings(ticks=7, min_things=1, max_things=3, min_events=1, max_events=7, textured=0.5)
SOURCE = {
    "seed": 0, "num_train": 5, "num_val": 2, "num_test": 0, "num_heldout": 1, "height": 32, "width": 32, "frames": 8,
    "fps": 8.0, "ticks": 7, "min_things": 1, "max_things": 3, "min_events": 1, "max_events": 7, "textured": 0.5,
    "num_captions": 2, "shades": ["dark", "grey", "light"], "scatter": 1.0, "tilted": True,
    "rests": True, "sizes": ["small", "medium", "large"], "reordered": 0.5, "new_verbs": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def scripts() -> list[Script]:
    return [sample_script(0, index, SETTINGS) for index in range(300)]


def alone(shape: str, size: str = "large", angle: float = 0.0, events: tuple[Event, ...] = ()) -> Script:
    thing = Thing(f"blue {shape}", "blue", shape, size)
    ground = Background("plain", "grey", 0.0, 0.0)
    return Script((thing,), (Placement(0.5, 0.5, angle, 0),), events, ground, 7, 0)


def test_there_is_enough_to_see():
    assert len(COLOURS) >= 8
    assert len(SHAPES) >= 5
    assert len(SIZES) >= 3
    assert len(ACTIONS) == 8 + 6 + 4 + 1


def test_relations_partition_all_pairs_of_intervals():
    spans = [(a, b) for a in range(5) for b in range(a + 1, 6)]
    seen = set()
    for (a, b), (c, d) in itertools.product(spans, spans):
        first, second = Event(0, "grow", None, a, b), Event(1, "grow", None, c, d)
        there, back = order(first, second), order(second, first)
        seen.add(there)
        assert CONVERSES.get(there) == back or CONVERSES.get(back) == there
        assert precedes(first, second) == (there in ("before", "meets"))
        meaning = {"equals": (a, b) == (c, d), "during": c < a and b < d, "overlaps": a < c < b < d, "meets": b == c}
        for name, holds in meaning.items():
            assert (there == name) == holds
    assert seen == set(RELATIONS)


def test_scripts_keep_the_rules(scripts):
    for script in scripts:
        assert 1 <= len(script.events) <= 7
        assert len({thing.colour for thing in script.things}) == len(script.things) <= 3
        assert max(e.end for e in script.events) == 7
        assert min(e.start for e in script.events) >= 0
        assert list(script.events) == sorted(script.events, key=lambda e: (e.start, e.end, e.agent))
        assert all(script.things[e.agent].shape in ROTATABLE for e in script.events if e.action == "rotate")
        assert all(
            (e.target is None) == (e.action not in ("approach", "leave", "orbit", "follow")) for e in script.events
        )  # noqa: E501
        assert all(e.target != e.agent for e in script.events)
        states = trajectory(script, np.linspace(0, 7, 29))
        reach = states.radius * np.array([REACH[thing.shape] for thing in script.things])
        for along in (states.x, states.y):
            assert (along - reach >= 0).all()
            assert (along + reach <= 1).all()
        assert states.radius.min() >= SMALLEST - 1e-4
        assert states.radius.max() <= LARGEST + 1e-4


def test_everything_occurs(scripts):
    actions = Counter(e.action for script in scripts for e in script.events)
    assert set(actions) == set(ACTIONS)
    for part, all_of in (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES)):
        assert {getattr(thing, part) for script in scripts for thing in script.things} == set(all_of)
    assert {script.background.texture for script in scripts} == set(TEXTURES)
    assert {script.background.shade for script in scripts} == set(SHADES)
    number = Counter(len(script.events) for script in scripts)
    assert min(number[k] for k in range(1, 8)) > 20  # rejection does not drain the full clips
    relations = Counter(order(a, b) for s in scripts for a, b in itertools.combinations(s.events, 2))
    assert min(relations[name] for name in ("before", "meets", "overlaps", "contains", "equals")) > 5
    assert np.mean([bool(ordered_pairs(script.events)) for script in scripts]) > 0.7


def test_some_things_hide_others(scripts):
    overlaps = 0
    for script in scripts[:80]:
        picture = paint(script, trajectory(script, frame_times(8, 7)), 32, 32)
        overlaps += bool(((picture.coverage > 127).sum(axis=0) > 1).any())
    assert overlaps >= 15


def test_heldout_compositions_are_in_their_split_only():
    for split in SPLITS:
        for index in range(40):
            script = sample_script(3, index, SETTINGS, split)
            assert is_heldout(script) == (split == "heldout"), heldout_compositions(script)
    share = np.mean([is_heldout_composition(*x) for x in itertools.product(COLOURS, SHAPES, ACTIONS)])
    assert 0.06 < share < 0.09
    # Nothing is held out altogether: training sees every colour, shape and action, and every pair of two of them.
    for a, b in ((COLOURS, SHAPES), (COLOURS, ACTIONS), (SHAPES, ACTIONS)):
        kept = {
            pair
            for triple in itertools.product(COLOURS, SHAPES, ACTIONS)
            if not is_heldout_composition(*triple)
            for pair in itertools.permutations(triple, 2)
        }
        assert set(itertools.product(a, b)) <= kept


def test_a_clip_depends_on_seed_split_and_index_only():
    code = (
        "import hashlib, json; from tests.data.shapes.test_world import *; "
        "s = sample_script(5, 7, SETTINGS, 'test'); p = paint(s, trajectory(s, frame_times(8, 7)), 32, 32); "
        "print(hashlib.sha256(json.dumps(s.to_json()).encode() + p.frames.tobytes()).hexdigest())"
    )
    script = sample_script(5, 7, SETTINGS, "test")
    frames = paint(script, trajectory(script, frame_times(8, 7)), 32, 32).frames
    here = hashlib.sha256(json.dumps(script.to_json()).encode() + frames.tobytes()).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": "99", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert there.stdout.strip() == here
    others = [
        sample_script(*key) for key in ((6, 7, SETTINGS, "test"), (5, 8, SETTINGS, "test"), (5, 7, SETTINGS, "val"))
    ]
    assert all(other != script for other in others)


def test_a_script_survives_json(scripts):
    for script in scripts[:20]:
        assert Script.from_json(json.loads(json.dumps(script.to_json()))) == script
        plan = json.loads(json.dumps(script.plan()))
        assert [row[3] for row in plan] == [[e.start, e.end] for e in script.events]
        assert {row[0] for row in plan} <= {thing.name for thing in script.things}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_has_the_area_of_its_disc(shape):
    picture = paint(alone(shape, angle=20.0), trajectory(alone(shape, angle=20.0), np.zeros(1)), 128, 128)
    assert picture.coverage[0].sum() / 255 == pytest.approx(np.pi * (0.18 * 128) ** 2, rel=0.01)
    u, v = np.meshgrid(np.linspace(-2, 2, 801), np.linspace(-2, 2, 801))
    inside = distance(shape, u, v) < 0
    assert np.hypot(u, v)[inside].max() == pytest.approx(REACH[shape], rel=0.01)
    assert abs(u[inside].mean()) < 0.01
    assert abs(v[inside].mean()) < 0.01


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if PERIOD[shape]])
def test_a_turned_shape_comes_back_after_its_period(shape):
    def look(angle):
        script = alone(shape, angle=angle)
        return paint(script, trajectory(script, np.zeros(1)), 64, 64).frames.astype(float)

    assert np.abs(look(10.0) - look(10.0 + PERIOD[shape])).mean() < 0.2
    assert np.abs(look(10.0) - look(10.0 + PERIOD[shape] / 2)).mean() > 1.0


def test_edges_are_smooth_and_insides_are_flat():
    picture = paint(alone("circle"), trajectory(alone("circle"), np.zeros(1)), 32, 32)
    cover = picture.coverage[0, 0]
    assert (picture.frames[0][cover == 255] == RGB["blue"]).all()
    assert ((cover > 0) & (cover < 255)).sum() > 20


def test_grounds_are_nearly_grey_and_gentle():
    for texture, shade, phase in itertools.product(TEXTURES, SHADES, (0.1, 0.6)):
        ground = background(Background(texture, shade, phase, 200.0), 32, 32)
        assert np.ptp(ground, axis=-1).max() < 12
        assert ground.mean(axis=-1).std() < 12
        assert ground.min() >= 0
        assert ground.max() <= 255


@pytest.mark.parametrize(
    ("action", "change"),
    [
        ("move_up_left", lambda s: (s.x[1] - s.x[0], s.y[1] - s.y[0]) == pytest.approx((-0.0601, -0.0601), abs=1e-3)),
        ("grow", lambda s: s.radius[1] / s.radius[0] == pytest.approx(1.2, rel=1e-3)),
        ("rotate", lambda s: s.angle[1] - s.angle[0] == pytest.approx(30.0)),
        ("appear", lambda s: s.visible[:3, 0].tolist() == [False, True, True]),
        ("vanish", lambda s: s.visible[:3, 0].tolist() == [True, False, False]),
        ("blink", lambda s: s.visible[:6, 0].tolist() == [True, False, True, False, True, True]),
    ],
)
def test_what_an_action_does(action, change):
    script = alone("square", "small", events=(Event(0, action, None, 0, 4 if action == "blink" else 1),))
    states = trajectory(script, frame_times(8, 7))
    assert change(states)
    assert states.x[2] == states.x[7]  # nothing goes on after the end


def test_what_targeted_actions_do():
    def gap(action, start):
        things = (Thing("red bar", "red", "bar", "small"), Thing("blue bar", "blue", "bar", "small"))
        places = (Placement(0.3, 0.35, 0.0, 0), Placement(0.6, 0.5, 0.0, 1))
        events = (Event(0, action, 1, start, start + 2), Event(1, "move_down", None, 4, 6))
        script = Script(things, places, events, Background("plain", "grey", 0, 0), 7, 0)
        states = trajectory(script, np.linspace(0, 7, 15))
        return np.hypot(states.x[:, 0] - states.x[:, 1], states.y[:, 0] - states.y[:, 1]), states

    assert np.diff(gap("approach", 1)[0])[2:6] == pytest.approx(-0.0425, abs=1e-3)
    assert np.diff(gap("leave", 1)[0])[2:6] == pytest.approx(0.0425, abs=1e-3)
    assert gap("follow", 4)[0] == pytest.approx(np.hypot(0.3, 0.15), abs=1e-3)
    distances, states = gap("orbit", 1)
    assert distances[:7] == pytest.approx(np.hypot(0.3, 0.15), abs=1e-3)
    swept = np.arctan2(states.y[:, 0] - states.y[:, 1], states.x[:, 0] - states.x[:, 1])
    assert np.rad2deg(swept[6] - swept[2]) == pytest.approx(60.0, abs=0.1)  # y points down: this is clockwise


def test_a_clip_looks_alike_at_any_size(scripts):
    for script in scripts[:5]:
        small = paint(script, trajectory(script, frame_times(8, 7)), 32, 32).frames.astype(float)
        large = paint(script, trajectory(script, frame_times(15, 7)), 64, 64).frames[::2].astype(float)
        shrunk = large.reshape(8, 32, 2, 32, 2, 3).mean(axis=(2, 4))
        assert np.abs(small - shrunk).mean() < 2.5


def test_the_source_lists_and_loads():
    source = ShapesSource(**SOURCE)
    assert source.splits() == ("train", "val", "heldout")
    assert list(source.items("val")) == [("val", 0), ("val", 1)]
    record = source.load(("val", 1))
    assert record.frames.shape == (8, 32, 32, 3)
    assert record.frames.dtype == np.uint8
    assert 1 <= len(record.captions) <= 2
    assert all(isinstance(caption, str) and caption for caption in record.captions)
    json.dumps([record.extras, record.source])
    assert tuple(truth["text"] for truth in record.extras["caption_truth"]) == record.captions
    assert record.extras["scenes"][0]["caption"]
    again = ShapesSource(**(SOURCE | {"num_val": 9})).load(("val", 1))
    assert (again.frames == record.frames).all()
    assert again.captions == record.captions
    assert source.fingerprint() != ShapesSource(**(SOURCE | {"seed": 1})).fingerprint()
    large = ShapesSource(**(SOURCE | {"height": 64, "width": 64, "frames": 16})).load(("train", 0))
    assert large.frames.shape == (16, 64, 64, 3)


def test_a_calm_world_has_one_ground_and_upright_things_near_the_middle():
    wild, calm = SETTINGS, replace(SETTINGS, shades=("dark",), scatter=0.3, tilted=False, max_things=1, max_events=1)
    for index in range(30):
        script = sample_script(0, index, calm)
        assert script.background.shade == "dark"
        assert script.placements[0].angle == 0
        moves = {e.action for e in script.events} & set(MOVES)
        if not moves:
            assert max(abs(script.placements[0].x - 0.5), abs(script.placements[0].y - 0.5)) <= 0.3 * 0.4
    several = [sample_script(0, index, replace(wild, scatter=0.6)) for index in range(5)]
    assert max(len(script.things) for script in several) > 1, "there is room for more than one"
    plain = ShapesSource(**SOURCE).fingerprint()
    assert plain["script"].keys() == {f.name for f in fields(ScriptSettings)} - {
        "shades",
        "scatter",
        "tilted",
        "rests",
        "sizes",
    }
    assert ShapesSource(**(SOURCE | {"scatter": 0.3})).fingerprint()["script"]["scatter"] == 0.3


def test_a_world_may_be_told_in_words_that_nobody_knows():
    known = ShapesSource(**SOURCE).load(("train", 0))
    source = ShapesSource(
        **(SOURCE | {"new_verbs": 8, "max_things": 1, "max_events": 3, "rests": False, "reordered": 1.0})
    )
    assert len(source.lexicon) == 8
    assert source.lexicon == NewVerbs(
        seed=SOURCE["seed"], num_new=8, num_pool=4, num_train=1, num_val=1, ticks=7, max_things=1, min_events=1,
        max_events=3, pool_events=1,
    ).lexicon, "a pool explains the words of the clips"  # fmt: skip
    told = 0
    for index in range(12):
        record = source.load(("train", index))
        assert len(set(record.captions)) == len(record.captions)
        for event in record.extras["script"]["events"]:
            stem = source.lexicon.get(event["action"])
            if stem is not None:
                told += 1
                assert all(stem in caption.lower() for caption in record.captions)
    assert told > 5
    assert source.fingerprint() != ShapesSource(**(SOURCE | {"new_verbs": 7})).fingerprint()
    assert "caption_truth" in known.extras


def test_where_nothing_rests_events_fill_the_clip():
    busy = replace(SETTINGS, ticks=4, max_things=1, max_events=2, rests=False, sizes=("large",))
    scripts = [sample_script(0, index, busy) for index in range(60)]
    for script in scripts:
        assert script.things[0].size == "large"
        assert max(e.end for e in script.events) == script.ticks
        first, *rest = sorted(script.events, key=lambda e: e.start)
        assert not rest or rest[0].start <= first.end, "one follows the other at once"
        assert all(e.action != "stay" for e in script.events)
    moves = [e for s in scripts for e in s.events if e.action in MOVES and len(s.events) == 1]
    assert moves
    assert all((e.start, e.end) == (0, 4) for e in moves)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"max_things": 4}, "max_things"),
        ({"min_events": 0}, "max_events"),
        ({"max_events": 10}, "max_events"),
        ({"ticks": 3}, "ticks"),
        ({"frames": 7}, "data.source.frames"),
        ({"height": 16, "width": 16}, "data.source.height"),
        ({"width": 48}, "data.source.height"),
        ({"fps": 0.0}, "data.source.fps"),
        ({"seed": -1}, "data.source.seed"),
        ({"num_captions": 0}, "data.source.num_captions"),
        ({"shades": ["dark", "pink"]}, "data.source.shades"),
        ({"shades": []}, "data.source.shades"),
        ({"sizes": ["huge"]}, "data.source.sizes"),
        ({"reordered": -0.1}, "data.source.reordered"),
        ({"new_verbs": 99}, "data.source.new_verbs"),
        ({"new_verbs": -1}, "data.source.new_verbs"),
        ({"scatter": 1.5}, "data.source.scatter"),
    ],
)
def test_impossible_worlds_are_refused(change, key):
    with pytest.raises(ConfigError) as error:
        ShapesSource(**(SOURCE | change))
    assert key in error.value.key
