"""Tar as a random-access format: only headers are read, the data is skipped over, and nothing is ever extracted.

Reads ustar, pax and GNU archives whoever wrote them. Everything that has no business in a shard (links, devices,
absolute paths, `..`) is refused, because a shard may come from anywhere.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass, field
from typing import BinaryIO

import fsspec

from vdm.errors import DataError

BLOCK = 512
END = bytes(2 * BLOCK)
_REGULAR, _DIRECTORY = (b"0", b"\0", b"7"), b"5"
_NOT_FILES = {b"1": "hard link", b"2": "symbolic link", b"3": "character device", b"4": "block device", b"6": "fifo"}
_MAX_HEADER = 1 << 20  # no honest long name needs more
_ZERO = bytes(BLOCK)


@dataclass(frozen=True)
class SampleMembers:
    """The files of one sample: extension (without the first dot) -> (offset, size)."""

    key: str
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


def member_header(name: str, size: int) -> bytes:
    """A header that depends on nothing but name and size, so that equal samples make equal shards."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(format=tarfile.USTAR_FORMAT)


def padding(size: int) -> bytes:
    """What fills the last block of a member."""
    return bytes(-size % BLOCK)


def is_remote(path: str) -> bool:
    """Whether fsspec has to open it."""
    return "://" in path or "::" in path


def open_shard(path: str) -> BinaryIO:
    """A shard for reading at offsets: a local path, unbuffered, or any fsspec URL."""
    try:
        if is_remote(path):
            return fsspec.open(path, "rb").open()
        return open(path, "rb", buffering=0)
    except (OSError, ValueError, ImportError) as error:
        raise DataError("cannot open a shard", got=f"{path}: {error}") from error


def read_member(file: BinaryIO, offset: int, size: int) -> bytes:
    """The bytes of one member, all of them or DataError."""
    file.seek(offset)
    data = file.read(size)
    while data is not None and len(data) < size:
        more = file.read(size - len(data))
        if not more:
            break
        data += more
    if data is None or len(data) < size:
        raise DataError(
            "the shard ends too early", got=f"{_name(file)}: {len(data or b'')} of {size} bytes at offset {offset}"
        )
    return data


def member_table(shard: str | BinaryIO) -> list[SampleMembers]:
    """The samples of a shard in order. DataError names file and offset of whatever is unsafe or damaged."""
    if isinstance(shard, str | os.PathLike):
        with open_shard(os.fspath(shard)) as file:
            return _scan(file, os.fspath(shard))
    return _scan(shard, _name(shard))


def _scan(file: BinaryIO, path: str) -> list[SampleMembers]:
    end = file.seek(0, os.SEEK_END)
    samples: list[SampleMembers] = []
    seen: set[str] = set()
    offset, pax, common = 0, {}, {}
    while True:
        header = _read(file, offset, BLOCK, end, path)
        if header == _ZERO:
            if pax:
                raise _damaged("a member is missing behind its extended header", path, offset)
            return samples
        name, size, kind = _parse(header, path, offset)
        data = offset + BLOCK
        if kind in (b"L", b"x", b"g"):
            if size > _MAX_HEADER:
                raise _damaged("an extended header is too long", path, offset)
            text = _read(file, data, size, end, path)
            if kind == b"g":
                common |= _pax(text, path, offset)
            else:
                pax |= {"path": text.rstrip(b"\0")} if kind == b"L" else _pax(text, path, offset)
            offset = data + size + -size % BLOCK
            continue
        if pax or common:
            fields = common | pax
            name = fields.get("path", name)
            size = _whole(fields["size"], path, offset) if "size" in fields else size
            if any(key.startswith("GNU.sparse") for key in fields):
                kind = b"S"
            pax = {}
        safe = _safe_name(name, kind, path, offset)
        if data + size > end:
            raise _damaged("the shard is truncated", path, offset, f"{safe} needs {data + size} bytes, there are {end}")
        if kind != _DIRECTORY:
            _add(samples, seen, safe, (data, size), path, offset)
        offset = data + size + -size % BLOCK


