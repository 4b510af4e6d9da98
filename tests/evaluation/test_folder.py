"""A folder of anybody's videos: every file is a clip or is counted by the reason why it is none, and nothing hangs."""

import csv
import json
import os
import time

import hydra
import numpy as np
import pytest
import torch
from strange_files import Trouble, array, bad, encoded, good, pictures, write

from vdm import config
from vdm.errors import ConfigError, DataError
from vdm.evaluating.command import evaluate
from vdm.evaluation.folder import Folder, counted, listed
from vdm.evaluation.isolated import isolated
from vdm.evaluation.reading import ClipRule, Entry, FoundClip, Reader, Refusal, natural, read_clip
from vdm.launch import CONF
from vdm.video import decode

RULE = {"frames": 4, "stride": 1, "height": 16, "width": 16, "fps": None, "still_fps": 8.0, "grey": "refuse",
        "max_pixels": 9437184, "enlarge": 4.0}  # fmt: skip


def read(path, kind="video", part=None, **changed):
    return read_clip(Entry(path.stem, str(path), kind, part), ClipRule(**RULE | changed))


def ask(root, videos, *overrides):
    settings = [f"paths.output_root={root}", f"videos={videos}", "protocol.shown=0", "report=false", "num_workers=1"]
    rule = [f"clip_rule.{name}={RULE[name]}" for name in ("frames", "height", "width")]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("evaluate", overrides=["protocol=ucf101", *settings, *rule, *overrides])
    config.check(cfg, set(cfg))
    numbers = evaluate(cfg)
    found = list((root / "evaluation").glob(f"*-{videos.name}-*/metrics.json"))
    return numbers, json.loads(found[0].read_text()), found[0].parent


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    write(folder, {f"c{i % 3}/r{i}.mp4": good(100 + i) for i in range(14)})
    return folder


def test_every_form_gives_its_frames(tmp_path):
    frames = pictures(3)
    write(
        tmp_path,
        {
            "a.mkv": encoded(frames, "matroska", pixel_format="bgr0"),
            "b.npz": array(frames),
            "c.npz": array(np.stack([frames[::-1], frames])),
            "d.gif": good(3, "gif"),
            "e.avi": good(3, "avi"),
        },
    )
    for number in (0, 1, 2, 10, 9):
        write(tmp_path, {f"f/frame{number}.png": _png(frames[number % 8])})
    same = {"height": 24, "width": 24}
    exact = read(tmp_path / "a.mkv", **same)
    assert exact.size == (24, 24)
    assert exact.fps == 8
    np.testing.assert_array_equal(exact.frames, frames[:4])
    for path, kind, part in (("b.npz", "array", None), ("c.npz", "array", 1)):
        np.testing.assert_array_equal(read(tmp_path / path, kind, part, **same).frames, frames[:4])
    np.testing.assert_array_equal(read(tmp_path / "c.npz", "array", 0, **same).frames, frames[::-1][:4])
    np.testing.assert_array_equal(read(tmp_path / "f", "pictures", **same).frames[:3], frames[:3])
    np.testing.assert_array_equal(read(tmp_path / "f", "pictures", **same).frames[3], frames[1], "9 before 10")
    for name in ("d.gif", "e.avi"):
        assert np.abs(read(tmp_path / name, **same).frames.astype(int) - frames[:4]).mean() < 25, name
    assert read(tmp_path / "a.mkv", frames=3, stride=3, **same).fps == pytest.approx(8 / 3)
    np.testing.assert_array_equal(read(tmp_path / "a.mkv", frames=3, stride=3, **same).frames, frames[:7:3])
    slow = read(tmp_path / "a.mkv", fps=4.0, **same)
    np.testing.assert_array_equal(slow.frames, frames[::2], "what is on screen every quarter of a second")
    assert slow.fps == 4
    assert {entry.key: entry.kind for entry in listed(tmp_path).entries} == {
        "a": "video", "b": "array", "c#00000": "array", "c#00001": "array", "d": "video", "e": "video", "f": "pictures"
    }  # fmt: skip


