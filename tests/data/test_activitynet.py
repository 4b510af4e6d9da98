"""ActivityNet Captions as it is released, in miniature: segments, whole videos, and the plans that their times give."""

import functools
import json
import pickle

import hydra
import pytest
from official_sets import REPOSITORY, loaded, prepare, put, rejected, samples, video

from data.activitynet import ActivityNetSource
from data.captions import CaptionCorpus
from data.plain_mp4 import decode_stored
from data.prepare import main
from data.reader import ShardReader
from data.samples import ClipReader, ClipSettings
from data.shards import read_index
from data.timed_plans import Span, timed_plan
from dysen.action_plan import Plan
from dysen.condition import scenes_of, tick_spans
from dysen.english.reading import read_caption
from vdm.errors import ConfigError, DataError, PlanError

STORY = "v_" + "QOlSCBRmfWY"
TABLE = {
    STORY: {
        "duration": 8.0,
        "timestamps": [[0.0, 2.0], [2.0, 6.0], [4.0, 8.5]],
        "sentences": ["A man picks up a ball.", " He throws the ball to a dog. ", "The dog runs."],
    },
    "v_" + "v_startwith": {"duration": 4.0, "timestamps": [[0, 4]], "sentences": ["Eine Frau lächelt 微笑."]},
    "v_" + "-brokenTime": {
        "duration": 6.0,
        "timestamps": [[1.0, 1.0], [5.0, 2.0], [7.0, 9.0], [1.0, None], [-1.0, 3.0], [0.5, 6.01], [2, 3], [3.0, 3.4]],
        "sentences": [
            "No length.",
            "Inverted.",
            "Beyond the end.",
            "No time.",
            "A cat sits.",
            "A cat jumps.",
            " ",
            "A blink.",
        ],
    },
    "v_" + "missing_one": {"duration": 4.0, "timestamps": [[0, 4]], "sentences": ["Nobody sees it."]},
    "v_" + "unequal_one": {"duration": 4.0, "timestamps": [[0, 4]], "sentences": ["One.", "Two."]},
    "v_" + "empty_entry": {"duration": 4.0, "timestamps": [], "sentences": []},
    "v_" + "cut_off_one": {"duration": 4.0, "timestamps": [[0, 4]], "sentences": ["The file is damaged."]},
}
TOLD = [["man", "pick up", "ball", [0, 2]], ["man", "throw", "ball", [2, 6]], ["dog", "run", None, [4, 8]]]
BROKEN = {
    "v_-brokenTime#0": "the segment has no length",
    "v_-brokenTime#1": "the segment ends before it starts",
    "v_-brokenTime#2": "the segment is outside the video",
    "v_-brokenTime#3": "no times of the sentence",
    "v_-brokenTime#6": "no caption",
    "v_unequal_one": "times and sentences do not match",
    "v_empty_entry": "no caption",
}


@pytest.fixture
def activitynet(tmp_path):
    root = tmp_path / "data sets"
    folder = root / "activitynet"
    put(folder / "captions" / "train.json", json.dumps(TABLE))
    put(folder / "captions" / "val_1.json", json.dumps({STORY: TABLE[STORY]}))
    put(folder / "videos" / "v1-2" / "train" / f"{STORY}.mp4", video(seconds=8.0))
    put(folder / "videos" / "v1-3" / "v_startwith.mkv", video("matroska", seconds=4.0))  # named by its YouTube id alone
    put(folder / "videos" / "v_-brokenTime.webm", video("webm", seconds=6.0))
    put(folder / "videos" / "v_cut_off_one.mp4", video(seconds=4.0)[:300])
    return root


def source(root, **changes):
    folder = root / "activitynet"
    settings = {
        "captions": {"train": f"{folder}/captions/train.json", "val": f"{folder}/captions/val_1.json", "val_2": None},
        "videos": f"{folder}/videos", "cut": "segment", "frames": 16, "fps": 8.0, "ticks": 8, "reader": read_caption,
    }  # fmt: skip
    return ActivityNetSource(**(settings | changes))


