"""WebVid and OpenVid as they are found on disks, from miniature tables and videos to shards."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest

from data.openvid import OpenVidSource
from data.prepare import main
from data.shards import member_table, open_shard, read_index, read_member
from data.webvid import WebVidSource, seconds
from vdm.errors import ConfigError, DataError, UserError
from vdm.video import encode_mp4

REPOSITORY = Path(__file__).resolve().parents[2]
WEBVID = ("videoid", "contentUrl", "duration", "page_dir", "name")
OPENVID = ("video", "caption", "aesthetic score", "motion score", "temporal consistency score", "camera motion",
           "frame", "fps", "seconds")  # fmt: skip


def video(seed=0, frames=30, height=36, width=48, fps=15.0):
    y, x = np.mgrid[:height, :width]
    picture = np.stack([x * 4 + 40 * seed, y * 5, x + y], -1)
    return encode_mp4(np.stack([(picture + 3 * n) % 256 for n in range(frames)]).astype(np.uint8), fps)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def table(path, header, rows, prefix=b"", suffix=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    path.write_bytes(prefix + path.read_bytes() + suffix)


@pytest.fixture
def webvid(tmp_path):
    """A table with what real ones have: quotes, newlines, a byte-order mark, bad bytes, doubles, missing files."""
    videos = tmp_path / "videos"
    row = lambda videoid, name, page="000001_000050": (videoid, "https://host/x.mp4", "PT00H00M10S", page, name)  # noqa: E731
    table(
        tmp_path / "train.csv",
        WEBVID,
        [
            row("1001", "A dog runs on the beach"),
            row("1002", 'A "quoted", comma-ridden\ncaption over two lines'),
            row("1003", "flat in the folder"),
            row("1004", "upper case extension"),
            row("1005", ""),
            row("1006", "its file is missing"),
            row("1007", "its file is cut off"),
            row("1008", "its file is empty"),
            row("1001", "the same video twice"),
            row("../1009", "climbs out of the folder"),
            row("1010", "climbs out as well", "../../etc"),
            row("1011", "too short"),
            row("1012", "Ein Hündchen läuft 跑"),
        ],
        prefix=b"\xef\xbb\xbf",
        suffix=b"1013,u,PT00H00M10S,000001_000050,caf\xe9 au lait\r\n1014,only three,fields\r\n\r\n1015,u,PT10S,p,last",
    )
    nested = videos / "000001_000050"
    for number, name in enumerate(("1001.mp4", "1002.mp4", "1005.mp4", "1010.mp4", "1012.mp4", "1013.mp4", "1004.MP4")):
        put(nested / name, video(number))
    put(videos / "1003.mp4", video(8))
    put(videos / "p" / "1015.mp4", video(9))
    put(nested / "1007.mp4", video()[:700])
    put(nested / "1008.mp4", b"")
    put(nested / "1011.mp4", video(frames=4))
    return tmp_path


WEBVID_KEPT = {
    "webvid-1001": "A dog runs on the beach",
    "webvid-1002": 'A "quoted", comma-ridden caption over two lines',
    "webvid-1003": "flat in the folder",
    "webvid-1004": "upper case extension",
    "webvid-1012": "Ein Hündchen läuft 跑",
    "webvid-1015": "last",
}
WEBVID_REJECTED = {
    "1005": "no caption",
    "1006": "no video file",
    "1007": "the video cannot be decoded",
    "1008": "the video cannot be decoded",
    "1001": "the same videoid twice",
    "../1009": "unusable videoid",
    "1010": "unusable page_dir",
    "1011": "the video is too short",
    "1013": "the caption is not UTF-8",
    "": "a damaged row of the table",
}


def prepare(*overrides, cwd=REPOSITORY):
    command = [sys.executable, "-m", "data.prepare", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def small(root, source, *more):
    store = ["frames=8", "height=24", "width=24", "samples_per_shard=4"]
    return [f"paths.data_root={root}", *source, *(f"data.store.{item}" for item in store), "num_workers=2", *more]


def samples(folder):
    index, found = read_index(folder), {}
    for info in index.shards:
        with open_shard(index.path(info)) as file:
            for sample in member_table(file):
                found[sample.key] = json.loads(read_member(file, *sample.members["json"]))
    return found


def webvid_overrides(folder, *more):
    source = ["data=webvid", f"data.source.csv.train={folder}/train.csv", "data.source.csv.val=null"]
    return small(folder / "datasets", [*source, f"data.source.videos={folder}/videos"], *more)


def test_webvid_from_table_to_shards_by_command(webvid):
    refused = prepare(*webvid_overrides(webvid))
    assert refused.returncode == 2
    assert refused.stderr.count("DataError: too many items are broken") == 1
    assert "Traceback" not in refused.stderr
    done = prepare(*webvid_overrides(webvid, "max_rejected=0.9"))
    assert done.returncode == 0, done.stderr
    assert "6 clips in 2 shards" in done.stdout
    assert "rejected 10 of 16 items" in done.stdout
    found = samples(webvid / "datasets" / "webvid" / "train")
    assert {key: text["caption"] for key, text in found.items()} == WEBVID_KEPT
    first = found["webvid-1001"]
    assert (first["fps"], first["frames"], first["height"], first["width"]) == (8.0, 8, 24, 24)
    assert first["source"] == {
        "dataset": "webvid", "videoid": "1001", "url": "https://host/x.mp4", "duration": 10.0}  # fmt: skip
    lines = (webvid / "datasets" / "webvid" / "train" / "rejected.jsonl").read_text().splitlines()
    assert {line["item"]: line["reason"] for line in map(json.loads, lines)} == WEBVID_REJECTED
    verified = prepare(*webvid_overrides(webvid, "verify=true"))
    assert (verified.returncode, "are whole" in verified.stdout) == (0, True)


def webvid_source(folder, **changes):
    settings = {"csv": {"train": f"{folder}/train.csv"}, "videos": f"{folder}/videos", "missing": "reject"}
    return WebVidSource(**(settings | changes))


def test_webvid_items_are_the_rows_in_order(webvid):
    source = webvid_source(webvid)
    assert source.splits() == ("train",)
    items = source.items("train")
    assert [str(item) for item in items][:3] == ["1001", "1002", "1003"]
    assert len(items) == 16
    assert items == source.items("train")
    partial = webvid_source(webvid, missing="skip").items("train")
    assert len(partial) == 15
    assert "1006" not in [str(item) for item in partial]


def test_webvid_fingerprint_follows_the_table_of_each_split(webvid):
    before = webvid_source(webvid).fingerprint()
    assert before == webvid_source(webvid, videos="elsewhere").fingerprint()
    table(webvid / "val.csv", WEBVID, [("1", "", "", "", "")])
    both = webvid_source(webvid, csv={"train": f"{webvid}/train.csv", "val": f"{webvid}/val.csv"}).fingerprint()
    assert both["splits"]["train"] == before["splits"]["train"]
    with open(webvid / "train.csv", "a") as file:
        file.write("\n1,2,3,4,5")
    assert webvid_source(webvid).fingerprint() != before


def test_what_is_missing_of_webvid_is_said(webvid):
    with pytest.raises(
        DataError, match=r"table of WebVid is not there[^$]*data\.source\.csv\.train[^$]*results_10M_train"
    ):
        webvid_source(webvid, csv={"train": "nowhere.csv"}).items("train")
    with pytest.raises(DataError, match=r"data\.source\.videos[^$]*links in the tables are dead[^$]*your own files"):
        webvid_source(webvid, videos=f"{webvid}/nowhere").items("train")
    with pytest.raises(ConfigError, match="reject, skip"):
        webvid_source(webvid, missing="ignore")
    (webvid / "other.csv").write_text("id,text\n1,2\n")
    with pytest.raises(DataError, match=r"lacks a column[^$]*id, text[^$]*videoid"):
        webvid_source(webvid, csv={"train": f"{webvid}/other.csv"}).items("train")
    (webvid / "empty.csv").write_text("")
    with pytest.raises(DataError, match="lacks a column"):
        webvid_source(webvid, csv={"train": f"{webvid}/empty.csv"}).items("train")
    (webvid / "bare.csv").write_text(",".join(WEBVID) + "\n")
    with pytest.raises(DataError, match="has no rows"):
        webvid_source(webvid, csv={"train": f"{webvid}/bare.csv"}).items("train")


def test_an_open_quote_does_not_swallow_the_table(webvid, tmp_path):
    head = ",".join(WEBVID) + '\n1001,u,PT10S,p,"never closed\n'
    rest = "".join(f"{2000 + n},u,PT10S,p,{'a caption that goes on ' * 8}\n" for n in range(9000))
    (tmp_path / "quote.csv").write_text(head + rest)
    items = webvid_source(webvid, csv={"train": str(tmp_path / "quote.csv")}).items("train")
    assert "damaged row" in items[0].problem
    assert len(items) > 1000  # what follows the limit is read again


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("PT00H00M10S", 10.0),
        ("PT01H02M03S", 3723.0),
        ("PT7S", 7.0),
        ("PT00H00M07.5S", 7.5),
        ("", None),
        ("PT", None),
        ("10", None),
    ],
)
def test_durations(text, value):
    assert seconds(text) == value


@pytest.fixture
def openvid(tmp_path):
    videos = tmp_path / "videos"
    row = lambda name, caption, aesthetic="5.5", motion="3.0": (  # noqa: E731
        name, caption, aesthetic, motion, "0.99", "pan_left", "30", "15.0", "2.0")  # fmt: skip
    table(
        tmp_path / "OpenVid-1M.csv",
        OPENVID,
        [
            row("celebv_a.b_0.mp4", "A person, smiling,\n\nthen nodding."),
            row("plain_1.mp4", "Plain"),
            row("plain 1.mp4", "A blank in the name"),
            row("ugly.mp4", "Low score", aesthetic="3.9"),
            row("noscore.mp4", "No score", aesthetic=""),
            row("nan.mp4", "Not a number", aesthetic="nan"),
            row("wild.mp4", "Much motion", motion="50"),
            row("sub/inner.MP4", "In a folder"),
            row("gone.mp4", "No file"),
            row("plain_1.mp4", "Twice"),
            row("/etc/x.mp4", "Absolute"),
            row("a/../../x.mp4", "Climbing"),
        ],
    )
    for n, name in enumerate(("celebv_a.b_0.mp4", "plain_1.mp4", "plain 1.mp4", "ugly.mp4", "noscore.mp4", "nan.mp4",
                              "wild.mp4", "sub/inner.MP4")):  # fmt: skip
        put(videos / name, video(n))
    return tmp_path


def openvid_source(folder, **changes):
    settings = {"csv": f"{folder}/OpenVid-1M.csv", "videos": f"{folder}/videos", "missing": "reject", "least": {},
                "most": {}, "val_share": 0.0}  # fmt: skip
    return OpenVidSource(**(settings | changes))


def loaded(source, split="train"):
    """Key -> record, and name -> reason."""
    records, reasons = {}, {}
    for item in source.items(split):
        try:
            record = source.load(item)
            assert record.key not in records
            records[record.key] = record
        except DataError as error:
            reasons[str(item)] = error.what
    return records, reasons


def test_openvid_rows_become_records(openvid):
    records, reasons = loaded(openvid_source(openvid))
    assert reasons == {
        "gone.mp4": "no video file",
        "plain_1.mp4": "the same video twice",
        "/etc/x.mp4": "unusable file name",
        "a/../../x.mp4": "unusable file name",
    }
    assert len(records) == 8
    assert records["plain_1"].captions == ("Plain",)
    assert records["plain_1"].source == {
        "dataset": "openvid", "video": "plain_1.mp4", "aesthetic_score": 5.5, "motion_score": 3.0,
        "temporal_consistency_score": 0.99, "seconds": 2.0, "camera_motion": "pan_left", "fps": 15.0}  # fmt: skip
    assert "aesthetic_score" not in records["nan"].source
    dotted = [key for key in records if key.startswith(("celebv", "sub", "plain_1-"))]
    assert len(dotted) == 3
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for key in dotted)


def test_openvid_bounds_leave_rows_out(openvid):
    records, reasons = loaded(openvid_source(openvid, least={"aesthetic_score": 5.0}, most={"motion_score": 10}))
    assert not {"ugly", "noscore", "nan", "wild"} & records.keys()
    assert len(records) == 4
    assert openvid_source(openvid, missing="skip").items("train") != openvid_source(openvid).items("train")
    one = [
        ("gone.mp4", "c", "6", "3", "1", "static", "30", "15", "2"),
        ("plain_1.mp4", "c", "2", "3", "1", "", "", "", ""),
    ]
    table(openvid / "OpenVid-1M.csv", OPENVID, one)
    with pytest.raises(DataError, match=r"nothing remains[^$]*1 rows outside the bounds, 1 without their video"):
        openvid_source(openvid, least={"aesthetic_score": 5, "seconds": None}, missing="skip").items("train")
    with pytest.raises(ConfigError, match="unknown score[^$]*aesthetic_score, motion_score"):
        openvid_source(openvid, least={"beauty": 3})
    with pytest.raises(ConfigError, match="a bound is a number"):
        openvid_source(openvid, most={"motion_score": "low"})


def test_openvid_splits_are_disjoint_and_stable(openvid):
    rows = [(f"v{n}.mp4", "c", "5", "3", "1", "static", "30", "15", "2") for n in range(400)]
    table(openvid / "OpenVid-1M.csv", OPENVID, rows)
    train, val = (
        {str(item) for item in openvid_source(openvid, val_share=0.1).items(split)} for split in ("train", "val")
    )
    assert not train & val
    assert len(train | val) == 400
    assert 20 <= len(val) <= 60
    table(openvid / "OpenVid-1M.csv", OPENVID, rows[::-1] + [("more.mp4", *rows[0][1:])])
    assert {str(item) for item in openvid_source(openvid, val_share=0.1).items("val")} - {"more.mp4"} == val
    assert openvid_source(openvid).splits() == ("train",)


def test_what_is_missing_of_openvid_is_said(openvid):
    with pytest.raises(DataError, match=r"data\.source\.csv[^$]*OpenVid-1M\.csv"):
        openvid_source(openvid, csv="nowhere.csv").items("train")
    with pytest.raises(DataError, match=r"data\.source\.videos[^$]*unpack"):
        openvid_source(openvid, videos="nowhere").items("train")


def test_openvid_from_table_to_shards_by_command(openvid):
    source = ["data=openvid", f"data.source.csv={openvid}/OpenVid-1M.csv", f"data.source.videos={openvid}/videos"]
    more = [
        "data.source.val_share=0",
        "data.source.least.aesthetic_score=5",
        "max_rejected=0.6",
        "clips_per_video=null",
    ]
    done = prepare(*small(openvid / "datasets", source, *more))
    assert done.returncode == 0, done.stderr
    found = samples(openvid / "datasets" / "openvid" / "train")
    assert {key for key in found if key.startswith("plain_1-0")} == {"plain_1-0000", "plain_1-0001"}
    assert len(found) == 10  # 5 videos of 2 seconds, 16 frames at 8 fps


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data=webvid"], ["data.source.csv.train", "results_10M_train.csv", "remedy"]),
        (["split=trian"], ["split", "trian", "did you mean 'train'"]),
        (["num_workers=-1"], ["num_workers", "-1", "whole number from 0"]),
        (["data.store.crf=99"], ["data.store.crf", "99", "0 (lossless) to 51"]),
        (["data.root=s3://bucket/x"], ["data.root", "s3://bucket/x", "local folder"]),
        (["min_frames=99"], ["min_frames", "99", "data.store.frames"]),
        (["verify=true"], ["there is no shard folder", "data.root"]),
    ],
)
def test_wrong_settings_name_key_got_and_remedy(tmp_path, overrides, parts):
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        cfg = hydra.compose("prepare", [f"paths.data_root={tmp_path}", *overrides])
    with pytest.raises(UserError) as error:
        main(cfg)
    for part in parts:
        assert part in str(error.value)


def test_a_wrong_command_ends_in_one_message(tmp_path):
    ended = prepare(f"paths.data_root={tmp_path}", "data=webvid")
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("DataError: the caption table of WebVid is not there") == 1
