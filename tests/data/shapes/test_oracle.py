import dataclasses
import inspect

import numpy as np
import pytest

from data.shapes.motion import frame_times, trajectory
from data.shapes.oracle import OracleReport, Scores, compare, describe, score
from data.shapes.render import paint
from data.shapes.sampling import sample_script
from data.shapes.script import Background, Event, Placement, Script, ScriptSettings, Thing, precedes
from vdm.errors import DataError
from vdm.video import decode, encode_mp4

SETTINGS = ScriptSettings(ticks=7, min_things=1, max_things=3, min_events=1, max_events=7, textured=0.5)
EXACT = ("colour", "shape", "size", "action", "timing", "order")


def film(script: Script, frames: int = 8, size: int = 32) -> np.ndarray:
    return paint(script, trajectory(script, frame_times(frames, script.ticks)), size, size).frames


def encoded(video: np.ndarray) -> np.ndarray:
    return decode(encode_mp4(video, 8.0, crf=12, pixel_format="yuv444p"))


def blurred(video: np.ndarray, seed: int) -> np.ndarray:
    """Gaussian blur of 0.6 pixels and noise of 8 grey levels: worse than an autoencoder of 30 dB."""
    kernel = np.exp(-0.5 * (np.arange(-2, 3) / 0.6) ** 2)
    kernel /= kernel.sum()
    out = video.astype(float)
    for axis in (1, 2):
        wide = np.pad(out, [(2, 2) if a == axis else (0, 0) for a in range(4)], mode="edge")
        size = out.shape[axis]
        out = sum(k * wide.take(range(i, i + size), axis=axis) for i, k in enumerate(kernel))
    out += np.random.default_rng(seed).normal(0, 8, out.shape)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def report(videos: list[np.ndarray], scripts: list[Script]) -> OracleReport:
    out = OracleReport()
    for video, script in zip(videos, scripts, strict=True):
        out.add(score(video, script), script)
    return out


@pytest.fixture(scope="module")
def scripts() -> list[Script]:
    return [sample_script(0, index, SETTINGS, "test") for index in range(100)]


@pytest.fixture(scope="module")
def videos(scripts) -> list[np.ndarray]:
    return [film(script) for script in scripts]


def test_true_clips_are_read_exactly(videos, scripts):
    means = report(videos, scripts).means()
    assert set(means) == set(EXACT)
    assert min(means.values()) >= 0.99, means


def test_the_codec_changes_nothing(videos, scripts):
    means = report([encoded(video) for video in videos[:50]], scripts[:50]).means()
    assert min(means.values()) >= 0.985, means


def test_a_decoder_that_blurs_is_forgiven(videos, scripts):
    means = report([blurred(video, i) for i, video in enumerate(videos[:50])], scripts[:50]).means()
    assert means["order"] >= 0.97, means
    assert min(means.values()) >= 0.96, means


def test_larger_and_longer_clips(scripts):
    means = report([film(script, frames=16, size=64) for script in scripts[:20]], scripts[:20]).means()
    assert min(means.values()) >= 0.97, means


@pytest.mark.slow
@pytest.mark.parametrize("change", ["none", "codec", "blur"])
def test_the_figures_of_the_documentation(change):
    """docs/shapes.md: 2,000 clips of the default world."""
    out = OracleReport()
    for index in range(2000):
        script = sample_script(0, index, SETTINGS)
        video = film(script)
        video = {"none": lambda v: v, "codec": encoded, "blur": lambda v: blurred(v, index)}[change](video)  # noqa: B023
        out.add(score(video, script), script)
    means = out.means()
    assert min(means.values()) >= (0.985 if change == "blur" else 0.99), means
    assert min(share for share, _ in out.by_action().values()) >= 0.98, out.by_action()


def swapped(script: Script) -> Script:
    """The first of two events takes place last."""
    a, b = script.events
    early, late = (
        dataclasses.replace(b, start=0, end=b.end - b.start),
        dataclasses.replace(a, start=7 - a.end + a.start, end=7),
    )  # noqa: E501
    return dataclasses.replace(script, events=(early, late))


def test_order_falls_to_nothing_when_two_events_are_swapped():
    settings = dataclasses.replace(SETTINGS, min_events=2, max_events=2)
    sampled = [sample_script(9, index, settings) for index in range(80)]
    pairs = [s for s in sampled if precedes(*s.events) and precedes(*swapped(s).events)]
    # Of two rests nobody can say which is which, and of two equal acts of one agent neither.
    pairs = [s for s in pairs if s.events[0].action != s.events[1].action]
    assert len(pairs) > 25
    seen = [describe(film(script), 7) for script in pairs]
    assert np.mean([compare(d, s).order for d, s in zip(seen, pairs, strict=True)]) >= 0.99
    assert np.mean([compare(d, swapped(s)).order for d, s in zip(seen, pairs, strict=True)]) <= 0.02
    assert np.mean([compare(d, swapped(s)).action for d, s in zip(seen, pairs, strict=True)]) >= 0.99