def test_segments_to_shards_by_command(activitynet):
    common = [
        f"paths.data_root={activitynet}",
        "data=activitynet",
        "data.source.captions.val_2=null",
        "max_rejected=0.8",
    ]
    done = prepare(*common)
    assert done.returncode == 0, done.stderr
    assert "ActivityNet train: 3 of 7 videos are missing" in done.stderr
    folder = activitynet / "activitynet" / "segment"
    assert rejected(folder / "train") == BROKEN | {
        "v_-brokenTime#7": "the video is too short", "v_missing_one#0": "no video file",
        "v_cut_off_one#0": "the video cannot be decoded"}  # fmt: skip
    found = samples(folder / "train")
    assert sorted(found) == ["v_-brokenTime-train-4", "v_-brokenTime-train-5", f"{STORY}-train-0", f"{STORY}-train-1",
                             f"{STORY}-train-2", "v_v_startwith-train-0"]  # fmt: skip
    second = found[f"{STORY}-train-1"]
    assert second["caption"] == "He throws the ball to a dog."
    assert second["source"] == {"dataset": "activitynet", "video": STORY, "segment": 1, "start": 2.0, "end": 6.0,
                                "duration": 8.0}  # fmt: skip
    assert (second["frames"], second["fps"]) == (16, 8.0)
    assert found["v_v_startwith-train-0"]["caption"] == "Eine Frau lächelt 微笑."
    assert (found["v_-brokenTime-train-4"]["source"]["start"], found["v_-brokenTime-train-5"]["source"]["end"]) == (
        0,
        6,
    )
    assert sorted(samples(folder / "val")) == [f"{STORY}-val-{n}" for n in range(3)]


def test_whole_videos_to_shards_by_command(activitynet):
    cut = ["data.source.cut=video", "data.store.fps=2", "data.clip.frames=8", "data.source.ticks=8", "split=train"]
    done = prepare(f"paths.data_root={activitynet}", "data=activitynet", "max_rejected=0.8", *cut)
    assert done.returncode == 0, done.stderr
    folder = activitynet / "activitynet" / "video"
    found = samples(folder / "train")
    assert sorted(found) == ["v_-brokenTime-train", f"{STORY}-train", "v_v_startwith-train"]
    assert rejected(folder / "train") == BROKEN | {
        "v_missing_one": "no video file", "v_cut_off_one": "the video cannot be decoded"}  # fmt: skip
    story = found[f"{STORY}-train"]
    assert story["caption"] == "A man picks up a ball. He throws the ball to a dog. The dog runs."
    assert story["source"]["sentences"] == [0, 1, 2]
    assert story["extras"]["plan"] == TOLD
    corpus = CaptionCorpus(name="activitynet", root=str(folder), split="train", cache=None)
    told = {key: (captions, extras["plan"]) for key, captions, extras in corpus.read(0) if "plan" in extras}
    assert told[f"{STORY}-train"] == ([story["caption"]], story["extras"]["plan"])


def test_a_window_of_a_clip_finds_its_graphs(activitynet):
    store = ["data.store.fps=2", "data.clip.frames=8", "data.store.height=24", "data.store.width=24"]
    cut = ["data.source.cut=video", "data.source.ticks=8", "split=val", "num_workers=0"]
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        main(hydra.compose("prepare", [f"paths.data_root={activitynet}", "data=activitynet", *store, *cut]))
    index = read_index(f"{activitynet}/activitynet/video/val")
    key, members = ShardReader(index=index, cache=None, max_open=1, max_tables=1).read(0, 0, ("mp4", "json"))
    clip = ClipSettings(frames=8, frame_stride=1, height=24, width=24)
    decoder = functools.partial(decode_stored, backend="pyav")
    reader = ClipReader(clip=clip, seed=0, extras=["plan", "frame_ticks"], decoder=decoder)
    begun = set()
    for epoch in range(6):
        extras = reader.read(key, members, epoch).extras
        first = int(extras["window"][0])
        graphs, times = scenes_of({"plan": extras["plan"]}), extras["frame_ticks"][first : first + 8]
        last = tick_spans(8, len(graphs), times)[-1][1]
        assert last == (first + 7) // 2  # two frames a second, a tick is a second
        expected = {agent for agent, _, _, (start, end) in TOLD if start <= last < end}
        assert {action.subject for action in graphs[last].actions} == expected
        begun.add(first)
    assert len(begun) > 1


