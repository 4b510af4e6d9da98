"""Random access to the samples of a dataset: one read per sample, few open files, compact member tables."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import numpy as np

from data.shard_cache import ShardCache
from data.shards import SampleMembers, ShardIndex, member_table
from data.tar import is_remote
from vdm.errors import DataError

# Members of a sample lie side by side, so one read fetches them all unless an unwanted one this big lies between.
_LARGEST_GAP = 1 << 16


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
    """Reads samples by (shard, index). Picklable; every process opens its own files."""

    def __init__(self, *, index: ShardIndex, cache: ShardCache | None, max_open: int, max_tables: int):
        self.index, self.cache = index, cache
        self.max_open, self.max_tables = max_open, max_tables
        self._files: OrderedDict[int, int] = OrderedDict()
        self._tables: OrderedDict[int, _Table | BrokenSample] = OrderedDict()

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
        file = self._file(shard)
        if last - first <= sum(size for _, size in spans.values()) + _LARGEST_GAP:
            run = _pread(file, first, last - first)
            return key, {name: run[offset - first : offset - first + size] for name, (offset, size) in spans.items()}
        return key, {name: _pread(file, offset, size) for name, (offset, size) in spans.items()}

    def reopened(self) -> ShardReader:
        """The same shards with files of its own, for use beside this one."""
        return ShardReader(index=self.index, cache=self.cache, max_open=self.max_open, max_tables=self.max_tables)

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self):
        self.close()

    def _table(self, shard: int) -> _Table:
        table = self._tables.get(shard)
        if table is None:
            try:
                table = _Table(self._scan(shard))
            except ShardGone:
                raise
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

    def _scan(self, shard: int) -> list[SampleMembers]:
        path = self._local_path(shard)
        promised = self.index.shards[shard].bytes
        try:
            with open(path, "rb", buffering=0) as file:
                found = os.fstat(file.fileno()).st_size
                if found != promised:
                    raise DataError(
                        "the shard has another size than its index says", got=f"{found}, not {promised} bytes"
                    )
                return member_table(file)
        except OSError as error:
            raise _gone("open", path, error) from error

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        path = self._local_path(shard)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _gone("open", path, error) from error
        self._files[shard] = file
        if len(self._files) > self.max_open:
            os.close(self._files.popitem(last=False)[1])
        return file

    def _local_path(self, shard: int) -> str:
        path = self.index.path(shard)
        if not is_remote(path):
            return path
        assert self.cache is not None, "remote shards are read through a cache"
        return str(self.cache.path(path, self.index.shards[shard].bytes))


class ShardGone(DataError):
    """The storage fails, not a sample: a shard that was there at the start is gone. Stops the run, quarantines nothing."""


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
    try:
        data = os.pread(file, size, offset)
        while len(data) < size:
            more = os.pread(file, size - len(data), offset + len(data))
            if not more:
                raise BrokenSample("damaged shard", f"ends at byte {offset + len(data)}, {offset + size} are needed")
            data += more
    except OSError as error:
        raise _gone("read", "", error) from error
    return data


def _gone(verb: str, path: str, error: OSError) -> ShardGone:
    return ShardGone(f"cannot {verb} a shard", key="data.root", got=f"{path} {error.strerror}".strip(),
                     remedy="check the storage, then resume")  # fmt: skip
