"""A folder of anybody's videos: which clips it holds, what is said of them, and which of them cannot be scored.

Every file is either a clip, or counted by the reason why it is none, or a companion such as a caption. Clips are known by
their path below the folder without its ending.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vdm.errors import DataError
from vdm.evaluation.isolated import isolated
from vdm.evaluation.reading import (
    ARRAYS,
    PICTURES,
    VIDEOS,
    ClipRule,
    Entry,
    FoundClip,
    Reader,
    Refusal,
    clips_in_array,
    natural,
)
from vdm.types import VideoBatch
from vdm.video import to_float

log = logging.getLogger(__name__)

COMPANIONS = (
    ".json",
    ".jsonl",
    ".txt",
    ".csv",
    ".tsv",
    ".md",
    ".svg",
    ".yaml",
    ".yml",
    ".html",
    ".log",
    ".srt",
    ".vtt",
)
CAPTIONS = ("captions.json", "captions.txt")
SAID_EVERY = 1000  # files
LARGEST = 1_000_000  # bytes of a json beside a video
KINDS = "mp4 and other videos, gif, folders of png, npz"


@dataclass(frozen=True)
class Listing:
    """What is below a folder, by name."""

    entries: list[Entry]
    refused: dict[str, Refusal]  # by path below the folder
    captions: dict[str, str] | None  # by key; None: nobody says anything


@dataclass
class Folder:
    """Reads the clips of a folder by a rule, each in a process that may be ended."""

    path: Path
    rule: ClipRule
    processes: int
    timeout: float
    memory: float
    listing: Listing = field(init=False)

    def __post_init__(self):
        self.listing = listed(self.path)

    def examine(self, entries: Sequence[Entry]) -> list[FoundClip | Refusal]:
        """What is wrong with each, or how it is; without its frames."""
        found = []
        for outcome in self._read(entries, with_frames=False):
            found.append(outcome)
            if len(found) % SAID_EVERY == 0:
                log.info("%d of %d looked at", len(found), len(entries))
        return found

    def batches(
        self, groups: Sequence[Sequence[tuple[Entry, str]]], device: torch.device, *, captions: Mapping[str, str] | None
    ) -> Iterator[VideoBatch]:
        """Clips that were found good, with the hash of their frames then."""
        read = self._read([entry for group in groups for entry, _ in group], with_frames=True)
        for group in groups:
            clips = [self._same(next(read), entry, content) for entry, content in group]
            video = torch.stack([torch.from_numpy(clip.frames) for clip in clips]).permute(0, 4, 1, 2, 3)  # b 3 T H W
            yield {
                "video": to_float(video.to(device)).contiguous(),
                "caption": ["" if captions is None else captions[entry.key] for entry, _ in group],
                "fps": torch.tensor([clip.fps for clip in clips], dtype=torch.float32),
                "key": [entry.key for entry, _ in group],
            }

    def _read(self, entries: Sequence[Entry], *, with_frames: bool) -> Iterator[FoundClip | Refusal]:
        reader = Reader(self.rule, with_frames)
        limits = {"processes": self.processes, "timeout": self.timeout, "memory": self.memory}
        return isolated(reader, list(entries), **limits)

    def _same(self, clip: FoundClip | Refusal, entry: Entry, content: str) -> FoundClip:
        if isinstance(clip, FoundClip) and clip.content == content:
            return clip
        got = f"{entry.path}: {clip.reason if isinstance(clip, Refusal) else 'other frames than before'}"
        raise DataError("a video changed while it was scored", key="videos", got=got, remedy="give the command again")


def listed(folder: Path) -> Listing:
    """Everything below a folder, in the order of names: a2 comes before a10."""
    entries: list[Entry] = []
    refused: dict[str, Refusal] = {}
    seen: dict[str, str] = {}
    for path, is_folder in _walk(folder, refused):
        name = path.relative_to(folder).as_posix()
        key = name if is_folder else name[: len(name) - len(path.suffix)]
        try:
            found = [Entry(key, str(path), "pictures")] if is_folder else _entries(path, key)
        except DataError as error:
            refused[name] = Refusal(error.what, str(error.got or ""))
            continue
        for entry in found:
            if entry.key in seen:
                refused[name] = Refusal("another file has this name", seen[entry.key])
            else:
                seen[entry.key] = name
                entries.append(entry)
    return Listing(entries, refused, _captions(folder, entries))


def _walk(folder: Path, refused: dict[str, Refusal]) -> Iterator[tuple[Path, bool]]:
    """(path, whether it is a folder of pictures) of what might be a clip."""

    def note(error: OSError) -> None:
        refused[os.path.relpath(error.filename, folder)] = Refusal("the folder cannot be read", str(error.strerror))

    entered: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=note, followlinks=True):
        here = Path(place)
        entered.add(os.path.realpath(here))  # a link may lead back
        folders[:] = sorted(
            (f for f in folders if not f.startswith(".") and os.path.realpath(here / f) not in entered),
            key=lambda name: (natural(name), name),
        )
        pictures = [name for name in files if Path(name).suffix.lower() in PICTURES and not name.startswith(".")]
        if pictures and here != folder and not any(Path(name).suffix.lower() in VIDEOS for name in files):
            yield here, True
            files = [name for name in files if name not in pictures]
        for name in sorted(files, key=lambda name: (natural(name), name)):
            if not name.startswith(".") and Path(name).suffix.lower() not in COMPANIONS:
                yield here / name, False


def _entries(path: Path, key: str) -> list[Entry]:
    ending = path.suffix.lower()
    if not path.is_file():  # opening a pipe waits for ever
        raise DataError("not a file", got="a link to nothing, or a device")
    if ending in VIDEOS:
        return [Entry(key, str(path), "video")]
    if ending in PICTURES:
        raise DataError("a single picture", got="pictures of a clip lie in a folder of their own")
    if ending != ARRAYS:
        raise DataError("no known kind of file", got=path.suffix or path.name, allowed=KINDS)
    try:
        count, _ = clips_in_array(str(path))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError("it cannot be read as an array", got=f"{type(error).__name__}: {error}"[:300]) from None
    if count is None:
        return [Entry(key, str(path), "array")]
    return [Entry(f"{key}#{part:05d}", str(path), "array", part) for part in range(count)]


def _captions(folder: Path, entries: Sequence[Entry]) -> dict[str, str] | None:
    """Of captions.json, captions.txt, or the json that stands beside each sample of sample.py."""
    path = next((folder / name for name in CAPTIONS if (folder / name).is_file()), None)
    said = _said_beside(entries) if path is None else _said_in(path)
    short = Counter(entry.key.rpartition("/")[2] for entry in entries)
    found = {}
    for entry in entries:
        name = entry.key.rpartition("/")[2]
        caption = said.get(entry.key, said.get(name) if short[name] == 1 else None)
        if caption is not None:
            found[entry.key] = caption
    if path is not None and entries and not found:
        raise DataError("the captions are of no clip here", key="videos", got=f"{path}: {', '.join(list(said)[:3])}",
                        allowed=f"names such as {entries[0].key}")  # fmt: skip
    return found or None


def _said_in(path: Path) -> dict[str, str]:
    lines = "name, a tab or a colon, and the caption on each line"
    form = '{"<name>": "<caption>", ...}' if path.suffix == ".json" else lines
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if path.suffix == ".json" else dict(map(_row, filter(str.strip, text.splitlines())))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("the captions cannot be read", key="videos", got=f"{path}: {error}", allowed=form) from None
    if not isinstance(rows, dict) or not all(isinstance(value, str) and value.strip() for value in rows.values()):
        raise DataError("the captions cannot be read", key="videos", got=str(path), allowed=form)
    return {_stem(name): " ".join(caption.split()) for name, caption in rows.items()}


def _row(line: str) -> tuple[str, str]:
    name, mark, caption = line.partition("\t") if "\t" in line else line.partition(":")
    if not mark:
        raise ValueError(f"no tab and no colon in {ascii(line)[:80]}")
    return name.strip(), caption


def _stem(name: str) -> str:
    """Captions name clips with or without the ending of the file."""
    path = Path(name)
    return str(path.with_suffix("").as_posix()) if path.suffix.lower() in (*VIDEOS, ARRAYS) else name


def _said_beside(entries: Sequence[Entry]) -> dict[str, str]:
    found = {}
    for entry in entries:
        beside = Path(entry.path).with_suffix(".json")
        try:
            record = json.loads(beside.read_text(encoding="utf-8")) if _is_small(beside) else None
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("prompt"), str) and record["prompt"].strip():
            found[entry.key] = record["prompt"]
    return found


def _is_small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= LARGEST


def counted(refused: Mapping[str, Refusal]) -> dict[str, int]:
    """By reason, the most frequent first."""
    counts = Counter(refusal.reason for refusal in refused.values())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def as_table(refused: Mapping[str, Refusal]) -> str:
    """rejected.csv: a line a file."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "reason", "detail"])
    rows.writerows([ascii(name)[1:-1], r.reason, ascii(r.detail)[1:-1][:300]] for name, r in sorted(refused.items()))
    return text.getvalue()