def _png(picture):
    from vdm.sampling.files import encode_png

    return encode_png(picture)


def test_bad_files_are_told_apart(tmp_path):
    for name, (content, _) in bad().items():
        write(tmp_path, {name: content})
    listing = listed(tmp_path)
    assert {name: listing.refused[name].reason for name in listing.refused} == {
        name: bad()[name][1] for name in ("strange.xyz", "numbers.npz", "text.npz", "lonely.png")
    }
    reader = Reader(ClipRule(**RULE), with_frames=False)
    for entry in listing.entries:
        name = os.path.basename(entry.path)
        assert reader(entry) == Refusal(bad()[name][1], reader(entry).detail), name
    assert isinstance(Reader(ClipRule(**RULE | {"grey": "take"}), False)(listing.entries[-1]), Refusal | FoundClip)
    assert read(tmp_path / "grey.mkv", grey="take").frames.shape == (4, 16, 16, 3)
    assert read(tmp_path / "jumps.mp4", fps=4.0).fps == 4, "resampled, an uneven video is even"
    write(tmp_path, {"odd.mp4": encoded(pictures(0, 8, 47, 33), pixel_format="yuv444p")})
    assert read(tmp_path / "odd.mp4").size == (47, 33)


def test_names_are_in_the_order_people_count(tmp_path):
    assert sorted(["a10", "a2", "A1", "b"], key=natural) == ["A1", "a2", "a10", "b"]
    write(tmp_path, {"x.mp4": b"", "x.avi": b"", "notes.txt": b"", "sub/x.mp4": b"", ".hidden.mp4": b""})
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.npz")
    listing = listed(tmp_path)
    assert [entry.key for entry in listing.entries] == ["x", "sub/x"]
    assert {name: refusal.reason for name, refusal in listing.refused.items()} == {
        "x.mp4": "another file has this name", "gone.mp4": "not a file", "pipe.npz": "not a file"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["captions.json", "captions.txt", "beside"])
def test_captions(tmp_path, name):
    write(tmp_path, {"a.mp4": b"", "c/b.mp4": b""})
    contents = {
        "captions.json": '{"a.mp4": "red: square", "b": "blue  disc"}',
        "captions.txt": "a: red: square\nb\tblue disc\n",
    }
    if name == "beside":
        write(tmp_path, {"a.json": b'{"prompt": "red: square"}', "c/b.json": b'{"prompt": "blue disc"}'})
    else:
        write(tmp_path, {name: contents[name].encode()})
    assert listed(tmp_path).captions == {"a": "red: square", "c/b": "blue disc"}


def test_captions_that_are_none(tmp_path):
    write(tmp_path, {"a.mp4": b"", "captions.json": b'{"nobody": "x"}'})
    with pytest.raises(DataError, match="of no clip"):
        listed(tmp_path)
    for content in (b"[1]", b"{", b'{"a": 3}', b"\xff"):
        write(tmp_path, {"captions.json": content})
        with pytest.raises(DataError, match="cannot be read"):
            listed(tmp_path)


def test_a_file_that_hangs_or_kills_costs_only_itself():
    items = ["a", "hang", "b", "die", "c", "much", "d"]
    began = time.monotonic()
    found = list(isolated(Trouble(), items, processes=2, timeout=1.5, memory=0.5))
    assert time.monotonic() - began < 60
    assert [one for one in found if isinstance(one, str)] == ["a", "b", "c", "refused", "d"]
    assert found[1] == Refusal("it takes too long", "ended after 1.5 seconds")
    assert found[3].reason == "the decoder crashed"


