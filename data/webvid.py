"""WebVid (Bain et al., 2021): the released caption tables with a folder of video files.

The links in the tables have been dead since 2024, so this works from files that the user has:
`<videos>/<page_dir>/<videoid>.mp4`, as the authors' downloader laid them out, or flat `<videos>/<videoid>.mp4`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from data.records import Record
from data.tables import checksum, find_video, is_plain_name, need_file, need_folder, read_rows
from vdm.errors import ConfigError, DataError

COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")
_TABLE = (
    "put a released table there (results_10M_train.csv, results_2M_val.csv, ...; columns videoid, contentUrl, duration, "
    "page_dir, name), or say where it is: {key}=<path>"
)
_VIDEOS = (
    "the links in the tables are dead: this dataset works from your own files, <videos>/<page_dir>/<videoid>.mp4 or "
    "<videos>/<videoid>.mp4. Say where they are: data.source.videos=<folder>"
)
_DURATION = re.compile(r"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?")


@dataclass(frozen=True, slots=True)
class WebVidRow:
    """One line of a table; `problem` says why it cannot be used."""

    videoid: str
    page_dir: str
    caption: str
    url: str
    duration: float | None
    problem: str

    def __str__(self) -> str:
        return self.videoid


class WebVidSource:
    """`csv` names the table of each split. With `missing` = "skip", rows without a file are left out silently."""

    def __init__(self, *, csv: Mapping[str, str | None], videos: str, missing: Literal["reject", "skip"]):
        if missing not in ("reject", "skip"):
            raise ConfigError("unknown choice", key="data.source.missing", got=missing, allowed=("reject", "skip"))
        self.csv = {split: str(path) for split, path in csv.items() if path}
        self.videos, self.missing = str(videos), missing

    def splits(self) -> tuple[str, ...]:
        return tuple(self.csv)

    def items(self, split: str) -> Sequence[WebVidRow]:
        key = f"data.source.csv.{split}"
        path = need_file(self.csv[split], key=key, what="the caption table of WebVid", remedy=_TABLE.format(key=key))
        need_folder(self.videos, key="data.source.videos", what="the folder of WebVid videos", remedy=_VIDEOS)
        rows: list[WebVidRow] = []
        seen: set[str] = set()
        for line in read_rows(path, COLUMNS, key=key):
            row = self._row(line, seen)
            if self.missing == "skip" and not row.problem and self._file(row) is None:
                continue
            rows.append(row)
        if not rows:
            what = "the table has no rows" if self.missing == "reject" else "no video of the table is in the folder"
            raise DataError(what, key=key, got=f"{path}, {self.videos}", remedy=_VIDEOS)
        return rows

    def load(self, item: WebVidRow) -> Record:
        if item.problem:
            raise DataError(item.problem.split(":")[0], got=item.problem.partition(": ")[2])
        path = self._file(item)
        if path is None:
            raise DataError("no video file", got=os.path.join(self.videos, item.page_dir, f"{item.videoid}.mp4"))
        source = {"dataset": "webvid", "videoid": item.videoid, "url": item.url, "duration": item.duration}
        return Record(key=f"webvid-{item.videoid}", captions=(item.caption,), path=path, source=source)

    def fingerprint(self) -> dict:
        # The table decides; videos are too many to read twice, and the folder's place does not matter.
        tables = {split: checksum(path) for split, path in self.csv.items() if os.path.isfile(path)}
        return {"dataset": "webvid", "missing": self.missing, "splits": tables}

    def _row(self, line: dict[str, str] | str, seen: set[str]) -> WebVidRow:
        if isinstance(line, str):
            return WebVidRow("", "", "", "", None, f"a damaged row of the table: {line}")
        videoid, page_dir = line["videoid"], line["page_dir"].strip("/")
        problem = ""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", videoid):
            problem = f"unusable videoid: {ascii(videoid)[:80]}"
        elif page_dir and not is_plain_name(page_dir):
            problem = f"unusable page_dir: {ascii(page_dir)[:80]}"
        elif videoid in seen:
            problem = f"the same videoid twice: {videoid}"
        seen.add(videoid)
        return WebVidRow(videoid, page_dir, line["name"], line["contentUrl"], seconds(line["duration"]), problem)

    def _file(self, row: WebVidRow) -> str | None:
        nested = os.path.join(self.videos, row.page_dir, row.videoid)
        return find_video(nested, os.path.join(self.videos, row.videoid))


def seconds(duration: str) -> float | None:
    """Seconds of an ISO 8601 duration as the tables write it, PT00H00M10S; None for anything else."""
    match = _DURATION.fullmatch(duration.strip())
    if match is None or not any(match.groups()):
        return None
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + rest
