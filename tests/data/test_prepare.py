"""Prepare: the same bytes whatever happens on the way, and nothing broken gets in."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from data.building import SplitBuilder
from data.notes import NOTES, REJECTED
from data.pool import Lost, ordered_map
from data.records import Record, StoreSettings
from data.shards import ShardWriter, member_table, open_shard, read_index, read_member, verify_shards
from data.storing import store_record
from vdm.errors import ConfigError, DataError, RunError
from vdm.video import decode, encode_mp4

REPOSITORY = Path(__file__).resolve().parents[2]
STORE = StoreSettings(
    frames=4, height=16, width=16, fps=8.0, gop=4, crf=12, pixel_format="yuv444p", samples_per_shard=5
)


@dataclass(frozen=True)
class Sketches:
    """Plain colours that are made on the spot; some items misbehave."""

    count: int = 23
    trouble: tuple[tuple[int, str], ...] = ()
    version: int = 1

    def splits(self):
        return ("train",)

    def items(self, split):
        return range(self.count)

    def load(self, item):
        match dict(self.trouble).get(item):
            case "refuse":
                raise DataError("a stain on the canvas", got=f"sketch {item}")
            case "bug":
                raise KeyError("palette")
            case "config":
                raise ConfigError("the brush is missing", key="data.source.brush")
            case "hang":
                time.sleep(600)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "same key":
                item = 0
        frames = np.random.default_rng([self.version, item]).integers(0, 255, (4, 16, 16, 3), np.uint8)
        arrays = {"mask": frames[..., 0] > 100}
        return Record(key=f"s{item:04d}", captions=(f"sketch {item}",), frames=frames, fps=8.0, arrays=arrays)

    def fingerprint(self):
        return {"version": self.version}


def builder(root, source=None, **changes):
    settings = dict(name="sketches", source=source or Sketches(), root=str(root), store=STORE, clips_per_video=1,
                    min_frames=1, num_workers=0, timeout=60.0, max_rejected=0.5, limit=None)  # fmt: skip
    return SplitBuilder(**(settings | changes))


def build(root, source=None, overwrite=False, on_progress=lambda *_: None, **changes):
    return builder(root, source, **changes).build("train", overwrite=overwrite, on_progress=on_progress)


def files(root):
    """Every file of the split and its content."""
    folder = Path(root) / "train"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def samples(root):
    index, found = read_index(Path(root) / "train"), {}
    for info in index.shards:
        with open_shard(index.path(info)) as file:
            for sample in member_table(file):
                found[sample.key] = {name: read_member(file, *span) for name, span in sample.members.items()}
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    root = tmp_path_factory.mktemp("reference")
    build(root)
    return root


def test_shards_hold_what_the_source_gave(reference):
    index = read_index(reference / "train")
    verify_shards(index)
    assert [shard.samples for shard in index.shards] == [5, 5, 5, 5, 3]
    found = samples(reference)
    assert list(found) == [f"s{n:04d}" for n in range(23)]
    text = json.loads(found["s0007"]["json"])
    assert {key: text[key] for key in ("key", "caption", "fps", "frames", "height", "width")} == {
        "key": "s0007", "caption": "sketch 7", "fps": 8.0, "frames": 4, "height": 16, "width": 16}  # fmt: skip
    record = Sketches().load(7)
    with np.load(io.BytesIO(found["s0007"]["npz"])) as arrays:
        np.testing.assert_array_equal(arrays["mask"], record.arrays["mask"])
    mp4 = encode_mp4(record.frames, 8.0, gop=4, crf=12, pixel_format="yuv444p")
    assert found["s0007"]["mp4"] == mp4
    assert set(files(reference)) == {"index.json", REJECTED, *(f"shard-{n:06d}.tar" for n in range(5))}


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_number_of_workers_changes_nothing(reference, tmp_path, num_workers):
    build(tmp_path, num_workers=num_workers)
    assert files(tmp_path) == files(reference)


@pytest.mark.parametrize("stop_at", [1, 5, 12, 22])
def test_an_interrupted_split_continues_to_the_same_bytes(reference, tmp_path, stop_at):
    class Stop(Exception):
        pass

    def interrupt(progress, _):
        if progress.items == stop_at:
            raise Stop

    with pytest.raises(Stop):
        build(tmp_path, on_progress=interrupt)
    assert "index.json" not in files(tmp_path)
    assert not list((tmp_path / "train").glob("*.partial"))
    with pytest.raises(DataError, match="interrupted or refused|is empty"):
        read_index(tmp_path / "train")
    remade = []
    build(tmp_path, on_progress=lambda progress, _: remade.append(progress.items))
    assert files(tmp_path) == files(reference)
    whole = (stop_at - 1) // 5  # shards that were closed: they are not made again
    assert remade[: whole + 1] == [*(5 * (n + 1) for n in range(whole)), 5 * whole + 1]


def test_a_lost_or_cut_shard_is_made_again(reference, tmp_path):
    def interrupt(progress, _):
        if progress.items == 18:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        build(tmp_path, on_progress=interrupt)
    (tmp_path / "train" / "shard-000000.tar").unlink()
    (tmp_path / "train" / "shard-000001.tar").write_bytes(b"cut")
    (tmp_path / "train" / NOTES / "000002.json").write_text("{")
    (tmp_path / "train" / "shard-000004.tar.partial").write_bytes(b"left by a kill")
    build(tmp_path)
    assert files(tmp_path) == files(reference)


KILLED = """
import sys
sys.path[:0] = [{repository!r}, {tests!r}]
from test_prepare import build
if __name__ == "__main__":
    build({root!r}, num_workers=2)