def test_the_plan_has_the_times_of_the_annotators(activitynet):
    records, _ = loaded(source(activitynet, cut="video", fps=2.0), "train")
    extras = records[f"{STORY}-train"].extras
    plan = Plan.from_json(extras["plan"])
    picked, thrown, ran = plan.events[0], plan.events[1], plan.events[-1]
    assert (picked.agent, picked.target, picked.start, picked.end) == ("man", "ball", 0, 2)
    assert (thrown.agent, thrown.start, thrown.end) == ("man", 2, 6)  # "he" is who was named before
    assert (ran.agent, ran.target, ran.start, ran.end) == ("dog", None, 4, 8)
    assert [(scene["start"], scene["end"], scene["seconds"]) for scene in extras["scenes"]] == [
        (0, 2, [0.0, 2.0]), (2, 6, [2.0, 6.0]), (4, 8, [4.0, 8.0])]  # fmt: skip
    assert sorted(sum((scene["events"] for scene in extras["scenes"]), [])) == list(range(len(plan.events)))
    # A frame sees the graphs of its own second: 16 frames at 2 a second, a tick is a second.
    assert extras["frame_ticks"] == [frame / 2 for frame in range(16)]
    graphs = scenes_of({"extras": extras})
    spans = tick_spans(16, len(graphs), extras["frame_ticks"])
    acting = [{action.subject for action in graphs[first].actions} for first, _ in spans]
    assert acting[0] == acting[3] == {"man"}
    assert acting[9] == {"man", "dog"}
    assert acting[12] == {"dog"}


def test_only_what_is_seen_is_told(activitynet):
    """A clip of four seconds: the third sentence begins after it, and of the second one half is seen."""
    records, _ = loaded(source(activitynet, cut="video", fps=4.0), "train")
    short = records[f"{STORY}-train"]
    assert short.captions == ("A man picks up a ball. He throws the ball to a dog.",)
    assert (short.start, short.end) == (0.0, 4.0)
    assert [scene["seconds"] for scene in short.extras["scenes"]] == [[0.0, 2.0], [2.0, 4.0]]
    records, reasons = loaded(source(activitynet, cut="video", fps=8.0, frames=2), "val")
    assert records[f"{STORY}-val"].captions == ("A man picks up a ball.",)
    late = {"v_late": {"duration": 60.0, "timestamps": [[30, 60]], "sentences": ["He leaves."]}}
    put(activitynet / "activitynet" / "captions" / "val_1.json", json.dumps({STORY: TABLE[STORY]} | late))
    assert loaded(source(activitynet, cut="video"), "val")[1] == {"v_late": "no sentence tells what is stored"}


def test_segments_carry_a_plan_of_their_own(activitynet):
    records, _ = loaded(source(activitynet), "train")
    assert all(Plan.from_json(record.extras["plan"]) for record in records.values() if "plan" in record.extras)
    second = records[f"{STORY}-train-1"]
    assert (second.start, second.end) == (2.0, 6.0)
    assert len(second.extras["frame_ticks"]) == 16
    assert second.extras["scenes"][0]["caption"] == "He throws the ball to a dog."
    without, _ = loaded(source(activitynet, reader=None, fps=None), "train")
    assert set(without[second.key].extras) == {"scenes"}
    assert without[second.key].extras["scenes"][0]["events"] == []


