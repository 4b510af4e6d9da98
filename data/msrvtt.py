"""MSR-VTT (Xu et al., 2016): 10,000 clips with 20 captions each, in json files; the full partition or the lists of 1k-A.

Clips come as `<video id>.mp4`, cut by the authors, or as whole videos `<YouTube id>.mp4`, which are cut here by the times
that the json gives.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data.records import Record
from data.tables import checksum, need_file, read_rows
from data.video_files import say_missing, videos_below
from vdm.errors import ConfigError, DataError

_SPLITS = {"train": "train", "validate": "val", "val": "val", "test": "test"}
_INFO = (
    "put the released json there (train_val_videodatainfo.json and test_videodatainfo.json, or the joined MSRVTT_data.json), "
    "or say where it is: data.source.info=[<path>, ...]"
)
_VIDEOS = (
    "unpack the clips there, <video id>.mp4 in any folders, or whole videos, <YouTube id>.mp4. Say where they are: "
    "data.source.videos=<folder>"
)
_LIST = "name a csv with the column video_id, or a text file with a video id a line: {key}=<path>"
_YOUTUBE = re.compile(r"(?:[?&]v=|youtu\.be/|/embed/|/shorts/)([A-Za-z0-9_-]{11})(?![A-Za-z0-9_-])")
_ID = re.compile(r"[A-Za-z0-9_-]{1,60}")


@dataclass(frozen=True, slots=True)
class MsrVttVideo:
    """One video of the json; `problem` says why it cannot be used."""

    video_id: str
    captions: tuple[str, ...]
    path: str  # "": there is no such file
    span: tuple[float, float] | None  # seconds to cut out of a whole video
    source: dict[str, Any]
    problem: str

    def __str__(self) -> str:
        return self.video_id


class MsrVttSource:
    """The splits train, val and test of the json, or those of `lists`.

    Args:
        info: the json files, together.
        videos: folder with the clips, or with whole videos.
        partition: "full": the json says which split a video is in; "1k-A": the lists say it.
        lists: a list of video ids a split, for 1k-A. One with a column `sentence` gives each video this caption alone.
    """

    def __init__(
        self,
        *,
        info: Sequence[str],
        videos: str,
        partition: Literal["full", "1k-A"],
        lists: Mapping[str, str | None],
    ):
        if partition not in ("full", "1k-A"):
            raise ConfigError("no such partition", key="data.source.partition", got=partition, allowed=("full", "1k-A"))
        self.info = tuple(str(path) for path in ([info] if isinstance(info, str) else info))
        if not self.info:
            raise ConfigError("no file with captions", key="data.source.info", got="[]", remedy=_INFO)
        self.videos, self.partition = str(videos), partition
        self.lists = {split: str(path) for split, path in lists.items() if path}
        if partition == "1k-A" and not self.lists:
            remedy = _LIST.format(key="data.source.lists.test")
            raise ConfigError("1k-A needs its lists", key="data.source.lists", got="none", remedy=remedy)

    def splits(self) -> tuple[str, ...]:
        return ("train", "val", "test") if self.partition == "full" else tuple(self.lists)

    def items(self, split: str) -> Sequence[MsrVttVideo]:
        table = _Tables(self.info)
        wanted = self._listed(split) if self.partition == "1k-A" else table.of_split(split)
        if not wanted:
            got = f"{', '.join(self.info)}: {table.counted()}"
            raise DataError(f"no videos for {split!r}", key="data.source.info", got=got, remedy=_INFO)
        files = videos_below(self.videos, what="MSR-VTT", remedy=_VIDEOS)
        videos, seen = [], set()
        for video_id, caption in wanted:
            video = _video(video_id, caption, table, files)
            if video_id in seen:
                video = replace(video, problem=f"the same video twice: {video_id}")
            elif self.partition == "full" and not video.problem:
                video = replace(video, problem=table.split_problem(video_id))
            videos.append(video)
            seen.add(video_id)
        say_missing(
            (v.path for v in videos if not v.problem), what=f"MSR-VTT {split}", folder=self.videos, remedy=_VIDEOS
        )
        return videos

    def load(self, item: MsrVttVideo) -> Record:
        if item.problem:
            raise DataError(item.problem.split(":")[0], got=item.problem.partition(": ")[2])
        if not item.path:
            raise DataError("no video file", got=os.path.join(self.videos, f"{item.video_id}.mp4"))
        start, end = item.span or (None, None)
        return Record(
            key=item.video_id, captions=item.captions, path=item.path, start=start, end=end, source=item.source
        )

    def fingerprint(self) -> dict:
        """The tables decide; videos are too many to read twice."""
        lists = self.lists if self.partition == "1k-A" else {}
        return {
            "dataset": "msrvtt",
            "partition": self.partition,
            "info": [checksum(path) for path in self.info if os.path.isfile(path)],
            "splits": {split: checksum(path) for split, path in lists.items() if os.path.isfile(path)},
        }

    def _listed(self, split: str) -> list[tuple[str, str | None]]:
        """(video id, its only caption or None) of a list: a csv, or an id a line."""
        key = f"data.source.lists.{split}"
        what = f"the list of the 1k-A split {split}"
        path = need_file(self.lists[split], key=key, what=what, remedy=_LIST.format(key=key))
        if not path.lower().endswith(".csv"):
            ids = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape").split()
            return [(video_id, None) for video_id in ids]
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            header = [name.strip() for name in file.readline().split(",")]
        columns = ("video_id", "sentence") if "sentence" in header else ("video_id",)
        rows = read_rows(path, columns, key=key)
        return [(row, None) if isinstance(row, str) else (row["video_id"], row.get("sentence")) for row in rows]


class _Tables:
    """What the json files say of each video."""

    def __init__(self, paths: Sequence[str]):
        self.videos: dict[str, dict[str, Any]] = {}
        self.captions: dict[str, list[tuple[float, str]]] = {}
        self.doubled: list[str] = []
        for path in paths:
            need_file(path, key="data.source.info", what="the table of MSR-VTT", remedy=_INFO)
            videos, sentences = _lists_of(path)
            for video in videos:
                video_id = str(video.get("video_id"))
                if video_id in self.videos:
                    self.doubled.append(video_id)
                else:
                    self.videos[video_id] = video
            for sentence in sentences:
                place = sentence.get("sen_id")
                place = float(place) if isinstance(place, int | float) else math.inf
                self.captions.setdefault(str(sentence.get("video_id")), []).append((place, sentence.get("caption")))

    def of_split(self, split: str) -> list[tuple[str, None]]:
        """Those of a split in the order of the file. One of no known split is listed with train, to be refused there."""
        listed = [*self.videos, *self.doubled]
        return [(v, None) for v in listed if _SPLITS.get(str(self.videos[v].get("split")), "train") == split]

    def split_problem(self, video_id: str) -> str:
        """What is wrong with the split of a video, or nothing."""
        split = str(self.videos[video_id].get("split"))
        return "" if split in _SPLITS else f"an unknown split: {ascii(split)[:80]}"

    def captions_of(self, video_id: str) -> tuple[str, ...]:
        """In the order of their numbers; what is said twice is kept once."""
        found = sorted(self.captions.get(video_id, ()), key=lambda entry: entry[0])
        texts = [" ".join(text.split()) for _, text in found if isinstance(text, str)]
        return tuple(text for text in dict.fromkeys(texts) if text)

    def counted(self) -> str:
        return f"{len(self.videos):,} videos with {sum(map(len, self.captions.values())):,} captions"


def _lists_of(path: str) -> tuple[list[dict], list[dict]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        found = [content["videos"], content["sentences"]]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        got = f"{path}: {type(error).__name__}: {error}"
        raise DataError("not a table of MSR-VTT", key="data.source.info", got=got,
                        allowed='json with the lists "videos" and "sentences"', remedy=_INFO) from error  # fmt: skip
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in found):
        allowed = 'json with the lists "videos" and "sentences"'
        raise DataError("not a table of MSR-VTT", key="data.source.info", got=path, allowed=allowed, remedy=_INFO)
    return found[0], found[1]


def _video(video_id: str, caption: str | None, table: _Tables, files: Mapping[str, str]) -> MsrVttVideo:
    if not _ID.fullmatch(video_id):
        return MsrVttVideo(video_id, (), "", None, {}, f"unusable video id: {ascii(video_id)[:80]}")
    facts = table.videos.get(video_id)
    if facts is None:
        return MsrVttVideo(video_id, (), "", None, {}, f"no table has this video: {video_id}")
    url, span, problem = str(facts.get("url") or ""), None, ""
    match = _YOUTUBE.search(url)
    path = files.get(video_id, "")
    if not path and match is not None and match[1] in files:
        path, span = files[match[1]], _span(facts)
        if span is None:
            problem = f"no seconds to cut out: {facts.get('start time')} to {facts.get('end time')}"
    source = {"dataset": "msrvtt", "video": video_id, "url": url, "category": facts.get("category")}
    source |= {} if span is None else {"start": span[0], "end": span[1]}
    captions = table.captions_of(video_id) if caption is None else (caption,)
    return MsrVttVideo(video_id, captions, path, span, source, problem)


def _span(facts: dict[str, Any]) -> tuple[float, float] | None:
    times = [facts.get(f"{name} time", facts.get(f"{name}_time")) for name in ("start", "end")]
    if not all(isinstance(time, int | float) and math.isfinite(time) for time in times):
        return None
    start, end = max(float(times[0]), 0.0), float(times[1])
    return (start, end) if start < end else None
