"""Shards of an object store on the local disk: fetched whole, once per machine, checked, kept until the folder is full.

A local copy turns the loader's random reads into local reads. The folder is shared by all workers and ranks of a machine, and
by all runs that read the same shards: a copy is named by the checksum of its content. A lock per shard makes one process fetch
while the others wait; a copy appears under its name when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from data.remote import Patience, ShardLost, StorageFails, pieces
from data.shards import ShardInfo
from vdm.bounds import NonNegativeInt, PositiveFloat
from vdm.errors import ConfigError

_SPARE = 0.05  # of what is free on the disk: others write there as well
_ABANDONED = 3600.0  # seconds without a byte: whoever wrote this is gone


class ShardCache:
    """Least recently opened shards go first. What is open stays readable after its name is gone.

    Args:
        folder: where copies lie. None: in the machine's folder for temporary files.
        gigabytes: what they may take together.
        retries, pause, timeout: see Patience.
        ahead: samples of a rank that are looked ahead for the shards they are in, which are then fetched in the background.
    """

    def __init__(
        self,
        *,
        folder: str | None,
        gigabytes: PositiveFloat,
        retries: NonNegativeInt,
        pause: PositiveFloat,
        timeout: PositiveFloat,
        ahead: NonNegativeInt,
    ):
        self.folder = Path(folder) if folder else Path(tempfile.gettempdir()) / f"shards-{_user()}"
        self.max_bytes, self.ahead = int(gigabytes * 1e9), ahead
        self.patience = Patience(retries=retries, pause=pause, timeout=timeout)
        self._systems: dict[tuple[int, str], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_systems": {}}

    def path(self, url: str, shard: ShardInfo) -> Path:
        """The local copy of a shard, fetched when it is not there."""
        target = self._target(shard)
        if _is_whole(target, shard):
            return target
        if shard.bytes > self.max_bytes:
            raise ConfigError("the cache has no room for one shard", key="data.cache.gigabytes", got=self.max_bytes / 1e9,
                              allowed=f">= {shard.bytes / 1e9:g}")  # fmt: skip
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(target.with_suffix(".lock")):
                if not _is_whole(target, shard):
                    self._fetch(url, shard, target)
        except OSError as error:
            remedy = "set data.cache.folder to a local disk with room for data.cache.gigabytes"
            raise StorageFails("cannot write to the cache of shards", key="data.cache.folder", got=f"{self.folder}: {error}",
                            remedy=remedy) from error  # fmt: skip
        return target

    def discard(self, shard: ShardInfo) -> None:
        """Forget a copy that turned out to be damaged."""
        self._target(shard).unlink(missing_ok=True)

    def _target(self, shard: ShardInfo) -> Path:
        return self.folder / f"{shard.sha256[:32]}.tar"

    def _fetch(self, url: str, shard: ShardInfo, target: Path) -> None:
        # Of processes that were killed: whoever holds the lock is the only one to write this shard.
        for left in self.folder.glob(f"{target.stem}.*.partial"):
            left.unlink(missing_ok=True)
        partial = target.with_suffix(f".{os.getpid()}-{threading.get_ident()}.partial")
        try:
            with self._room_for(shard.bytes, partial) as file:
                self._download(url, shard, file)
                file.flush()
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _download(self, url: str, shard: ShardInfo, file: Any) -> None:
        """Until the checksum is right. A wrong one costs the whole shard, because nothing tells which piece is wrong."""
        system, path = self._open_system(url)
        for _ in range(1 + self.patience.retries):
            file.seek(0)
            digest = hashlib.sha256()
            for piece in pieces(system, path, shard.bytes, self.patience):
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() == shard.sha256:
                return
        raise ShardLost("a shard has other bytes than its index says", key="data.root",
                        got=f"{url}: checksum {digest.hexdigest()[:12]}", allowed=shard.sha256[:12])  # fmt: skip

    def _open_system(self, url: str) -> tuple[Any, str]:
        """One connection pool for each process and protocol, whichever thread asks."""
        key = os.getpid(), url.split("://")[0]
        try:
            if "::" in url:
                return fsspec.core.url_to_fs(url)
            if key not in self._systems:
                self._systems[key] = fsspec.core.url_to_fs(url)[0]
            return self._systems[key], self._systems[key]._strip_protocol(url)
        except (ImportError, ValueError) as error:
            remedy = "install what the URL needs, as dysen-vdm[s3] for s3://"
            raise StorageFails(
                "cannot open the storage", key="data.root", got=f"{url}: {error}", remedy=remedy
            ) from error

    @contextlib.contextmanager
    def _room_for(self, size: int, partial: Path) -> Iterator[Any]:
        """A file that takes its whole room at once, so that processes which fetch at the same time count each other."""
        with contextlib.ExitStack() as stack:
            with _locked(self.folder / "room.lock"):
                self._make_room(size)
                file = stack.enter_context(open(partial, "wb"))
                file.truncate(size)
            yield file

    def _make_room(self, size: int) -> None:
        shards, used = [], size
        for path in [*self.folder.glob("*.tar"), *self.folder.glob("*.partial")]:
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == ".partial" and time.time() - status.st_mtime > _ABANDONED:
                    path.unlink()
                    continue
                used += status.st_size
                if path.suffix == ".tar":
                    shards.append((status.st_mtime_ns, status.st_size, path))
        free = shutil.disk_usage(self.folder).free * (1 - _SPARE)
        limit = min(self.max_bytes, used - size + free)
        for _, bytes_, path in sorted(shards):
            if used <= limit:
                return
            path.unlink(missing_ok=True)
            used -= bytes_


def _is_whole(target: Path, shard: ShardInfo) -> bool:
    """Its checksum was compared when it was written. Asking for it makes it the latest used."""
    try:
        if target.stat().st_size != shard.bytes:
            return False
        with contextlib.suppress(PermissionError):  # another user's
            os.utime(target)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a") as file:
        with contextlib.suppress(OSError):  # a file system without locks: then two may fetch the same
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for this user
        return str(os.getuid())
