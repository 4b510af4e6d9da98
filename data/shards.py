"""Shards on disk: plain tar files in the webdataset layout beside an index with counts, sizes and checksums.

<root>/<split>/shard-000000.tar ... index.json
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec

from data.records import check_key
from data.remote import Patience, persistently
from data.tar import END, SampleMembers, is_remote, member_header, member_table, open_shard, padding, read_member
from vdm.errors import DataError

__all__ = ["SampleMembers", "ShardIndex", "ShardInfo", "ShardWriter", "member_table", "open_shard", "read_index",
           "read_member", "shard_name", "verify_shards", "write_atomic", "write_index"]  # fmt: skip

FORMAT = 1
INDEX = "index.json"
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar")
_PREPARE = "make the shards with `python -m data.prepare data=<name>`, or point data.root at the folder that has them"


@dataclass(frozen=True)
class ShardInfo:
    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex:
    """One split of a dataset as it lies in `folder`, a local path or an fsspec URL."""

    name: str
    split: str
    fingerprint: str
    num_samples: int
    shards: tuple[ShardInfo, ...]
    folder: str
    settings: dict[str, Any]

    def path(self, shard: int | ShardInfo) -> str:
        """Where a shard lies, given its position or itself."""
        info = self.shards[shard] if isinstance(shard, int) else shard
        return f"{self.folder}/{info.file}"


def shard_name(position: int) -> str:
    return f"shard-{position:06d}.tar"


def write_atomic(path: Path, content: bytes) -> None:
    """The file appears whole or not at all, and survives a power cut."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class ShardWriter:
    """Writes one shard under a partial name; `close` gives it its own. Left by an exception, nothing remains."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._partial, "wb")  # noqa: SIM115 - closed by close or abort
        self._digest = hashlib.sha256()
        self.keys: set[str] = set()
        self.bytes = 0

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """Append a sample: extension -> content."""
        check_key(key)
        if key in self.keys:
            raise DataError("the same key twice", got=key)
        self.keys.add(key)
        for extension, content in members.items():
            for part in (member_header(f"{key}.{extension}", len(content)), content, padding(len(content))):
                self._write(part)

    def close(self) -> ShardInfo:
        self._write(END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self.path)
        return ShardInfo(self.path.name, len(self.keys), self.bytes, self._digest.hexdigest())

    def abort(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()
        elif not self._file.closed:
            self.close()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.bytes += len(content)


def write_index(
    folder: str | Path, *, name: str, split: str, settings: dict[str, Any], shards: Sequence[ShardInfo]
) -> ShardIndex:
    """Write index.json, the last file of a split: without it the shards count for nothing."""
    folder = Path(folder)
    content = {
        "format": FORMAT,
        "name": name,
        "split": split,
        "settings": settings,
        "fingerprint": _fingerprint(settings, shards),
        "num_samples": sum(shard.samples for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }
    write_atomic(folder / INDEX, (json.dumps(content, indent=1) + "\n").encode())
    return _parse_index(content, str(folder))


def read_index(folder: str | Path, *, patience: Patience | None = None, max_lost: float = 0.0) -> ShardIndex:
    """The index of one split. Compares names and sizes of the shards with what is there, without opening them.

    Shards with up to `max_lost` of the samples may be missing: reading goes on without them.
    """
    folder = str(folder).rstrip("/")
    if not is_remote(folder):
        return _read_index(folder, None, max_lost)

    def attempt() -> ShardIndex:
        try:
            return _read_index(folder, patience, max_lost)
        except _Absent:
            raise
        except DataError as error:
            raise _Doubtful(error) from error

    try:
        # A byte that changed on the way may look like shards that are missing.
        return persistently(attempt, patience, f"the index in {folder}", hopeless=_Absent, is_limited=False)
    except _Doubtful as doubt:
        raise doubt.args[0] from doubt


class _Doubtful(Exception):
    """An error that another reading might not show."""


class _Absent(DataError):
    """Nothing is there that could be read once more."""


def _read_index(folder: str, patience: Patience | None, max_lost: float) -> ShardIndex:
    sizes = _sizes(folder, patience)
    if INDEX not in sizes:
        unfinished = " (prepare was interrupted or refused: run it again)" if any(map(_FILE.fullmatch, sizes)) else ""
        what = f"no {INDEX} in the shard folder{unfinished}" if sizes else "the shard folder is empty"
        raise _Absent(what, key="data.root", got=folder, remedy=_PREPARE)
    path = f"{folder}/{INDEX}"
    try:
        content = json.loads(persistently(lambda: _content(path), patience, f"reading {path}"))
    except Exception as error:  # noqa: BLE001 - libraries of storage raise what they like
        raise DataError(f"cannot read {INDEX}", key="data.root", got=f"{path}: {error}", remedy=_PREPARE) from error
    index = _parse_index(content, folder)
    _check_sizes(index, sizes, max_lost)
    return index


def _content(path: str) -> bytes:
    with fsspec.open(path, "rb") as file:
        return file.read()


def verify_shards(index: ShardIndex, on_shard: Callable[[ShardInfo], None] | None = None) -> None:
    """Read every byte: checksums, number of samples, and safe members. DataError lists every shard that differs."""
    broken, keys = [], set()
    for info in index.shards:
        path = index.path(info)
        try:
            with open_shard(path) as file:
                found = _digest(file)
                if found != info.sha256:
                    broken.append(f"{info.file}: checksum {found[:12]}, the index says {info.sha256[:12]}")
                    continue
                table = {sample.key for sample in member_table(file)}
        except DataError as error:
            broken.append(f"{info.file}: {error.what}, {error.got}")
            continue
        if len(table) != info.samples:
            broken.append(f"{info.file}: {len(table)} samples, the index says {info.samples}")
        if keys & table:
            broken.append(f"{info.file}: key {min(keys & table)} is in an earlier shard too")
        keys |= table
        if on_shard is not None:
            on_shard(info)
    if broken:
        what = f"{len(broken)} of {len(index.shards)} shards are broken"
        listed = "\n           ".join([index.folder, *broken[:20]])
        remedy = "copy these files again, or prepare again with overwrite=true"
        raise DataError(what, key="data.root", got=listed, remedy=remedy)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(1 << 22):
        digest.update(chunk)
    return digest.hexdigest()


def _fingerprint(settings: dict[str, Any], shards: Sequence[ShardInfo]) -> str:
    content = json.dumps({"settings": settings, "shards": [shard.sha256 for shard in shards]}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _sizes(folder: str, patience: Patience | None) -> dict[str, int | None]:
    """File name -> size; None where the file system does not tell."""
    try:
        if not is_remote(folder):
            with os.scandir(folder) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        file_system, path = fsspec.core.url_to_fs(folder)
        file_system.invalidate_cache()
        listed = persistently(
            lambda: file_system.ls(path, detail=True), patience, f"listing {folder}", hopeless=FileNotFoundError
        )
        found = [entry for entry in listed if entry["type"] == "file"]
        return {entry["name"].rsplit("/", 1)[-1]: entry.get("size") for entry in found}
    except FileNotFoundError as error:
        raise _Absent("there is no shard folder", key="data.root", got=folder, remedy=_PREPARE) from error
    except Exception as error:  # noqa: BLE001 - libraries of storage raise what they like
        what, remedy = (
            "cannot read the shard folder",
            "check path and rights; a URL needs its package, as dysen-vdm[s3] for s3://",
        )
        raise _Absent(what, key="data.root", got=f"{folder}: {error}", remedy=remedy) from error


def _parse_index(content: Any, folder: str) -> ShardIndex:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        version = content.get("format") if isinstance(content, dict) else None
        raise DataError("the shards have another format", key="data.root", got=f"{folder}: format {version!r}",
                        allowed=f"format {FORMAT}", remedy="prepare them again with this version")  # fmt: skip
    try:
        shards = tuple(ShardInfo(**shard) for shard in content["shards"])
        names = {name: str(content[name]) for name in ("name", "split", "fingerprint")}
        for shard in shards:
            if not _FILE.fullmatch(shard.file) or shard.samples < 1 or shard.bytes < 1 or len(shard.sha256) != 64:
                raise ValueError(f"shard {shard.file!r}")
        if len({shard.file for shard in shards}) != len(shards) or not shards:
            raise ValueError("no shards, or one listed twice")
        if content["num_samples"] != sum(shard.samples for shard in shards):
            raise ValueError("num_samples is not the sum over the shards")
        if names["fingerprint"] != _fingerprint(content["settings"], shards):
            raise ValueError("the fingerprint does not fit the settings and checksums")
        settings = dict(content["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{INDEX} contradicts itself", key="data.root", got=f"{folder}: {error}", remedy=_PREPARE
        ) from error
    return ShardIndex(**names, num_samples=content["num_samples"], shards=shards, folder=folder, settings=settings)


def _check_sizes(index: ShardIndex, sizes: dict[str, int | None], max_lost: float) -> None:
    lost = [shard for shard in index.shards if shard.file not in sizes]
    is_bearable = sum(shard.samples for shard in lost) <= max_lost * index.num_samples
    missing = [] if is_bearable else [shard.file for shard in lost]
    other = [f"{shard.file} has {sizes[shard.file]} bytes, the index says {shard.bytes}" for shard in index.shards
             if sizes.get(shard.file) not in (None, shard.bytes)]  # fmt: skip
    if missing or other:
        listed = [f"{file} is missing" for file in missing] + other
        more = f" (and {len(listed) - 5} more)" if len(listed) > 5 else ""
        what, got = "the shards are not those of the index", f"{index.folder}: {'; '.join(listed[:5])}{more}"
        remedy = "copy the folder again, or prepare again with overwrite=true"
        raise DataError(what, key="data.root", got=got, remedy=remedy)
