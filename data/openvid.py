"""OpenVid-1M (Nan et al., 2024): one table of captions with scores, and a folder with the unpacked videos."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from data.records import Record
from data.tables import checksum, is_plain_name, need_file, need_folder, read_rows
from vdm.errors import ConfigError, DataError

COLUMNS = (
    "video",
    "caption",
    "aesthetic score",
    "motion score",
    "temporal consistency score",
    "camera motion",
    "frame",
    "fps",
    "seconds",
)
_SCORES = {
    "aesthetic_score": "aesthetic score",
    "motion_score": "motion score",
    "temporal_consistency_score": "temporal consistency score",
    "seconds": "seconds",
}
_TABLE = (
    "put OpenVid-1M.csv there (columns video, caption, aesthetic score, ..., fps, seconds), "
    "or say where it is: data.source.csv=<path>"
)
_VIDEOS = "unpack the released archives into one folder and say where it is: data.source.videos=<folder>"


@dataclass(frozen=True, slots=True)
class OpenVidRow:
    """One line of the table; `problem` says why it cannot be used."""

    video: str
    caption: str
    facts: dict[str, float | str]
    problem: str

    def __str__(self) -> str:
        return self.video


class OpenVidSource:
    """`least` and `most` bound the scores, null does not: a row outside is no item. `val_share` is chosen by hash."""

    def __init__(
        self,
        *,
        csv: str,
        videos: str,
        missing: Literal["reject", "skip"],
        least: Mapping[str, float | None],
        most: Mapping[str, float | None],
        val_share: float,
    ):
        if missing not in ("reject", "skip"):
            raise ConfigError("unknown choice", key="data.source.missing", got=missing, allowed=("reject", "skip"))
        for name, bounds in (("least", least), ("most", most)):
            for score, bound in bounds.items():
                if score not in _SCORES:
                    raise ConfigError("unknown score", key=f"data.source.{name}", got=score, allowed=tuple(_SCORES))
                if bound is not None and (not isinstance(bound, int | float) or isinstance(bound, bool)):
                    raise ConfigError("a bound is a number", key=f"data.source.{name}.{score}", got=bound)
        if not 0 <= val_share < 1:
            raise ConfigError("a share", key="data.source.val_share", got=val_share, allowed="from 0 to below 1")
        self.csv, self.videos, self.missing, self.val_share = str(csv), str(videos), missing, val_share
        self.least = {score: float(bound) for score, bound in least.items() if bound is not None}
        self.most = {score: float(bound) for score, bound in most.items() if bound is not None}

    def splits(self) -> tuple[str, ...]:
        return ("train", "val") if self.val_share else ("train",)

    def items(self, split: str) -> Sequence[OpenVidRow]:
        path = need_file(self.csv, key="data.source.csv", what="the table of OpenVid", remedy=_TABLE)
        need_folder(self.videos, key="data.source.videos", what="the folder of OpenVid videos", remedy=_VIDEOS)
        rows: list[OpenVidRow] = []
        seen: set[str] = set()
        num_outside = num_missing = 0
        for line in read_rows(path, COLUMNS, key="data.source.csv"):
            row = _row(line, seen)
            if (_place(row.video) < self.val_share) != (split == "val"):
                continue
            if not row.problem and not self._is_inside(row):
                num_outside += 1
                continue
            if self.missing == "skip" and not row.problem and not os.path.isfile(self._path(row)):
                num_missing += 1
                continue
            rows.append(row)
        if not rows:
            got = f"{path}: {num_outside} rows outside the bounds, {num_missing} without their video"
            remedy = "loosen data.source.least and data.source.most, or see data.source.videos"
            raise DataError(f"nothing remains of the table for {split!r}", key="data.source", got=got, remedy=remedy)
        return rows

    def load(self, item: OpenVidRow) -> Record:
        if item.problem:
            raise DataError(item.problem.split(":")[0], got=item.problem.partition(": ")[2])
        path = self._path(item)
        if not os.path.isfile(path):
            raise DataError("no video file", got=path)
        source = {"dataset": "openvid", "video": item.video, **item.facts}
        return Record(key=_key(item.video), captions=(item.caption,), path=path, source=source)

    def fingerprint(self) -> dict:
        table = checksum(self.csv) if os.path.isfile(self.csv) else None
        bounds = {"least": self.least, "most": self.most, "val_share": self.val_share}
        return {"dataset": "openvid", "csv": table, "missing": self.missing, **bounds}

    def _is_inside(self, row: OpenVidRow) -> bool:
        """A score that is no number is outside of every bound on it."""
        numbers = {score: row.facts.get(score) for score in (*self.least, *self.most)}
        if not all(isinstance(number, float) for number in numbers.values()):
            return False
        return all(numbers[score] >= bound for score, bound in self.least.items()) and all(
            numbers[score] <= bound for score, bound in self.most.items()
        )

    def _path(self, row: OpenVidRow) -> str:
        return os.path.join(self.videos, row.video)


def _row(line: dict[str, str] | str, seen: set[str]) -> OpenVidRow:
    if isinstance(line, str):
        return OpenVidRow("", "", {}, f"a damaged row of the table: {line}")
    video, problem = line["video"], ""
    if not is_plain_name(video):
        problem = f"unusable file name: {ascii(video)[:80]}"
    elif video in seen:
        problem = f"the same video twice: {video}"
    seen.add(video)
    facts = {score: _number(line[column]) for score, column in _SCORES.items()}
    facts |= {"camera_motion": line["camera motion"], "fps": _number(line["fps"])}
    return OpenVidRow(video, line["caption"], {k: v for k, v in facts.items() if v not in (None, "")}, problem)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _key(video: str) -> str:
    """File names may hold anything; a few letters of a hash keep two of them apart after cleaning."""
    stem = re.sub(r"\.[A-Za-z0-9]+$", "", video)
    if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", stem):
        return stem
    return (
        re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:48]
        + "-"
        + hashlib.sha256(video.encode(errors="replace")).hexdigest()[:10]
    )


def _place(video: str) -> float:
    """A fixed place in [0, 1) for every video, so that more rows never move one from train to val."""
    return int.from_bytes(hashlib.sha256(video.encode(errors="replace")).digest()[:8], "big") / 2**64
