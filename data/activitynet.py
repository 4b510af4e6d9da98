"""ActivityNet Captions (Krishna et al., 2017): sentences with their times in long videos, as clips with a timed action plan.

A clip is the segment of one sentence, or a video from its start with the sentences that are seen of it, in their order.
When an event begins and ends is what annotators said; who does what in it is read from the sentence.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.records import Record
from data.tables import checksum, need_file
from data.timed_plans import Span, timed_plan
from data.video_files import say_missing, videos_below
from vdm.bounds import PositiveFloat, PositiveInt
from vdm.errors import ConfigError, DataError

_TABLE = (
    "put the released json there (train.json, val_1.json, val_2.json), say where it is: {key}=<path>, or leave the split "
    "out: {key}=null"
)
_VIDEOS = "put the videos there, v_<YouTube id>.mp4 (or .mkv, .webm) in any folders, or name them: data.source.videos=<folder>"
_ID = re.compile(r"[A-Za-z0-9_-]{1,60}")


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence and its segment, in seconds of the video."""

    number: int  # in the json
    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class ActivityClip:
    """What becomes a clip, or a sentence that cannot; `problem` says why."""

    split: str
    video: str
    number: int | None  # of the sentence; None: a video
    path: str  # "": there is no such file
    duration: float | None
    told: tuple[Sentence, ...]
    problem: str

    def __str__(self) -> str:
        return self.video if self.number is None else f"{self.video}#{self.number}"


class ActivityNetSource:
    """`captions` names the json of each split.

    Args:
        captions: split -> file; None leaves a split out.
        videos: folder with the videos.
        cut: "segment": a clip for each sentence, from where its segment starts. "video": a clip for each video, from its
            start, with the sentences of which at least half is seen.
        frames, fps: of a stored clip; they say how much of a video it shows.
        ticks: a video's clip is at most so long in the plan.
        reader: text -> an object whose `plan` has `to_json()` or is None. It finds the events in the sentences. None: no plan.
    """

    def __init__(
        self,
        *,
        captions: Mapping[str, str | None],
        videos: str,
        cut: Literal["segment", "video"],
        frames: PositiveInt,
        fps: PositiveFloat | None,
        ticks: PositiveInt,
        reader: Callable[[str], Any] | None,
    ):
        if cut not in ("segment", "video"):
            raise ConfigError("unknown choice", key="data.source.cut", got=cut, allowed=("segment", "video"))
        if cut == "video" and fps is None:
            raise ConfigError("how many seconds a clip shows must be known", key="data.store.fps", got="null",
                              remedy="give frames per second, or data.source.cut=segment")  # fmt: skip
        self.captions = {split: str(path) for split, path in captions.items() if path}
        self.videos, self.cut, self.frames, self.fps = str(videos), cut, frames, fps
        self.ticks, self.reader = ticks, reader

    def splits(self) -> tuple[str, ...]:
        return tuple(self.captions)

    def items(self, split: str) -> Sequence[ActivityClip]:
        key = f"data.source.captions.{split}"
        entries = _entries(self.captions[split], key)
        files = videos_below(self.videos, what="ActivityNet", remedy=_VIDEOS)
        clips: list[ActivityClip] = []
        paths: list[str] = []
        for video, entry in entries.items():
            path = next((files[name] for name in _names(video) if name in files), "")
            paths.append(path)
            clips += self._clips(split, video, entry, path)
        say_missing(paths, what=f"ActivityNet {split}", folder=self.videos, remedy=_VIDEOS)
        return clips

    def load(self, item: ActivityClip) -> Record:
        if item.problem:
            raise DataError(item.problem.split(":")[0], got=item.problem.partition(": ")[2])
        if not item.path:
            raise DataError("no video file", got=os.path.join(self.videos, f"{item.video}.mp4"))
        is_segment = self.cut == "segment"
        start, end = (item.told[0].start, item.told[0].end) if is_segment else (0.0, self._seconds(item.duration))
        spans = [Span(s.number, _ended(s.text), s.start - start, s.end - start) for s in item.told]
        length = min(end - start, self._seconds(None))
        extras = timed_plan(
            spans,
            length,
            ticks=None if is_segment else self.ticks,
            frames=self.frames,
            fps=self.fps,
            reader=self.reader,
        )
        name = {"segment": item.number} if is_segment else {"sentences": [s.number for s in item.told]}
        source = {"dataset": "activitynet", "video": item.video, **name, "start": start, "end": end}
        return Record(
            key=f"{item.video}-{item.split}" + (f"-{item.number}" if is_segment else ""),
            captions=(item.told[0].text if is_segment else " ".join(span.text for span in spans),),
            path=item.path,
            start=start,
            end=end if math.isfinite(end) else None,
            source={k: v for k, v in source.items() if v != math.inf} | {"duration": item.duration},
            extras=extras,
        )

    def fingerprint(self) -> dict:
        """The tables decide; videos are too many to read twice."""
        reader = getattr(self.reader, "func", self.reader)
        return {
            "dataset": "activitynet",
            "cut": self.cut,
            "ticks": self.ticks if self.cut == "video" else None,
            "reader": None if reader is None else f"{reader.__module__}.{reader.__qualname__}",
            "splits": {split: checksum(path) for split, path in self.captions.items() if os.path.isfile(path)},
        }

    def _clips(self, split: str, video: str, entry: Any, path: str) -> list[ActivityClip]:
        """The clips of a video, and the sentences that are no use."""
        duration, sentences, refused = _sentences(video, entry)
        broken = [ActivityClip(split, video, n, path, duration, (), problem) for n, problem in refused]
        if self.cut == "segment":
            good = [ActivityClip(split, video, s.number, path, duration, (s,), "") for s in sentences]
            return sorted([*good, *broken], key=lambda clip: -1 if clip.number is None else clip.number)
        if not sentences:
            return broken
        shown = self._seconds(duration)
        told = tuple(s for s in sentences if min(s.end, shown) - s.start >= 0.5 * min(s.end - s.start, shown))
        problem = "" if told else f"no sentence tells what is stored: the first {shown:g} seconds"
        return [ActivityClip(split, video, None, path, duration, told, problem), *broken]

    def _seconds(self, duration: float | None) -> float:
        """How long a stored clip is at most; infinite where nothing limits it."""
        stored = math.inf if self.fps is None else self.frames / self.fps
        return stored if duration is None else min(stored, duration)