def test_other_videos_score_next_to_nothing(videos, scripts):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8) for _ in scripts[:30]]
    blobs = [np.kron(rng.integers(0, 256, (8, 8, 8, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8) for _ in scripts[:30]]
    blank = [np.full((8, 32, 32, 3), 30 * (i % 8), dtype=np.uint8) for i in range(30)]
    for other in (noise, blobs, blank):
        means = report(other, scripts[:30]).means()
        assert means["action"] <= 0.05, means
        assert means["order"] <= 0.02, means
        assert means["shape"] <= 0.2, means
    means = report(videos, [*scripts[1:], scripts[0]]).means()
    assert means["action"] <= 0.1, means
    assert means["order"] <= 0.03, means


def test_a_frozen_clip_shows_rest_only(videos, scripts):
    frozen = [np.repeat(video[:1], 8, axis=0) for video in videos[:30]]
    for video in frozen:
        assert {e.action for e in describe(video, 7).events} <= {"stay"}
    assert report(frozen, scripts[:30]).means()["order"] <= 0.05


def test_shuffled_frames_lose_the_order(videos, scripts):
    rng = np.random.default_rng(1)
    means = report([video[rng.permutation(8)] for video in videos], scripts).means()
    assert means["order"] <= 0.3, means  # half of the pairs that survive are right by chance


MIRROR = {"left": "right", "right": "left"}


def test_a_mirrored_clip_is_read_mirrored(videos):
    for video in videos[:25]:
        there, mirrored = describe(video, 7), describe(np.ascontiguousarray(video[:, :, ::-1]), 7)
        flipped = {"_".join(MIRROR.get(word, word) for word in e.action.split("_")) for e in there.events}
        assert {e.action for e in mirrored.events} == flipped


def test_a_clip_played_backwards_is_read_backwards():
    thing = Thing("red cross", "red", "cross", "small")
    events = (Event(0, "move_right", None, 0, 2), Event(0, "grow", None, 3, 5), Event(0, "vanish", None, 6, 7))
    script = Script((thing,), (Placement(0.3, 0.5, 10.0, 0),), events, Background("dots", "dark", 0.2, 10), 7, 0)
    seen = describe(film(script)[::-1], 7)
    acts = [(e.action, e.start, e.end) for e in seen.events if e.action != "stay"]
    assert acts == [("appear", 0, 1), ("shrink", 2, 4), ("move_left", 5, 7)]


def test_a_description_stands_alone():
    """It is made without a script, so no hypothesis can bend it."""
    assert list(inspect.signature(describe).parameters) == ["video", "ticks"]
    things = (Thing("red square", "red", "square", "small"), Thing("blue circle", "blue", "circle", "large"))
    places = (Placement(0.2, 0.2, 15.0, 1), Placement(0.7, 0.68, 0.0, 0))
    events = (Event(0, "rotate", None, 0, 2), Event(1, "move_left", None, 2, 4), Event(1, "blink", None, 5, 7))
    seen = describe(film(Script(things, places, events, Background("plain", "grey", 0, 0), 7, 0)), 7)
    assert set(seen.things) == set(things)
    acts = [(seen.things[e.agent].name, e.action, e.start, e.end) for e in seen.events if e.action != "stay"]
    expected = [("red square", "rotate", 0, 2), ("blue circle", "move_left", 2, 4), ("blue circle", "blink", 5, 7)]
    assert acts == expected
    rests = [(seen.things[e.agent].name, e.start, e.end) for e in seen.events if e.action == "stay"]
    assert rests == [("blue circle", 0, 2), ("red square", 2, 7), ("blue circle", 4, 5)]


def test_attributes_are_bound_to_their_thing():
    """A red square and a blue circle are not a blue square and a red circle."""
    things = (Thing("red square", "red", "square", "small"), Thing("blue circle", "blue", "circle", "large"))
    places = (Placement(0.2, 0.2, 15.0, 1), Placement(0.7, 0.68, 0.0, 0))
    script = Script(things, places, (Event(0, "grow", None, 0, 1),), Background("plain", "grey", 0, 0), 7, 0)
    crossed = (Thing("blue square", "blue", "square", "small"), Thing("red circle", "red", "circle", "large"))
    scores = score(film(script), dataclasses.replace(script, things=crossed))
    assert (scores.colour, scores.shape, scores.size, scores.action) == (1.0, 0.0, 0.0, 0.0)


def test_what_counts_as_order():
    things = (Thing("red square", "red", "square", "small"),)
    steps = [Event(0, action, None, start, start + 1) for start, action in ((0, "grow"), (2, "move_up"), (4, "shrink"))]
    script = Script(things, (Placement(0.5, 0.5, 0, 0),), tuple(steps), Background("plain", "grey", 0, 0), 7, 0)
    seen = describe(film(script), 7)
    assert compare(seen, script) == Scores(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, (True, True, True))
    one = dataclasses.replace(script, events=script.events[:1])
    assert compare(seen, one).order is None
    missing = dataclasses.replace(seen, events=tuple(e for e in seen.events if e.action != "move_up"))
    scores = compare(missing, script)
    assert scores.order == pytest.approx(1 / 3)  # of three pairs only grow - shrink is left
    assert scores.action == pytest.approx(2 / 3)
    late = [dataclasses.replace(steps[2], start=0, end=1), steps[1], dataclasses.replace(steps[0], start=5, end=6)]
    scores = compare(seen, dataclasses.replace(script, events=tuple(late)))
    assert (scores.action, scores.order, scores.timing) == (1.0, 0.0, pytest.approx(1 / 3))


def test_the_report_counts_actions(videos, scripts):
    out = report(videos[:5], scripts[:5])
    assert len(out) == 5
    assert sum(number for _, number in out.by_action().values()) == sum(len(s.events) for s in scripts[:5])
    assert OracleReport().means() == {}


def test_what_is_no_video_is_refused():
    for wrong in (np.zeros((8, 32, 32, 3)), np.zeros((32, 32, 3), np.uint8), np.zeros((8, 3, 32, 32), np.uint8)):
        with pytest.raises(DataError):
            describe(wrong, 7)