"""


def test_kill_at_any_time_and_go_on(reference, tmp_path):
    script = tmp_path / "run.py"
    root = tmp_path / "root"
    script.write_text(KILLED.format(repository=str(REPOSITORY), tests=str(Path(__file__).parent), root=str(root)))
    command = [sys.executable, str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for shards in (1, 3):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        until(lambda n=shards: len(list((root / "train").glob("shard-*.tar"))) >= n)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    until(lambda: not processes_of(str(script)))  # workers end with their parent
    subprocess.run(command, env=environment, check=True)
    assert files(root) == files(reference)


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def processes_of(script):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path] if script in path.read_bytes().decode(errors="replace") else []
        except OSError:
            continue
    return found


TROUBLE = ((3, "refuse"), (6, "hang"), (7, "die"), (11, "bug"), (12, "same key"), (22, "refuse"))
REASONS = {
    3: "a stain on the canvas",
    6: "took too long",
    7: "the decoder crashed",
    11: "KeyError while loading",
    12: "the same key twice",
    22: "a stain on the canvas",
}


def test_broken_items_are_skipped_counted_and_named(tmp_path):
    outcome = build(tmp_path, Sketches(trouble=TROUBLE), num_workers=2, timeout=1.0)
    lines = [json.loads(line) for line in files(tmp_path)[REJECTED].decode().splitlines()]
    assert {line["position"]: line["reason"] for line in lines} == REASONS
    assert [line["detail"] for line in lines][:2] == ["sketch 3", "ended after 1 seconds"]
    assert "SIGKILL" in lines[2]["detail"]
    assert outcome.rejected == Counter(REASONS.values())
    assert list(samples(tmp_path)) == [f"s{n:04d}" for n in range(23) if n not in REASONS]
    assert [shard.samples for shard in outcome.index.shards] == [4, 3, 3, 5, 2]
    again = build(tmp_path, Sketches(trouble=TROUBLE))
    assert again.was_finished
    assert again.rejected == outcome.rejected


def test_a_shard_without_a_good_item_is_left_out(tmp_path):
    outcome = build(tmp_path, Sketches(trouble=tuple((n, "refuse") for n in range(5, 10))))
    assert [shard.file[:-4][-1] for shard in outcome.index.shards] == ["0", "2", "3", "4"]
    verify_shards(read_index(tmp_path / "train"))


def test_too_many_broken_items_refuse_the_split(tmp_path):
    source = Sketches(trouble=((1, "refuse"), (8, "bug"), (9, "refuse"), (20, "refuse")))
    with pytest.raises(
        DataError, match=r"too many items are broken[^$]*3 of 23[^$]*2  a stain[^$]*1  KeyError[^$]*max_rejected"
    ):
        build(tmp_path, source, max_rejected=0.1)
    assert "index.json" not in files(tmp_path)
    assert len(files(tmp_path)[REJECTED].splitlines()) == 3
    build(tmp_path, source, max_rejected=0.2)  # allowed more, it goes on where it stood
    clean = tmp_path / "clean"
    build(clean, source, max_rejected=0.2)
    assert {k: v for k, v in files(tmp_path).items()} == files(clean)


def test_nothing_left_says_why(tmp_path):
    source = Sketches(count=3, trouble=((0, "refuse"), (1, "bug"), (2, "refuse")))
    with pytest.raises(DataError, match=r"nothing is left[^$]*2  a stain on the canvas"):
        build(tmp_path, source, max_rejected=1.0)
    with pytest.raises(DataError, match="the source has no items"):
        build(tmp_path, Sketches(count=0))


def test_other_settings_are_refused_and_named(tmp_path):
    build(tmp_path)
    before = files(tmp_path)
    with pytest.raises(
        DataError, match=r"other settings[^$]*source\.version: 1 in the shards, 2 now[^$]*overwrite=true"
    ):
        build(tmp_path, Sketches(version=2))
    with pytest.raises(DataError, match=r"items: 23 in the shards, 7 now"):
        build(tmp_path, limit=7)
    with pytest.raises(DataError, match=r"store\.clips_per_video: 1 in the shards, null now"):
        build(tmp_path, clips_per_video=None)
    assert files(tmp_path) == before
    assert build(tmp_path).was_finished
    (tmp_path / "train" / "mine.txt").write_text("kept")
    build(tmp_path, Sketches(version=2, count=7), overwrite=True)
    assert read_index(tmp_path / "train").num_samples == 7
    assert set(files(tmp_path)) == {"index.json", REJECTED, "mine.txt", "shard-000000.tar", "shard-000001.tar"}


def test_settings_count_from_the_first_moment(tmp_path):
    def interrupt(*_):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        build(tmp_path, on_progress=interrupt)
    with pytest.raises(DataError, match="other settings"):
        build(tmp_path, Sketches(version=2))


def test_unknown_shards_are_not_overwritten_unasked(tmp_path):
    with ShardWriter(tmp_path / "train" / "shard-000000.tar") as writer:
        writer.add("theirs", {"mp4": b"1"})
    with pytest.raises(DataError, match="unknown settings"):
        build(tmp_path)
    assert [sample.key for sample in member_table(str(tmp_path / "train" / "shard-000000.tar"))] == ["theirs"]


def test_two_at_once_are_refused(tmp_path):
    def second(*_):
        build(tmp_path)

    with pytest.raises(DataError, match="another prepare works on this folder"):
        build(tmp_path, on_progress=second)


def test_a_wrong_setting_stops_everything(tmp_path):
    for num_workers in (0, 1):
        with pytest.raises(ConfigError, match="the brush is missing"):
            build(tmp_path, Sketches(trouble=((2, "config"),)), num_workers=num_workers)


def _slow_square(number):
    time.sleep(0.02 * (number % 3))
    return number * number


def _stubborn(number):
    if number % 5 == 3:
        time.sleep(600)
    if number % 7 == 2:
        os._exit(3)
    return number


class Unwilling:
    """Cannot be built in another process."""

    def __reduce__(self):
        return int, ("not a number",)

    def __call__(self, item):
        return item


def test_the_pool_keeps_the_order_and_ends_what_hangs():
    assert list(ordered_map(_slow_square, range(40), num_workers=3, timeout=30)) == [n * n for n in range(40)]
    found = list(ordered_map(_stubborn, range(12), num_workers=2, timeout=0.5))
    lost = [n for n, value in enumerate(found) if isinstance(value, Lost)]
    assert lost == [2, 3, 8, 9]
    assert [found[n].reason for n in lost] == [
        "the decoder crashed",
        "took too long",
        "took too long",
        "the decoder crashed",
    ]
    assert list(ordered_map(_slow_square, [], num_workers=2, timeout=1)) == []


def test_the_pool_raises_what_the_function_raises():
    results = ordered_map(int, ["1", "2", "three", "4"], num_workers=2, timeout=30)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_workers_that_do_not_start_are_said_once(capfd):
    with pytest.raises(RunError, match="a worker process does not start"):
        list(ordered_map(Unwilling(), range(3), num_workers=2, timeout=5))


# From a record to its clips.


def ramp(frames, height=24, width=32):
    """Brightness tells the frame: 4 n."""
    return np.broadcast_to(
        (4 * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, height, width, 3)
    ).copy()


def numbers(stored):
    return np.rint(decode(stored.members["mp4"])[:, 8, 8, 0] / 4).astype(int).tolist()


def clips_of(record, store=STORE, clips_per_video=1, min_frames=1):
    return list(store_record(record, store, clips_per_video=clips_per_video, min_frames=min_frames))


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "ramp.mp4"
    path.write_bytes(encode_mp4(ramp(50), 25.0, crf=1, pixel_format="yuv444p"))
    return str(path)


def test_resampling_takes_what_is_on_the_screen(video):
    (clip,) = clips_of(Record(key="a", captions=("c",), path=video))
    assert numbers(clip) == [0, 3, 6, 9]  # at 0, 1/8, 2/8, 3/8 seconds of 25 fps
    assert json.loads(clip.members["json"])["fps"] == 8.0
    store = StoreSettings(**(vars(STORE) | {"fps": 50.0}))
    assert numbers(clips_of(Record(key="a", captions=("c",), path=video), store)[0]) == [0, 0, 1, 1]
    store = StoreSettings(**(vars(STORE) | {"fps": None}))
    (clip,) = clips_of(Record(key="a", captions=("c",), path=video), store)
    assert numbers(clip) == [0, 1, 2, 3]
    assert json.loads(clip.members["json"])["fps"] == 25.0


def test_frames_and_files_are_resampled_alike(video):
    from_file = clips_of(Record(key="a", captions=("c",), path=video), clips_per_video=None)
    from_array = clips_of(Record(key="a", captions=("c",), frames=ramp(50), fps=25.0), clips_per_video=None)
    assert [numbers(clip) for clip in from_file] == [numbers(clip) for clip in from_array]
    assert [numbers(clip) for clip in from_file] == [
        [int(25 * (4 * c + n) / 8 + 1e-6) for n in range(4)] for c in range(4)
    ]  # 2 seconds, 16 frames
    assert [clip.key for clip in from_file] == ["a-0000", "a-0001", "a-0002", "a-0003"]
    sources = [json.loads(clip.members["json"])["source"] for clip in from_file]
    assert [source["start"] for source in sources] == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize(("box", "place"), [(b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)])
def test_what_the_header_says_of_the_length_is_not_believed(video, tmp_path, box, place):
    whole = Path(video).read_bytes()
    honest = clips_of(Record(key="a", captions=("c",), path=video), clips_per_video=None)
    at = whole.index(box) + 4 + place
    for lie in (0, 1, 2**31 - 1):
        path = tmp_path / "lie.mp4"
        path.write_bytes(whole[:at] + lie.to_bytes(4, "big") + whole[at + 4 :])
        assert clips_of(Record(key="a", captions=("c",), path=str(path)), clips_per_video=None) == honest


def test_a_cut_in_time(video):
    (clip,) = clips_of(Record(key="a", captions=("c",), path=video, start=1.0, end=1.5))
    assert numbers(clip) == [25, 28, 31, 34]
    with pytest.raises(DataError, match="too short[^$]*3 frames"):
        clips_of(Record(key="a", captions=("c",), path=video, start=1.0, end=1.3), min_frames=4)
    with pytest.raises(DataError, match="no frames"):
        clips_of(Record(key="a", captions=("c",), path=video, start=60.0, end=61.0))


def test_the_rest_of_a_video_counts_when_it_is_long_enough(video):
    store = StoreSettings(**(vars(STORE) | {"frames": 7}))
    lengths = {least: [len(numbers(clip)) for clip in
               clips_of(Record(key="a", captions=("c",), path=video), store, None, least)] for least in (1, 2, 3)}  # fmt: skip
    assert lengths == {1: [7, 7, 2], 2: [7, 7, 2], 3: [7, 7]}
    assert len(clips_of(Record(key="a", captions=("c",), path=video), store, 2)) == 2


def test_the_middle_is_kept_and_the_size_is_right(tmp_path):
    frames = np.zeros((4, 32, 96, 3), np.uint8)
    frames[:, :, 32:64] = (240, 40, 40)
    (clip,) = clips_of(Record(key="a", captions=("c",), frames=frames, fps=8.0))
    out = decode(clip.members["mp4"])
    assert out.shape == (4, 16, 16, 3)
    assert np.abs(out[:, 2:-2, 2:-2].astype(int) - (240, 40, 40)).max() < 12


@pytest.mark.parametrize("changes", [{"height": 32}, {"fps": 4.0}, {"frames": 3}])
def test_truth_is_never_beside_frames_it_was_not_made_for(changes):
    record = Sketches().load(0)
    with pytest.raises(ConfigError, match="truth beside a clip[^$]*data.store"):
        clips_of(record, StoreSettings(**(vars(STORE) | changes)))


@pytest.mark.parametrize(
    ("captions", "kept"),
    [
        (("  a\n b ",), {"caption": "a b"}),
        (("a", "", "b"), {"captions": ["a", "b"]}),
        (("ü 日本",), {"caption": "ü 日本"}),
    ],
)
def test_captions_are_cleaned(captions, kept):
    (clip,) = clips_of(Record(key="a", captions=captions, frames=ramp(4), fps=8.0))
    text = json.loads(clip.members["json"])
    assert {key: text[key] for key in kept} == kept


@pytest.mark.parametrize("captions", [(), ("",), (" \n",), ("caf\udce9",)])
def test_records_without_a_usable_caption_are_refused(captions):
    with pytest.raises(DataError, match="no caption|not UTF-8"):
        clips_of(Record(key="a", captions=captions, frames=ramp(4), fps=8.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [("frames", 0), ("height", 0), ("height", 15), ("crf", 52), ("fps", 0.0), ("gop", 0), ("pixel_format", "rgb"),
     ("samples_per_shard", 1.5), ("width", "16")],
)  # fmt: skip
def test_impossible_stores_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"data.store.*{name}"):
        StoreSettings(**(vars(STORE) | {"pixel_format": "yuv420p"} | {name: value}))
