"""Random access to the samples of a dataset: one read per sample, few open files, compact member tables."""

from __future__ import annotations

import contextlib
import copy
import os
from collections import OrderedDict
from typing import Any

import numpy as np

from data.remote import Patience, ShardLost, StorageFails, persistently
from data.shard_cache import ShardCache
from data.shards import SampleMembers, ShardIndex, member_table
from data.tar import is_remote
from vdm.errors import DataError

# Members of a sample lie side by side, so one read fetches them all unless an unwanted one this big lies between.
_LARGEST_GAP = 1 << 16
_EVICTIONS = 5  # of a copy between finding and opening it, before something else is wrong
LOST = "lost shard"  # kind of a broken sample


class BrokenSample(Exception):
    """A sample that cannot be training data. The kind groups them in tables, the detail is for people."""

    def __init__(self, kind: str, detail: str = "", *, key: str | None = None):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail, self.key = kind, detail, key

    def __reduce__(self):
        return _rebuild, (self.kind, self.detail, self.key)


def _rebuild(kind: str, detail: str, key: str | None) -> BrokenSample:
    return BrokenSample(kind, detail, key=key)


class ShardReader:
    """Reads samples by (shard, index). Picklable; every process opens its own files.

    Args:
        cache: for remote shards.
        patience: with files that cannot be opened or read.
        max_lost: share of the samples that may be in shards which are gone; their samples are broken then. More end the run.
    """

    def __init__(
        self,
        *,
        index: ShardIndex,
        cache: ShardCache | None,
        max_open: int,
        max_tables: int,
        patience: Patience | None = None,
        max_lost: float = 0.0,
    ):
        self.index, self.cache = index, cache
        self.max_open, self.max_tables, self.patience, self.max_lost = max_open, max_tables, patience, max_lost
        self._files: OrderedDict[int, int] = OrderedDict()
        self._tables: OrderedDict[int, _Table | BrokenSample] = OrderedDict()
        self._lost: dict[int, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict(), "_tables": OrderedDict()}

    def read(self, shard: int, nth: int, extensions: tuple[str, ...]) -> tuple[str, dict[str, bytes]]:
        """Key and wanted members of one sample. BrokenSample when the shard does not have what its index promises."""
        table = self._table(shard)
        if nth >= len(table.keys):
            promised = self.index.shards[shard].samples
            raise BrokenSample(
                "missing sample", f"the index promises {promised} samples, the shard has {len(table.keys)}"
            )
        key = table.keys[nth].decode()
        spans = {
            extension: table.spans[extension][nth].tolist() for extension in extensions if extension in table.spans
        }
        spans = {extension: span for extension, span in spans.items() if span[0] >= 0}
        if not spans:
            return key, {}
        first = min(offset for offset, _ in spans.values())
        last = max(offset + size for offset, size in spans.values())
        try:
            if last - first <= sum(size for _, size in spans.values()) + _LARGEST_GAP:
                run = self._bytes(shard, first, last - first)
                return key, {
                    name: run[offset - first : offset - first + size] for name, (offset, size) in spans.items()
                }
            return key, {name: self._bytes(shard, offset, size) for name, (offset, size) in spans.items()}
        except ShardLost as error:
            raise self._without(shard, error) from error

    def reopened(self) -> ShardReader:
        """The same shards with files of its own, for use beside this one."""
        other = copy.copy(self)
        other._files, other._tables = OrderedDict(), OrderedDict()
        return other

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self):
        self.close()

    def _table(self, shard: int) -> _Table:
        if shard in self._lost:
            raise BrokenSample(LOST, self._lost[shard])
        table = self._tables.get(shard)
        if table is None:
            try:
                table = self._scan_again(shard)
            except StorageFails:
                raise
            except ShardLost as error:
                raise self._without(shard, error) from error
            except DataError as error:
                # Nothing in a damaged shard is trusted: its samples are broken, each of them counted.
                table = BrokenSample("damaged shard", f"{error.what} ({error.got})")
            self._tables[shard] = table
            if len(self._tables) > self.max_tables:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(shard)
        if isinstance(table, BrokenSample):
            raise BrokenSample(table.kind, table.detail)
        return table

    def _scan_again(self, shard: int) -> _Table:
        """A copy that rots on the local disk is fetched once more."""
        try:
            return _Table(self._scan(shard))
        except (ShardLost, StorageFails):
            raise
        except DataError:
            if self.cache is None or not is_remote(self.index.path(shard)):
                raise
            self.cache.discard(self.index.shards[shard])
            return _Table(self._scan(shard))

    def _scan(self, shard: int) -> list[SampleMembers]:
        promised = self.index.shards[shard].bytes
        with os.fdopen(self._open(shard), "rb", buffering=0) as file:
            found = os.fstat(file.fileno()).st_size
            if found != promised:
                raise DataError("the shard has another size than its index says", got=f"{found}, not {promised} bytes")
            try:
                return member_table(file)
            except OSError as error:
                raise _fails("read", self.index.path(shard), error) from error

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        """Read, and read again from a file opened anew, since a handle may be stale after the storage was away."""

        def attempt() -> bytes:
            try:
                return _pread(self._file(shard), offset, size)
            except OSError:
                if shard in self._files:
                    os.close(self._files.pop(shard))
                raise

        try:
            return persistently(attempt, self.patience, f"reading {self.index.path(shard)}",
                                hopeless=BrokenSample, is_limited=False)  # fmt: skip
        except OSError as error:
            raise _fails("read", self.index.path(shard), error) from error

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        self._files[shard] = self._open(shard)
        if len(self._files) > self.max_open:
            os.close(self._files.popitem(last=False)[1])
        return self._files[shard]

    def _open(self, shard: int) -> int:
        url, info, flags = self.index.path(shard), self.index.shards[shard], os.O_RDONLY | os.O_CLOEXEC
        try:
            if not is_remote(url):
                return persistently(lambda: os.open(url, flags), self.patience, f"opening {url}")
            assert self.cache is not None, "remote shards are read through a cache"
            for _ in range(_EVICTIONS):
                path = self.cache.path(url, info)
                with contextlib.suppress(FileNotFoundError):
                    return os.open(path, flags)
            raise StorageFails("the cache of shards is emptied as it is filled", key="data.cache.folder", got=path)
        except FileNotFoundError as error:
            raise ShardLost("cannot open a shard", key="data.root", got=f"{url} {error.strerror}") from error
        except OSError as error:
            raise _fails("open", url, error) from error

    def _without(self, shard: int, error: ShardLost) -> Exception:
        """What to raise for a sample of a shard that is gone: so many may be, and the samples are replaced by others."""
        self._lost[shard] = f"{error.what} ({error.got})"
        samples = sum(self.index.shards[number].samples for number in self._lost)
        if samples <= self.max_lost * self.index.num_samples:
            return BrokenSample(LOST, self._lost[shard])
        remedy = "bring the shard back, then run the same command again: it resumes; or allow more to be lost"
        return StorageFails(error.what, key=error.key or "data.root", got=error.got, remedy=remedy,
                            allowed=f"{self.max_lost:g} of the samples lost (data.max_broken)")  # fmt: skip


class _Table:
    """A few dozen bytes per sample instead of a dictionary of tuples, for a thousand shards at once."""

    def __init__(self, samples: list[SampleMembers]):
        self.keys = np.array([sample.key.encode() for sample in samples], dtype=np.bytes_)
        extensions = sorted({extension for sample in samples for extension in sample.members})
        absent = (-1, 0)
        self.spans = {
            extension: np.array([sample.members.get(extension, absent) for sample in samples], dtype=np.int64)
            for extension in extensions
        }


def _pread(file: int, offset: int, size: int) -> bytes:
    data = os.pread(file, size, offset)
    while len(data) < size:
        more = os.pread(file, size - len(data), offset + len(data))
        if not more:
            raise BrokenSample("damaged shard", f"ends at byte {offset + len(data)}, {offset + size} are needed")
        data += more
    return data


def _fails(verb: str, path: str, error: OSError) -> StorageFails:
    return StorageFails(f"cannot {verb} a shard", key="data.root", got=f"{path} {error.strerror}".strip(),
                        remedy="check the storage, then run the same command again: it resumes")  # fmt: skip
