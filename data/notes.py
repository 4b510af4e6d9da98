"""What prepare remembers between two attempts: one note per finished shard, and the list of the rejected items."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.shards import ShardInfo, write_atomic

NOTES = ".progress"
REJECTED = "rejected.jsonl"
_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Rejected:
    """An item that did not become a sample: its place in the source and why."""

    position: int
    item: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Note:
    """A finished shard; `shard` is None when all of its items were rejected."""

    shard: ShardInfo | None
    keys: list[str]
    rejected: list[Rejected]


def write_note(folder: Path, number: int, note: Note) -> None:
    write_atomic(folder / NOTES / f"{number:06d}.json", json.dumps(asdict(note)).encode())


def read_note(folder: Path, number: int) -> Note | None:
    """None unless the note and its shard are there and whole."""
    try:
        content = json.loads((folder / NOTES / f"{number:06d}.json").read_bytes())
        shard = ShardInfo(**content["shard"]) if content["shard"] else None
        rejected = [Rejected(**entry) for entry in content["rejected"]]
        if shard is not None and (folder / shard.file).stat().st_size != shard.bytes:
            return None
        return Note(shard, content["keys"], rejected)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    (folder / NOTES).mkdir(exist_ok=True)
    write_atomic(folder / NOTES / _SETTINGS, json.dumps(settings).encode())


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Settings of the attempt that was interrupted here, if there was one."""
    try:
        return json.loads((folder / NOTES / _SETTINGS).read_bytes())
    except (OSError, ValueError):
        return None


def write_rejected(folder: Path, rejected: Sequence[Rejected]) -> None:
    lines = [json.dumps(asdict(entry)) + "\n" for entry in rejected]
    write_atomic(folder / REJECTED, "".join(lines).encode())


def read_rejected(folder: Path) -> list[Rejected]:
    try:
        return [Rejected(**json.loads(line)) for line in (folder / REJECTED).read_text().splitlines()]
    except (OSError, ValueError, TypeError):
        return []


def count_reasons(rejected: Sequence[Rejected]) -> Counter[str]:
    return Counter(entry.reason for entry in rejected)


def reason_table(reasons: Counter[str]) -> str:
    """Number and reason, the most frequent first."""
    return "\n".join(f"  {count:>9,}  {reason}" for reason, count in reasons.most_common())
