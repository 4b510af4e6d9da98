"""MSR-VTT as it is released, in miniature: json files, lists of 1k-A, clips or whole videos, to shards."""

import json
import pickle

import hydra
import pytest
from official_sets import REPOSITORY, loaded, prepare, put, rejected, samples, video

from data.msrvtt import MsrVttSource
from data.prepare import main
from vdm.errors import ConfigError, DataError

IDS = [f"AbCd_-efg{n:02d}" for n in range(12)]  # of YouTube


def row(number, split, **changes):
    facts = {"category": number % 20, "url": f"https://www.youtube.com/watch?v={IDS[number]}", "video_id": f"video{number}",
             "start time": 0.5, "end time": 2.5, "split": split, "id": number}  # fmt: skip
    return facts | changes


def told(numbers, count=20):
    """Twenty captions a video, as the files have them: in any order, some twice, one with blanks."""
    texts = [f"caption {n}" for n in range(count - 3)] + ["caption 0", "  a  man\ncooks ", "ein Mädchen tanzt 跳舞"]
    rows = [{"caption": f"{texts[n]} of {v}" if n < count - 3 else texts[n], "video_id": f"video{v}", "sen_id": 100 * v + n}
            for v in numbers for n in range(count)]  # fmt: skip
    return rows[1::2] + rows[0::2]


def table(path, videos, sentences):
    put(path, json.dumps({"info": {"year": "2016"}, "videos": videos, "sentences": sentences}))


@pytest.fixture
def msrvtt(tmp_path):
    root = tmp_path / "data sets"
    folder = root / "msrvtt"
    train = [row(n, "train") for n in range(5)] + [row(5, "validate"), row(6, "valid?")]
    table(folder / "train_val_videodatainfo.json", train, told([0, 1, 2, 3, 5]))
    table(folder / "test_videodatainfo.json", [row(n, "test") for n in (7, 8, 9)], told([7, 8, 9]))
    clips = folder / "videos" / "TrainValVideo"
    put(clips / "video0.mp4", video(seconds=2.4))
    put(clips / f"{IDS[1]}.webm", video("webm", seconds=3.0))  # the whole video, to be cut
    put(clips / "video3.mp4", video()[:400])
    put(clips / "video4.mp4", video(seed=1))
    put(clips / "video5.mp4", video(seed=2))
    for n in (7, 8):
        put(folder / "videos" / "TestVideo" / f"video{n}.mp4", video(seed=n % 3))
    put(folder / "MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo7\nvideo99\n")
    head = "key,vid_key,video_id,sentence\n"
    put(
        folder / "MSRVTT_JSFUSION_test.csv",
        head + 'ret0,msr8,video8,"a person, cooking\tsoup"\nret1,msr0,video0,cut off',
    )
    return root


def source(root, **changes):
    folder = root / "msrvtt"
    settings = {
        "info": [f"{folder}/train_val_videodatainfo.json", f"{folder}/test_videodatainfo.json"],
        "videos": f"{folder}/videos",
        "partition": "full",
        "lists": {"train": f"{folder}/MSRVTT_train.9k.csv", "test": f"{folder}/MSRVTT_JSFUSION_test.csv"},
    }
    return MsrVttSource(**(settings | changes))


def test_the_full_partition_to_shards_by_command(msrvtt):
    done = prepare(f"paths.data_root={msrvtt}", "data=msrvtt", "data.store.frames=12", "max_rejected=0.7")
    assert done.returncode == 0, done.stderr
    assert "MSR-VTT train: 1 of 5 videos are missing" in done.stderr
    folder = msrvtt / "msrvtt" / "full"
    assert rejected(folder / "train") == {"video2": "no video file", "video3": "the video cannot be decoded",
                                          "video4": "no caption", "video6": "an unknown split"}  # fmt: skip
    found = samples(folder / "train")
    assert sorted(found) == ["video0", "video1"]
    captions = found["video0"]["captions"]
    assert captions == [*[f"caption {n} of 0" for n in range(17)], "caption 0", "a man cooks", "ein Mädchen tanzt 跳舞"]
    assert found["video0"]["source"] == {"dataset": "msrvtt", "video": "video0", "category": 0,
                                         "url": f"https://www.youtube.com/watch?v={IDS[0]}"}  # fmt: skip
    assert found["video1"]["source"].items() >= {"start": 0.5, "end": 2.5}.items()
    assert sorted(samples(folder / "val")) == ["video5"]
    assert sorted(samples(folder / "test")) == ["video7", "video8"]