def _parse(header: bytes, path: str, offset: int) -> tuple[bytes, int, bytes]:
    try:
        stored = int(header[148:156].strip(b"\0 ") or b"-1", 8)
    except ValueError:
        stored = -1
    if stored != sum(header) - sum(header[148:156]) + 256:  # the checksum field counts as spaces
        what = "a compressed shard" if offset == 0 and header[:2] == b"\x1f\x8b" else "a damaged tar header"
        raise _damaged(what, path, offset)
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    field_ = header[124:136]
    if field_[0] == 0x80:  # GNU: large sizes as a big-endian number
        return name, int.from_bytes(field_[1:], "big"), header[156:157]
    return name, _whole(field_.strip(b"\0 ") or b"0", path, offset, base=8), header[156:157]


def _add(samples: list[SampleMembers], seen: set[str], name: str, span: tuple[int, int], path: str, at: int) -> None:
    folder, _, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot or not stem:
        return  # not a member of any sample, as in webdataset
    key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
    if samples and samples[-1].key == key:
        if extension in samples[-1].members:
            raise _damaged("the same member twice", path, at, name)
        samples[-1].members[extension] = span
        return
    if key in seen:
        raise _damaged("the same key twice", path, at, key)
    seen.add(key)
    samples.append(SampleMembers(key, {extension: span}))


def _safe_name(raw: bytes, kind: bytes, path: str, offset: int) -> str:
    name = raw.decode("utf-8", "backslashreplace")
    if kind not in _REGULAR and kind != _DIRECTORY:
        raise _damaged("unsafe tar member", path, offset, f"{name!r}: {_NOT_FILES.get(kind, f'type {kind!r}')}")
    while name.startswith("./"):
        name = name[2:]
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or (parts[0][1:2] == ":" and len(parts) > 1):
        raise _damaged("unsafe tar member", path, offset, f"{name!r}: leaves the folder")
    if not name.isprintable() or (not name and kind != _DIRECTORY):
        raise _damaged("unsafe tar member", path, offset, f"{name!r}: unprintable name")
    if not raw.isascii() and name.encode() not in (raw, raw.removeprefix(b"./")):
        raise _damaged("unsafe tar member", path, offset, f"{name!r}: the name is not UTF-8")
    return name


def _pax(text: bytes, path: str, offset: int) -> dict[str, bytes]:
    fields, position = {}, 0
    while position < len(text) and text[position] != 0:
        length, _, _ = text[position:].partition(b" ")
        size = _whole(length, path, offset)
        record = text[position + len(length) + 1 : position + size - 1]
        key, equals, value = record.partition(b"=")
        if not equals or size <= len(length) or position + size > len(text):
            raise _damaged("a damaged extended header", path, offset)
        fields[key.decode("utf-8", "backslashreplace")] = value
        position += size
    return fields


def _whole(text: bytes, path: str, offset: int, base: int = 10) -> int:
    if not text.isdigit():
        raise _damaged("a damaged tar header", path, offset, f"not a number: {text[:20]!r}")
    try:
        return int(text, base)
    except ValueError as error:
        raise _damaged("a damaged tar header", path, offset, f"not a number: {text[:20]!r}") from error


def _read(file: BinaryIO, offset: int, size: int, end: int, path: str) -> bytes:
    if offset + size > end:
        raise _damaged("the shard is truncated", path, offset, f"needs {offset + size} bytes, there are {end}")
    return read_member(file, offset, size)


def _damaged(what: str, path: str, offset: int, detail: str = "") -> DataError:
    remedy = "prepare or download this shard again"
    if what == "a compressed shard":
        remedy = "decompress it: members of a compressed tar cannot be read alone"
    return DataError(what, got=f"{path} at offset {offset}" + (f": {detail}" if detail else ""), remedy=remedy)


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", None) or getattr(file, "path", None) or "shard")
