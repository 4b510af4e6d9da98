"""Broken samples: counted once each, named in a file, and a reason to stop when they are too many."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from data.reader import LOST
from vdm.bounds import Fraction
from vdm.errors import DataError

log = logging.getLogger(__name__)

MINIMUM = 10  # broken samples before the rate means anything
_SHOWN = 5  # named in the log; the file names all


@dataclass(frozen=True)
class Broken:
    """One broken sample. Shard and position identify it, also where the key cannot be read."""

    shard: str
    index: int
    key: str | None
    kind: str
    detail: str = ""

    @property
    def place(self) -> tuple[str, int]:
        return self.shard, self.index

    @property
    def reason(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Quarantine:
    """Only the main process of a rank holds one. Ranks share the file: each appends under a lock what is not yet in it."""

    def __init__(self, *, path: str | None, fingerprint: str, max_broken: Fraction):
        self.path = Path(path) if path else None
        self.fingerprint, self.max_broken = fingerprint, max_broken
        self.known = {broken.place: broken for broken in self._read()}
        self.met: dict[tuple[str, int], Broken] = {}  # by this process, since it started
        self.lost: dict[str, int] = {}  # shard that is gone -> samples asked of it since this process started

    def add(self, found: Iterable[Broken]) -> None:
        """Count these, and name in the file those that it does not name yet.

        Not those of a shard that is gone: it may come back, and a run that is continued asks for it again.
        """
        fresh = []
        for broken in found:
            if broken.kind == LOST:
                if broken.shard not in self.lost:
                    log.warning("going on without %s, with other samples in its place: %s", broken.shard, broken.detail)
                self.lost[broken.shard] = self.lost.get(broken.shard, 0) + 1
                continue
            if broken.place not in self.known:
                fresh.append(broken)
                if len(self.known) < _SHOWN:
                    name = broken.key or f"sample {broken.index}"
                    log.warning("skipping broken sample %s of %s (%s)", name, broken.shard, broken.reason)
                elif len(self.known) == _SHOWN:
                    log.warning("more broken samples: all are named in %s", self.path)
                self.known[broken.place] = broken
            self.met.setdefault(broken.place, broken)
        if fresh:
            self._append(fresh)

    def check(self, seen: int) -> None:
        """Stop when more than `max_broken` of the distinct samples this process has met are broken."""
        if len(self.met) >= MINIMUM and len(self.met) > self.max_broken * seen:
            what = f"{len(self.met)} of {seen} samples are broken:\n{self.table()}"
            remedy = f"mend or prepare the data again, or raise data.max_broken; all are named in {self.path}"
            raise DataError(what, key="data.max_broken", got=f"{len(self.met) / seen:.3f}", allowed=f"<= {self.max_broken}",
                            remedy=remedy)  # fmt: skip

    def table(self) -> str:
        """Kinds by frequency, each with an example."""
        kinds = Counter(broken.kind for broken in self.met.values())
        examples = {broken.kind: broken for broken in reversed(self.met.values())}
        width = max(map(len, kinds), default=0)
        rows = []
        for kind, count in kinds.most_common():
            example = examples[kind]
            detail = f": {example.detail[:80]}" if example.detail else ""
            rows.append(f"  {count:6d}  {kind:{width}}  {example.key or example.index} in {example.shard}{detail}")
        return "\n".join(rows)

    def _read(self) -> list[Broken]:
        if self.path is None or not self.path.exists():
            return []
        with open(self.path, encoding="utf-8") as file:
            return self._parse(file.read())

    def _parse(self, text: str) -> list[Broken]:
        found = []
        for line in text.splitlines():
            with contextlib.suppress(
                ValueError, TypeError, KeyError, AttributeError
            ):  # the last line of a killed run may be half there
                fields = json.loads(line)
                if fields.pop("fingerprint") == self.fingerprint:
                    found.append(Broken(**fields))
        return found

    def _append(self, fresh: list[Broken]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+", encoding="utf-8") as file:
            with contextlib.suppress(OSError):  # some shared file systems have no locks: then a line may appear twice
                fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            named = {broken.place for broken in self._parse(text)}
            if text and not text.endswith("\n"):
                file.write("\n")
            for broken in fresh:
                if broken.place not in named:
                    file.write(json.dumps({"fingerprint": self.fingerprint} | asdict(broken), sort_keys=True) + "\n")