def _entries(path: str, key: str) -> dict[str, Any]:
    need_file(path, key=key, what="the table of ActivityNet Captions", remedy=_TABLE.format(key=key))
    allowed = 'json such as {"v_QOlSCBRmfWY": {"duration": 82.73, "timestamps": [[0.83, 19.86]], "sentences": ["..."]}}'
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        got = f"{path}: {type(error).__name__}: {error}"
        raise DataError("not a table of ActivityNet Captions", key=key, got=got, allowed=allowed) from error
    if not isinstance(content, dict) or not content or not any(_is_entry(entry) for entry in content.values()):
        raise DataError("not a table of ActivityNet Captions", key=key, got=path, allowed=allowed)
    return content


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), list) for key in ("timestamps", "sentences"))


def _names(video: str) -> tuple[str, ...]:
    """How the file of a video may be called: with "v_" before the YouTube id, or the id alone, which may begin so itself."""
    bare = video.removeprefix("v_") if len(video) == len("v_") + 11 else video
    return (f"v_{bare}", bare)


def _sentences(video: str, entry: Any) -> tuple[float | None, list[Sentence], list[tuple[int | None, str]]]:
    """Seconds of the video, its sentences, and what is wrong with the others, or with all (number None)."""
    if not _ID.fullmatch(video):
        return None, [], [(None, f"unusable video id: {ascii(video)[:80]}")]
    if not _is_entry(entry):
        return None, [], [(None, "a damaged entry: without its times or sentences")]
    times, texts = entry["timestamps"], entry["sentences"]
    duration = entry.get("duration")
    duration = float(duration) if _is_number(duration) and duration > 0 else None
    if len(times) != len(texts):
        return duration, [], [(None, f"times and sentences do not match: {len(times)} and {len(texts)}")]
    if not texts:
        return duration, [], [(None, "no caption")]
    sentences: list[Sentence] = []
    refused: list[tuple[int | None, str]] = []
    for number, (text, pair) in enumerate(zip(texts, times, strict=True)):
        problem = _problem(text, pair, duration)
        if problem:
            refused.append((number, problem))
            continue
        end = float(pair[1]) if duration is None else min(float(pair[1]), duration)
        sentences.append(Sentence(number, " ".join(text.split()), max(float(pair[0]), 0.0), end))
    return duration, sentences, refused


def _problem(text: Any, pair: Any, duration: float | None) -> str:
    """Why a sentence cannot be used, or nothing."""
    if not isinstance(text, str) or not text.strip():
        return "no caption"
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
        return f"no times of the sentence: {ascii(str(pair))[:80]}"
    start, end = pair
    told = f"{start:g} to {end:g} seconds"
    if start > end:
        return f"the segment ends before it starts: {told}"
    if start == end:
        return f"the segment has no length: {told}"
    if end <= 0 or (duration is not None and start >= duration):
        return f"the segment is outside the video: {told}" + (f" of {duration:g}" if duration is not None else "")
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _ended(text: str) -> str:
    """A sentence that ends as one, so that joined ones can be told apart."""
    return text if text.endswith((".", "!", "?", '."', "。")) else text.rstrip(" ,;:") + "."