def test_whole_videos_are_cut_by_the_times_of_the_json(msrvtt):
    records, _ = loaded(source(msrvtt), "train")
    whole, clip = records["video1"], records["video0"]
    assert (whole.start, whole.end, whole.path.endswith(".webm")) == (0.5, 2.5, True)
    assert (clip.start, clip.end) == (None, None)
    info = msrvtt / "msrvtt" / "train_val_videodatainfo.json"
    for times in ({"start time": 3.0, "end time": 1.0}, {"start time": None}, {"end time": float("nan")}):
        table(info, [row(1, "train", **times)], told([1]))
        assert loaded(source(msrvtt), "train")[1] == {"video1": "no seconds to cut out"}
    for url in (f"https://youtu.be/{IDS[1]}?t=3", f"http://www.youtube.com/watch?a=b&v={IDS[1]}&c"):
        table(info, [row(1, "train", url=url)], told([1]))
        assert "video1" in loaded(source(msrvtt), "train")[0]


def test_1k_a_takes_the_lists(msrvtt):
    split = source(msrvtt, partition="1k-A")
    assert split.splits() == ("train", "test")
    records, reasons = loaded(split, "train")
    assert sorted(records) == ["video0", "video7"]
    assert reasons == {"video99": "no table has this video"}
    assert len(records["video7"].captions) == 20
    records, _ = loaded(split, "test")
    assert {key: record.captions for key, record in records.items()} == {
        "video8": ("a person, cooking\tsoup",), "video0": ("cut off",)}  # fmt: skip
    ids = msrvtt / "test_list.txt"
    put(ids, "video8\r\nvideo7\nvideo8\n../x\n")
    records, reasons = loaded(source(msrvtt, partition="1k-A", lists={"test": str(ids)}), "test")
    assert len(records["video8"].captions) == 20
    assert reasons == {"video8": "the same video twice", "../x": "unusable video id"}
    table(msrvtt / "joined.json", [{"video_id": "video8"}], told([8]))  # a joined file without splits
    joined = source(msrvtt, partition="1k-A", info=[f"{msrvtt}/joined.json"], lists={"test": str(ids)})
    assert list(loaded(joined, "test")[0]) == ["video8"]
    full, lists = source(msrvtt).fingerprint(), split.fingerprint()
    assert full["info"] == lists["info"]
    assert full["splits"] == {}
    assert set(lists["splits"]) == {"train", "test"}


def test_items_are_stable_and_travel(msrvtt):
    one = source(msrvtt)
    items = one.items("train")
    assert [str(item) for item in items] == ["video0", "video1", "video2", "video3", "video4", "video6"]
    assert pickle.loads(pickle.dumps(one)).items("train") == items
    joined = msrvtt / "MSRVTT_data.json"
    table(joined, [row(0, "train"), row(0, "train"), row(7, "test")], told([0, 7]))
    records, reasons = loaded(source(msrvtt, info=[str(joined)]), "train")
    assert (sorted(records), reasons) == (["video0"], {"video0": "the same video twice"})


def test_nothing_readable_is_one_error_and_a_list(msrvtt):
    for file in (msrvtt / "msrvtt" / "videos").rglob("video*.mp4"):
        put(file, "moved to another server")
    overrides = [f"paths.data_root={msrvtt}", "data=msrvtt", "split=test", "max_rejected=1", "num_workers=0"]
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = hydra.compose("prepare", overrides)
    with pytest.raises(
        DataError, match=r"nothing is left: every item is broken[^$]*3 of 3 items[^$]*cannot be decoded"
    ):
        main(cfg)
    folder = msrvtt / "msrvtt" / "full" / "test"
    assert list(rejected(folder)) == ["video7", "video8", "video9"]
    assert not (folder / "index.json").exists()
    assert not list(folder.glob("shard-*"))


def test_what_is_missing_or_no_table_is_said(msrvtt, tmp_path):
    with pytest.raises(DataError, match=r"data\.source\.info[^$]*train_val_videodatainfo\.json"):
        source(msrvtt, info=["nowhere.json"]).items("train")
    with pytest.raises(DataError, match=r"data\.source\.videos[^$]*<video id>\.mp4"):
        source(msrvtt, videos="nowhere").items("train")
    with pytest.raises(DataError, match=r"data\.source\.lists\.test[^$]*column video_id"):
        source(msrvtt, partition="1k-A", lists={"test": "nowhere.csv"}).items("test")
    with pytest.raises(ConfigError, match="full, 1k-A"):
        source(msrvtt, partition="1k-B")
    with pytest.raises(ConfigError, match="1k-A needs its lists"):
        source(msrvtt, partition="1k-A", lists={"train": None})
    wrong = tmp_path / "wrong.json"
    for content in (
        "[1]",
        "{}",
        '{"videos": [1], "sentences": []}',
        "{",
        '{"videos": {}, "sentences": []}',
        b"\xff\xfe",
    ):
        put(wrong, content)
        with pytest.raises(DataError, match="not a table of MSR-VTT"):
            source(msrvtt, info=[str(wrong)]).items("train")
    table(wrong, [row(0, "train")], [])
    with pytest.raises(DataError, match="no videos for 'test'"):
        source(msrvtt, info=[str(wrong)]).items("test")
    put(tmp_path / "other" / "clip.mp4", b"x")
    with pytest.raises(DataError, match="none of the videos of MSR-VTT val is there"):
        source(msrvtt, videos=f"{tmp_path}/other").items("val")
