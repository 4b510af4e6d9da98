"""CSV as it is found: byte-order marks, newlines inside captions, broken UTF-8, broken quotes. A bad row is a row too."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from vdm.errors import DataError

VIDEO_SUFFIXES = (".mp4", ".MP4", ".webm", ".mkv", ".mov", ".MOV", ".avi")
_CAPTION_LIMIT = 1 << 20  # an open quote swallows what follows: stop there instead of at the end of the file


def read_rows(path: str, columns: tuple[str, ...], *, key: str) -> Iterator[dict[str, str] | str]:
    """Each row by column, or what is wrong with it. DataError when the table itself is unusable."""
    csv.field_size_limit(_CAPTION_LIMIT)
    try:
        # Bytes that are no UTF-8 become lone surrogates, so that one bad caption does not end the reading.
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                remedy = "give the released table, with its header line"
                raise DataError("the table lacks a column", key=key, got=f"{path}: {', '.join(header)[:300] or 'empty'}",
                                allowed=columns, remedy=remedy)  # fmt: skip
            places = {name: header.index(name) for name in columns}
            while True:
                try:
                    row = next(reader, None)
                except csv.Error as error:
                    yield f"a damaged row near line {reader.line_num}: {error}"
                    continue
                if row is None:
                    return
                if not row:
                    continue
                if len(row) != len(header):
                    yield f"{len(row)} fields instead of {len(header)} near line {reader.line_num}"
                    continue
                yield {name: row[place].strip() for name, place in places.items()}
    except OSError as error:
        raise DataError("cannot read the table", key=key, got=f"{path}: {error.strerror or error}") from error


def need_file(path: str, *, key: str, what: str, remedy: str) -> str:
    """The path, or DataError that says what belongs there."""
    if not path or not os.path.isfile(path):
        raise DataError(f"{what} is not there", key=key, got=path or "nothing", remedy=remedy)
    return path


def need_folder(path: str, *, key: str, what: str, remedy: str) -> str:
    """The same for a folder."""
    if not path or not os.path.isdir(path):
        raise DataError(f"{what} is not there", key=key, got=path or "nothing", remedy=remedy)
    return path


def is_plain_name(name: str) -> bool:
    """Whether a name from a table can be joined to a folder without leaving it."""
    parts = name.split("/")
    return bool(name) and name.isprintable() and not name.startswith("/") and "\\" not in name and ".." not in parts


def find_video(*stems: str) -> str | None:
    """The first file that is there, whatever the case and kind of its extension."""
    return next((stem + suffix for stem in stems for suffix in VIDEO_SUFFIXES if os.path.isfile(stem + suffix)), None)


def checksum(path: str) -> str:
    """sha256 of a file: two tables of one name are not the same data."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