def test_the_reader_of_the_configuration_travels_to_workers():
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = hydra.compose("prepare", ["data=activitynet"])
    built = hydra.utils.instantiate(cfg.data.source)
    assert pickle.loads(pickle.dumps(built)).reader("A dog runs.").plan is not None
    assert built.fingerprint()["reader"] == "dysen.english.reading.read_caption"
    assert built.splits() == ("train", "val", "val_2")


def test_plans_of_odd_stories():
    """Many sentences, none of them about anything, the same event twice, a reader that refuses."""
    long = [Span(n, f"The man lifts ball number {n} and the dog sees it.", n, n + 1.0) for n in range(60)]
    truths = timed_plan(long, 60.0, ticks=16, frames=16, fps=1.0, reader=read_caption)
    assert len(Plan.from_json(truths["plan"]).events) <= 64
    assert len(truths["scenes"]) == 60
    twice = [Span(0, "A dog runs.", 0.0, 4.0), Span(1, "The dog runs.", 0.1, 4.0), Span(2, "A dog runs.", 3.9, 4.0)]
    truths = timed_plan(twice, 4.0, ticks=4, frames=4, fps=1.0, reader=read_caption)
    plan = Plan.from_json(truths["plan"])
    assert len(set(plan.events)) == len(plan.events)
    assert truths["scenes"][2]["start"] == 3
    assert truths["scenes"][2]["end"] == 4
    silent = timed_plan([Span(0, "!!!", 0.0, 4.0)], 4.0, ticks=4, frames=4, fps=1.0, reader=read_caption)
    assert "plan" not in silent

    def refuses(text):
        raise PlanError("not today")

    assert "plan" not in timed_plan(twice, 4.0, ticks=4, frames=4, fps=1.0, reader=refuses)
    one = timed_plan(twice[:1], 4.0, ticks=None, frames=4, fps=1.0, reader=functools.partial(read_caption))
    assert Plan.from_json(one["plan"]).events[0].agent == "dog"


def test_what_is_missing_or_no_table_is_said(activitynet, tmp_path):
    with pytest.raises(DataError, match=r"data\.source\.captions\.train[^$]*train\.json, val_1\.json"):
        source(activitynet, captions={"train": "nowhere.json"}).items("train")
    with pytest.raises(DataError, match=r"data\.source\.videos[^$]*v_<YouTube id>\.mp4"):
        source(activitynet, videos="nowhere").items("train")
    with pytest.raises(ConfigError, match="segment, video"):
        source(activitynet, cut="sentence")
    with pytest.raises(ConfigError, match=r"data\.store\.fps"):
        source(activitynet, cut="video", fps=None)
    wrong = tmp_path / "wrong.json"
    for content in ("[1]", "{}", '{"v_x": {"duration": 3}}', "{", b"\xff\xfe", "[" * 100_000):
        put(wrong, content)
        with pytest.raises(DataError, match="not a table of ActivityNet Captions"):
            source(activitynet, captions={"train": str(wrong)}).items("train")
    put(wrong, json.dumps({"../../etc": TABLE[STORY], STORY: TABLE[STORY], "v_odd": [1]}))
    _, reasons = loaded(source(activitynet, captions={"train": str(wrong)}), "train")
    assert reasons == {"../../etc": "unusable video id", "v_odd": "a damaged entry"}
    put(tmp_path / "other" / "v_x.mp4", b"x")
    with pytest.raises(DataError, match="none of the videos of ActivityNet train is there"):
        source(activitynet, videos=f"{tmp_path}/other").items("train")


def test_fingerprint_follows_tables_and_settings(activitynet):
    before = source(activitynet).fingerprint()
    assert before == source(activitynet, videos="elsewhere", ticks=3).fingerprint()
    assert (
        before
        != source(activitynet, cut="video").fingerprint()
        != source(activitynet, cut="video", ticks=3).fingerprint()
    )
    assert before != source(activitynet, reader=None).fingerprint()
    put(activitynet / "activitynet" / "captions" / "val_1.json", "{}")
    assert source(activitynet).fingerprint()["splits"]["train"] == before["splits"]["train"]
