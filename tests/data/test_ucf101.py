"""UCF-101 as the archive and the official lists lay it out, in miniature, to shards."""

import json
import pickle
from pathlib import Path

import pytest
from official_sets import loaded, packed_avi, prepare, put, rejected, samples, video

from data.records import Record, StoreSettings
from data.storing import store_record
from data.ucf101 import PROMPTS, Ucf101Source, class_numbers, in_words, prompts_of, read_prompts
from vdm.errors import ConfigError, DataError
from vdm.video import decode, iter_frames

CLASSES = "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n3 YoYo\r\n"
TRAIN = """ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1
ApplyEyeMakeup/v_ApplyEyeMakeup_g25_c02.avi 1\x20
HandstandPushups/v_HandStandPushups_g08_c01.avi 2
HandstandPushups/v_HandStandPushups_g25_c01.avi 2
YoYo/v_YoYo_g09_c01.avi 3
YoYo/v_YoYo_g10_c01.avi 3
YoYo/v_YoYo_g11_c01.avi 3
""".replace("\n", "\r\n")
TEST = "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\nHandstandPushups/v_HandStandPushups_g01_c01.avi\n"


@pytest.fixture
def ucf(tmp_path):
    """The archive with its spelling, one file missing, one cut off, one that is a text; blanks in the path."""
    root = tmp_path / "my data sets"
    lists, videos = root / "ucf101" / "ucfTrainTestlist", root / "ucf101" / "UCF-101"
    put(lists / "classInd.txt", CLASSES)
    put(lists / "trainlist01.txt", TRAIN)
    put(lists / "testlist01.txt", TEST)
    put(lists / "trainlist02.txt", "YoYo/v_YoYo_g01_c01.avi 3\n")
    put(lists / "testlist02.txt", TEST)
    for nth, line in enumerate((TRAIN + TEST).splitlines()):
        put(videos / line.split()[0], video("avi", seconds=1.7, seed=nth % 3))
    (videos / "YoYo" / "v_YoYo_g09_c01.avi").unlink()
    put(videos / "YoYo" / "v_YoYo_g10_c01.avi", video("avi", seconds=1.7)[:900])
    put(videos / "YoYo" / "v_YoYo_g11_c01.avi", "this is no video")
    put(videos / "YoYo" / "Thumbs.db", b"x")
    return root


def source(root, **changes):
    folder = root / "ucf101"
    settings = {"videos": f"{folder}/UCF-101", "lists": f"{folder}/ucfTrainTestlist", "fold": 1, "val_groups": (),
                "prompts": None}  # fmt: skip
    return Ucf101Source(**(settings | changes))


def test_from_the_archive_to_shards_by_command(ucf):
    base = [f"paths.data_root={ucf}", "data=ucf101", "data.clip.frames=8"]
    refused = prepare(*base)
    assert refused.returncode == 2
    assert refused.stderr.count("DataError: too many items are broken") == 1
    assert "1 of 7 videos are missing" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = prepare(*base, "max_rejected=0.5")
    assert done.returncode == 0, done.stderr
    assert "rejected 3 of 7 items" in done.stdout
    folder = ucf / "ucf101" / "split1"
    assert rejected(folder / "train") == {
        "v_YoYo_g09_c01": "no video file",
        "v_YoYo_g10_c01": "the video cannot be decoded",
        "v_YoYo_g11_c01": "the video cannot be decoded",
    }
    found = samples(folder / "train")
    assert sorted(found) == ["v_ApplyEyeMakeup_g08_c01", "v_ApplyEyeMakeup_g25_c02", "v_HandStandPushups_g08_c01",
                             "v_HandStandPushups_g25_c01"]  # fmt: skip
    upside_down = found["v_HandStandPushups_g08_c01"]
    assert upside_down["extras"] == {"class": 1, "class_name": "HandstandPushups"}
    assert upside_down["caption"] == "A person does push-ups upside down in a handstand."
    assert upside_down["source"] == {"dataset": "ucf101", "video": "v_HandStandPushups_g08_c01",
                                     "class": "HandstandPushups", "group": 8}  # fmt: skip
    assert (upside_down["frames"], upside_down["fps"], upside_down["height"]) == (17, 10.0, 24)
    assert len(samples(folder / "test")) == 2


def test_packed_b_frames_are_frames_in_order(tmp_path):
    """As in a part of the archive: the decoder's times of neighbours are swapped, the pictures are not."""
    put(tmp_path / "v.avi", packed_avi())
    times = [frame.time for frame in iter_frames(tmp_path / "v.avi")]
    assert len(times) == 21
    assert times != sorted(times), "else this file shows nothing"
    record = Record(key="v", captions=("It gets light.",), path=f"{tmp_path}/v.avi")
    store = StoreSettings(
        frames=64, height=24, width=24, fps=None, gop=8, crf=4, pixel_format="yuv420p", samples_per_shard=1
    )
    (stored,) = store_record(record, store, clips_per_video=1, min_frames=21)
    assert json.loads(stored.members["json"])["fps"] == 25.0
    light = decode(stored.members["mp4"]).mean((1, 2, 3))
    assert len(light) == 21
    assert (light[1:] > light[:-1]).all()


def test_the_classes_and_splits_are_the_official_ones(ucf):
    one = source(ucf)
    assert one.splits() == ("train", "test")
    assert [str(item) for item in one.items("test")] == ["v_ApplyEyeMakeup_g01_c01", "v_HandStandPushups_g01_c01"]
    assert [item.number for item in one.items("train")] == [0, 0, 1, 1, 2, 2, 2]
    assert one.items("train") == pickle.loads(pickle.dumps(one)).items("train")
    both = source(ucf, fold="all")
    assert both.splits() == ("train",)
    assert len(both.items("train")) == 9
    with pytest.raises(DataError, match="trainlist03.txt of UCF-101 is not there"):
        source(ucf, fold=3).items("train")
    for fold in (4, 0, True, "two"):
        with pytest.raises(ConfigError, match="1, 2, 3, all"):
            source(ucf, fold=fold)