def test_five_hundred_bad_videos(tmp_path, real):
    folder = tmp_path / "made"
    kinds = list(bad().items())
    files = {f"bad{i:03d}_{kinds[i % len(kinds)][0]}": kinds[i % len(kinds)][1][0] for i in range(500)}
    write(folder, files | {f"good{i}.mp4": good(i) for i in range(12)})
    metric = "metric=[shapes_frechet_handmade,flicker,clipsim,psnr]"
    given = [f"reference={real}", metric, "protocol.reference_clips=null"]
    with pytest.raises(DataError, match="fewer videos can be scored") as refused:
        ask(tmp_path, folder, *given)
    assert "12 of 512" in str(refused.value)
    assert "protocol.clips=12" in refused.value.remedy
    numbers, result, place = ask(tmp_path, folder, *given, "protocol.clips=12")
    assert sum(result["rejected"].values()) == 500
    expected = {}
    for i in range(500):
        reason = kinds[i % len(kinds)][1][1]
        expected[reason] = expected.get(reason, 0) + 1
    assert result["rejected"] == expected
    rows = list(csv.DictReader((place / "rejected.csv").open()))
    assert {row["file"] for row in rows} == set(files)
    assert result["data"]["videos"] == 512
    assert result["data"]["used"] == numbers["clips"] == 12
    assert set(result["skipped"]) == {"clipsim", "psnr"}
    assert "captions.json" in result["skipped"]["clipsim"]
    assert numbers["shapes_frechet_handmade12_4f"] >= 0
    assert result["reference"]["clips"] == 14
    assert result["run"] is None
    lines = [json.loads(line) for line in (place / "cases.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [f"good{i}" for i in range(12)]
    assert all(line["scores"]["flicker"] > 0 for line in lines)

    before, side = (place / "metrics.json").read_bytes(), (place / "evaluated.json").read_bytes()
    ask(tmp_path, folder, *given, "protocol.clips=12")
    assert (place / "metrics.json").read_bytes() == before
    assert (place / "evaluated.json").read_bytes() != side


def test_both_sides_are_cut_alike(tmp_path, real):
    """The same videos on both sides are no distance apart, whatever their sizes."""
    metric = ["metric=[shapes_frechet_handmade]", "protocol.reference_clips=null", "protocol.clips=14"]
    numbers, result, _ = ask(tmp_path, real, f"reference={real}", *metric, "metric.shapes_frechet_handmade.draws=0")
    assert numbers["shapes_frechet_handmade14_4f"] == pytest.approx(0, abs=1e-6)
    assert result["decided"]["subject"]["rule"] == result["decided"]["reference"]["rule"]
    fewer = [*metric, "protocol.clips=13", "metric.shapes_frechet_handmade.draws=0"]
    _, other, _ = ask(tmp_path, real, f"reference={real}", *fewer)
    assert other["id"] != result["id"]


def test_mistakes(tmp_path, real):
    with pytest.raises(ConfigError, match="no such folder"):
        ask(tmp_path, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no video in this folder"):
        ask(tmp_path, tmp_path / "empty")
    with pytest.raises(ConfigError, match="a run or a folder"):
        ask(tmp_path, real, "run=x")
    with pytest.raises(ConfigError, match="what clips look like"):
        ask(tmp_path, real, "protocol=shapes")
    with pytest.raises(ConfigError, match="names no data"):
        ask(
            tmp_path,
            real,
            "protocol=shapes",
            "protocol.clips=2",
            "metric=[shapes_frechet_handmade]",
            "clip_rule.stride=1",
        )
    with pytest.raises(ConfigError, match="measures a network"):
        ask(tmp_path, real, "protocol=reconstruction")
    for wrong, key in (
        ("clip_rule.frames=0", "clip_rule.frames"),
        ("clip_rule.grey=maybe", "clip_rule.grey"),
        ("batch_size=x", "batch_size"),
    ):
        with pytest.raises(ConfigError) as error:
            ask(tmp_path, real, wrong)
        assert error.value.key == key
    folder = Folder(real, ClipRule(**RULE), processes=1, timeout=30.0, memory=2.0)
    entry = folder.listing.entries[0]
    with pytest.raises(DataError, match="changed while"):
        list(folder.batches([[(entry, "other")]], torch.device("cpu"), captions=None))
    assert counted({"a": Refusal("x", ""), "b": Refusal("y", ""), "c": Refusal("y", "")}) == {"y": 2, "x": 1}
    assert decode(good(0)).shape == (8, 24, 24, 3)
