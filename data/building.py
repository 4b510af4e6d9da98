"""One split from items to shards: in parallel, resumable, and the same bytes whatever happened on the way.

Shard i always holds the items [i * samples_per_shard, (i + 1) * samples_per_shard) without the rejected ones, so it
depends on nothing but the settings. Beside the shards `.progress/` keeps one note per finished shard until the index is
written: a shard counts as finished when its note is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av

from data.notes import (
    NOTES,
    REJECTED,
    Note,
    Rejected,
    count_reasons,
    read_note,
    read_rejected,
    read_settings,
    reason_table,
    write_note,
    write_rejected,
    write_settings,
)
from data.pool import Lost, ordered_map
from data.records import Source, StoreSettings
from data.shards import INDEX, ShardIndex, ShardInfo, ShardWriter, read_index, shard_name, write_index
from data.storing import Stored, store_record
from vdm.errors import DataError, UserError


@dataclass(frozen=True)
class Progress:
    items: int
    clips: int
    rejected: int


@dataclass(frozen=True)
class Outcome:
    """A finished split: what was made, or found finished."""

    index: ShardIndex
    items: int
    rejected: Counter[str]
    was_finished: bool


@dataclass(frozen=True, kw_only=True)
class SplitBuilder:
    """Makes the shards of one split."""

    name: str
    source: Source
    root: str
    store: StoreSettings
    clips_per_video: int | None  # None: as many as there are
    min_frames: int
    num_workers: int
    timeout: float  # seconds an item may take
    max_rejected: float  # rate above which the split is refused
    limit: int | None  # only the first items

    def build(self, split: str, *, overwrite: bool, on_progress: Callable[[Progress, int], None]) -> Outcome:
        """Continue or start a split. DataError when it was made with other settings, or too much of it is broken."""
        folder = Path(self.root) / split
        items = self.source.items(split)
        total = len(items) if self.limit is None else min(self.limit, len(items))
        if total < 1:
            raise DataError("the source has no items", key="data.source", got=f"split {split!r}")
        settings = self.settings(split, total)
        with _locked(folder):
            if overwrite:
                _clear(folder)
            _refuse_other_settings(folder, settings)
            if (folder / INDEX).exists():
                index = read_index(folder)
                shutil.rmtree(folder / NOTES, ignore_errors=True)
                return Outcome(index, total, count_reasons(read_rejected(folder)), True)
            write_settings(folder, settings)
            shards, rejected = self._make(folder, items, total, on_progress)
            self._check_rate(folder, rejected, total)
            write_rejected(folder, rejected)
            index = write_index(folder, name=self.name, split=split, settings=settings, shards=shards)
            shutil.rmtree(folder / NOTES, ignore_errors=True)
            return Outcome(index, total, count_reasons(rejected), False)

    def settings(self, split: str, total: int) -> dict[str, Any]:
        """Everything that decides the bytes of the shards."""
        source = self.source.fingerprint()
        source |= {"splits": {split: source["splits"].get(split)}} if "splits" in source else {}
        cut = {"clips_per_video": self.clips_per_video, "min_frames": self.min_frames}
        content = {"source": source, "store": asdict(self.store) | cut, "items": total}
        return json.loads(json.dumps(content))  # as it will be read back

    def _make(
        self, folder: Path, items: Sequence[Any], total: int, on_progress: Callable[[Progress, int], None]
    ) -> tuple[list[ShardInfo], list[Rejected]]:
        size = self.store.samples_per_shard
        spans = [range(first, min(first + size, total)) for first in range(0, total, size)]
        finished = [read_note(folder, number) for number in range(len(spans))]
        missing = [span for span, note in zip(spans, finished, strict=True) if note is None]
        todo = (items[position] for position in itertools.chain.from_iterable(missing))
        job = _Job(self.source, self.store, self.clips_per_video, self.min_frames)
        shards: list[ShardInfo] = []
        rejected: list[Rejected] = []
        keys: set[str] = set()
        with contextlib.closing(ordered_map(job, todo, num_workers=self.num_workers, timeout=self.timeout)) as results:
            for number, (span, note) in enumerate(zip(spans, finished, strict=True)):
                if note is None:
                    before = len(rejected)
                    with ShardWriter(folder / shard_name(number)) as writer:
                        for position in span:
                            refusal = _put(writer, next(results), keys, position, items[position])
                            if refusal is not None:
                                rejected.append(refusal)
                                self._check_rate(folder, rejected, total)
                            on_progress(Progress(position + 1, len(keys), len(rejected)), total)
                        shard = writer.close() if writer.keys else writer.abort()
                    note = Note(shard, sorted(writer.keys), rejected[before:])
                    write_note(folder, number, note)
                else:
                    keys.update(note.keys)
                    rejected += note.rejected
                    on_progress(Progress(span[-1] + 1, len(keys), len(rejected)), total)
                shards += [note.shard] if note.shard is not None else []
        return shards, rejected

    def _check_rate(self, folder: Path, rejected: list[Rejected], total: int) -> None:
        if len(rejected) <= self.max_rejected * total and len(rejected) < total:
            return
        write_rejected(folder, rejected)
        what = "nothing is left: every item is broken" if len(rejected) == total else "too many items are broken"
        raise DataError(
            what,
            key="max_rejected",
            got=f"{len(rejected)} of {total} items\n{reason_table(count_reasons(rejected))}",
            allowed=f"at most {self.max_rejected:.2%}",
            remedy=f"each one is named in {folder / REJECTED}; mend them, or allow more: max_rejected=<rate>",
        )


@dataclass(frozen=True)
class _Job:
    """The work on one item, in a worker process."""

    source: Source
    store: StoreSettings
    clips_per_video: int | None
    min_frames: int

    def __call__(self, item: Any) -> list[Stored] | Lost:
        try:
            record = self.source.load(item)
            clips = store_record(record, self.store, clips_per_video=self.clips_per_video, min_frames=self.min_frames)
            return list(clips)
        except DataError as error:
            return Lost(error.what, str(error.got or ""))
        except UserError:
            raise
        except (av.FFmpegError, EOFError) as error:
            return Lost("the video cannot be decoded", f"{type(error).__name__}: {error}")
        except OSError as error:
            return Lost("the file cannot be read", f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - one strange item must not end a run of days; the rate ends it
            return Lost(f"{type(error).__name__} while loading", str(error)[:500])


def _put(writer: ShardWriter, result: list[Stored] | Lost, seen: set[str], position: int, item: Any) -> Rejected | None:
    name = ascii(item if isinstance(item, str) else str(item))[1:-1][:200]
    if isinstance(result, Lost):
        return Rejected(position, name, result.reason, result.detail[:1000])
    twice = [clip.key for clip in result if clip.key in seen]
    if twice:
        return Rejected(position, name, "the same key twice", twice[0])
    for clip in result:
        writer.add(clip.key, clip.members)
        seen.add(clip.key)
    return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the lock goes with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError("cannot write to the shard folder", key="data.root", got=f"{folder}: {error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        remedy = "wait for it, or end it"
        raise DataError("another prepare works on this folder", key="data.root", got=folder, remedy=remedy) from error
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    (folder / INDEX).unlink(missing_ok=True)  # first: without it the rest counts for nothing
    shutil.rmtree(folder / NOTES, ignore_errors=True)
    for path in [*folder.glob("shard-*.tar"), *folder.glob("shard-*.tar.partial"), folder / REJECTED]:
        path.unlink(missing_ok=True)


def _refuse_other_settings(folder: Path, settings: dict[str, Any]) -> None:
    remedy = "overwrite=true makes them again, another data.root keeps both"
    existing = read_index(folder).settings if (folder / INDEX).exists() else read_settings(folder)
    if existing is None:
        if any(folder.glob("shard-*.tar")):
            raise DataError("the folder holds shards of unknown settings", key="data.root", got=folder, remedy=remedy)
        return
    if existing != settings:
        before, now = _flat(existing), _flat(settings)
        changes = [f"{key}: {before.get(key, 'absent')} in the shards, {now.get(key, 'absent')} now"
                   for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]  # fmt: skip
        got = "\n           ".join([str(folder), *changes])
        raise DataError("the existing shards were made with other settings", key="data.root", got=got, remedy=remedy)


def _flat(content: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(content, dict):
        return {prefix: json.dumps(content)}
    return {key: text for name, value in content.items() for key, text in
            _flat(value, f"{prefix}.{name}" if prefix else name).items()}  # fmt: skip