def test_held_out_groups_are_in_one_split_only(ucf):
    held_out = source(ucf, val_groups=[25])
    assert held_out.splits() == ("train", "val", "test")
    train, val = ({str(item) for item in held_out.items(split)} for split in ("train", "val"))
    assert val == {"v_ApplyEyeMakeup_g25_c02", "v_HandStandPushups_g25_c01"}
    assert train | val == {str(item) for item in source(ucf).items("train")}
    assert not train & val
    with pytest.raises(DataError, match="no videos for 'val'"):
        source(ucf, val_groups=[3]).items("val")
    with pytest.raises(ConfigError, match="1 to 25"):
        source(ucf, val_groups=["g25"])


def test_any_spelling_of_a_class_finds_its_files(ucf):
    videos = ucf / "ucf101" / "UCF-101"
    (videos / "HandstandPushups").rename(videos / "HandStandPushups")
    for file in (videos / "HandStandPushups").iterdir():
        file.rename(file.with_name(file.name.replace("HandStand", "Handstand").replace(".avi", ".AVI")))
    put(
        ucf / "ucf101" / "ucfTrainTestlist" / "testlist01.txt",
        TEST.replace("/", "\\").replace("Handstand", "HandStand"),
    )
    records, reasons = loaded(source(ucf), "test")
    assert not reasons
    assert {record.extras["class_name"] for record in records.values()} == {"ApplyEyeMakeup", "HandstandPushups"}
    assert all(Path(record.path).is_file() for record in records.values())


def test_damaged_lines_are_items_with_a_reason(ucf):
    extra = "YoYo/v_YoYo_g09_c01.avi 2\nApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\nJuggling/v_Juggling_g01_c01.avi 4\nwhat?\n"
    put(ucf / "ucf101" / "ucfTrainTestlist" / "trainlist01.txt", TRAIN.splitlines()[0] + "\n" + extra)
    items = source(ucf).items("train")
    problems = [item.problem.split(":")[0] for item in items]
    assert problems == ["", "the list and classInd.txt number the class otherwise", "the same video twice",
                        "a class that classInd.txt does not have", "a damaged line of the list"]  # fmt: skip


def test_prompts_of_all_classes():
    prompts = read_prompts(str(PROMPTS))
    assert len(prompts) == 101
    assert len({text for texts in prompts.values() for text in texts}) == 101
    assert all(text[0].isupper() and text.endswith(".") for texts in prompts.values() for text in texts)
    assert prompts_of(prompts, "HandStandPushups") == prompts_of(prompts, "HandstandPushups") != ()
    assert [in_words(name) for name in ("ApplyEyeMakeup", "YoYo", "TaiChi", "Basketball")] == [
        "apply eye makeup", "yo yo", "tai chi", "basketball"]  # fmt: skip


def test_prompts_of_ones_own(ucf):
    own = ucf / "prompts.txt"
    put(own, "# mine\n*: a video of {name}\nYoYo: a toy: up\nYoYo: ein Jo-Jo für Ägypten\n")
    mine = source(ucf, prompts=str(own))
    items = {item.name: item for item in mine.items("train") if item.path}
    assert mine.load(items["ApplyEyeMakeup"]).captions == ("a video of apply eye makeup",)
    assert mine.load(items["YoYo"]).captions == ("a toy: up", "ein Jo-Jo für Ägypten")
    assert mine.fingerprint() != source(ucf).fingerprint()
    put(own, "YoYo: only one class\n")
    with pytest.raises(DataError, match=r"classes without a prompt[^$]*ApplyEyeMakeup, HandstandPushups"):
        source(ucf, prompts=str(own)).items("train")
    put(own, "YoYo without a colon\n")
    with pytest.raises(DataError, match="not a prompt of a class"):
        source(ucf, prompts=str(own)).items("train")
    with pytest.raises(DataError, match="file of prompts is not there"):
        source(ucf, prompts="nowhere.txt").items("train")


def test_what_is_missing_is_said(ucf, tmp_path):
    with pytest.raises(DataError, match=r"data\.source\.lists[^$]*UCF101TrainTestSplits"):
        source(ucf, lists="nowhere").items("train")
    with pytest.raises(DataError, match=r"data\.source\.videos[^$]*UCF101\.rar"):
        source(ucf, videos="nowhere").items("train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no video of UCF-101 is in its folder"):
        source(ucf, videos=f"{tmp_path}/empty").items("train")
    put(tmp_path / "other" / "v_Other_g01_c01.avi", b"x")
    with pytest.raises(DataError, match=r"none of the videos of UCF-101 train is there[^$]*7 of 7"):
        source(ucf, videos=f"{tmp_path}/other").items("train")
    for content in ("ApplyEyeMakeup 1\n", "1 A\n1 B\n", "", "0 A\n"):
        put(tmp_path / "classInd.txt", content)
        with pytest.raises(DataError, match="class index"):
            class_numbers(str(tmp_path / "classInd.txt"))


def test_fingerprint_follows_lists_and_settings(ucf):
    before = source(ucf).fingerprint()
    assert before == source(ucf, videos="elsewhere").fingerprint()
    assert before != source(ucf, fold=2).fingerprint() != source(ucf, fold=2, val_groups=[8]).fingerprint()
    put(ucf / "ucf101" / "ucfTrainTestlist" / "testlist01.txt", "x")
    after = source(ucf).fingerprint()
    assert after["splits"]["train"] == before["splits"]["train"]
    assert after != before
