"""Shards of an object store on the local disk: fetched whole, once per machine, kept until the folder is full.

A local copy turns the loader's random reads into local reads. The folder is shared by all workers and ranks of a machine;
a lock per shard makes one of them fetch while the others wait.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec

from vdm.bounds import PositiveFloat
from vdm.errors import DataError


class ShardCache:
    """Least recently used shards go first. What is open stays readable after its name is gone."""

    def __init__(self, *, folder: str, gigabytes: PositiveFloat):
        self.folder, self.max_bytes = Path(folder), int(gigabytes * 1e9)

    def path(self, url: str, size: int) -> Path:
        """The local copy of a shard, fetched when it is not there."""
        name = hashlib.sha256(f"{url} {size}".encode()).hexdigest()[:32]
        target = self.folder / f"{name}.tar"
        with contextlib.suppress(FileNotFoundError):
            os.utime(target)
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / f"{name}.lock"):
            if not target.exists():
                self._make_room(size)
                self._fetch(url, size, target)
        return target

    def _fetch(self, url: str, size: int, target: Path) -> None:
        partial = target.with_suffix(".partial")
        try:
            with fsspec.open(url, "rb") as remote, open(partial, "wb") as local:
                shutil.copyfileobj(remote, local, 1 << 22)
        except (OSError, ValueError, ImportError) as error:
            partial.unlink(missing_ok=True)
            raise DataError("cannot fetch a shard", got=f"{url}: {error}", key="data.root") from error
        found = partial.stat().st_size
        if found != size:
            partial.unlink()
            raise DataError("a fetched shard has another size", got=f"{url}: {found} bytes", allowed=f"{size} bytes")
        partial.replace(target)

    def _make_room(self, size: int) -> None:
        shards = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room as well
                status = path.stat()
                shards.append((status.st_mtime_ns, status.st_size, path))
        used = sum(bytes_ for _, bytes_, _ in shards) + size
        for _, bytes_, path in sorted(shards):
            if used <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            used -= bytes_


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
