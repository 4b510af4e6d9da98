"""Plans of a whole corpus in files beside its shards, one json a line, and their reader.

<folder>/planner.json says who planned; <folder>/<shard>.jsonl stands there when a shard is finished, and its tally beside it.
A run that was killed continues with the next shard; the answers of the unfinished one are in the cache.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from dysen.planner import Planned, Planner
from vdm.errors import DataError, RunError
from vdm.runs import write_atomically

SETTINGS, REPORT = "planner.json", "report.json"
EARLIEST = 20  # captions after which a share of failures means something
_ROW = re.compile(rb'\{"key": "([A-Za-z0-9_-]+)"')


class Corpus(Protocol):
    """Captions by shard, as `data.captions` has them."""

    folder: str
    fingerprint: str
    shards: list[tuple[str, int]]

    def read(self, shard: int) -> Iterator[tuple[str, list[str], dict[str, Any]]]: ...


@dataclass
class Tally:
    """What is counted over captions. `repairs`, `failures` and `events` are counts of counts."""

    captions: int = 0
    events: Counter[str] = field(default_factory=Counter)  # number of events -> captions
    sources: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    cached: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def add(self, planned: Planned) -> None:
        self.captions += 1
        self.events[str(len(planned.plan.events) if planned.plan is not None else 0)] += 1
        self.sources[planned.source] += 1
        self.repairs.update(planned.repairs)
        self.failures.update(failure.partition("\n")[0].partition(": ")[0] for failure in planned.failures)
        for name in ("calls", "cached", "errors", "prompt_tokens", "answer_tokens"):
            setattr(self, name, getattr(self, name) + getattr(planned, name))

    def merge(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def to_json(self) -> dict[str, Any]:
        return {name: dict(sorted(v.items())) if isinstance(v, Counter) else v for name, v in vars(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tally:
        return cls(**{name: Counter(v) if isinstance(v, dict) else int(v) for name, v in data.items()})

    @property
    def events_per_caption(self) -> float:
        return sum(int(number) * count for number, count in self.events.items()) / max(self.captions, 1)

    @property
    def fallbacks(self) -> float:
        """Share of captions that the model did not plan."""
        return 1 - self.sources["model"] / max(self.captions, 1)


@dataclass(frozen=True)
class CorpusPlanner:
    """Plans the shards of a corpus.

    Args:
        planner: who plans.
        folder: where the files go.
        captions: which captions of a clip are planned.
        batch: captions that go in lockstep.
        max_fallbacks: the share of captions without a plan of the model above which the run stops.
    """

    planner: Planner
    folder: Path
    captions: Literal["first", "all"]
    batch: int
    max_fallbacks: float

    def run(
        self,
        corpus: Corpus,
        *,
        limit: int | None,
        rank: int,
        world_size: int,
        on_progress: Callable[[int, Tally], None],
    ) -> Tally:
        """Plans what is missing. `on_progress` hears how many clips are done and what was counted in this run."""
        fresh, done = Tally(), 0
        try:
            self._claim(corpus, limit)
            for number, (name, samples) in enumerate(corpus.shards):
                wanted = samples if limit is None else min(samples, max(limit - done, 0))
                done += wanted
                if wanted and number % world_size == rank and not (self.folder / f"{name}.jsonl").exists():
                    self._shard(corpus, number, wanted, done - wanted, fresh, on_progress)
                on_progress(done, fresh)
        except OSError as error:
            remedy = "make room or fix the folder, and give the same command again: it continues"
            raise RunError(
                "plans cannot be written", key="output", got=f"{self.folder}: {error}", remedy=remedy
            ) from error
        return fresh

    def report(self, corpus: Corpus, limit: int | None) -> Tally | None:
        """The sum over all shards, or None while some are missing."""
        total, left = Tally(), limit
        for name, samples in corpus.shards:
            if left is None or left > 0:
                try:
                    if not (self.folder / f"{name}.jsonl").exists():
                        return None
                    total.merge(Tally.from_json(json.loads((self.folder / f"{name}.tally.json").read_text())))
                except (OSError, ValueError, TypeError) as error:
                    what, remedy = "a tally cannot be read", f"delete {name}.jsonl and give the same command again"
                    raise RunError(what, key="output", got=f"{self.folder}/{name}: {error}", remedy=remedy) from error
            left = None if left is None else left - samples
        return total

    def _claim(self, corpus: Corpus, limit: int | None) -> None:
        """The folder holds plans of one planner for one corpus."""
        settings = {"planner": self.planner.fingerprint(), "corpus": corpus.fingerprint, "captions": self.captions}
        text = json.dumps(settings | {"limit": limit}, indent=1, sort_keys=True) + "\n"
        place = self.folder / SETTINGS
        self.folder.mkdir(parents=True, exist_ok=True)
        if place.exists() and place.read_text() != text:
            what = "this folder has plans of another planner, corpus or limit"
            raise RunError(
                what, key="output", got=str(self.folder), remedy="choose another output, or delete the folder"
            )
        write_atomically(place, text)

    def _shard(
        self,
        corpus: Corpus,
        number: int,
        wanted: int,
        before: int,
        fresh: Tally,
        on_progress: Callable[[int, Tally], None],
    ) -> None:
        name, tally = corpus.shards[number][0], Tally()
        place = self.folder / f"{name}.jsonl"
        partial = place.with_name(f"{place.name}.partial")
        clips = set()
        try:
            with open(partial, "w", encoding="utf-8") as file:
                tasks = self._tasks(islice(corpus.read(number), wanted))
                while batch := list(islice(tasks, self.batch)):
                    results = self.planner.plan([text for _, _, text in batch])
                    for (key, nth, _), planned in zip(batch, results, strict=True):
                        row = {"key": key, "number": nth, **planned.to_json()}
                        file.write(json.dumps(row, ensure_ascii=True) + "\n")
                        tally.add(planned)
                        fresh.add(planned)
                        clips.add(key)
                    self._enough(tally, results)
                    on_progress(before + len(clips), fresh)
                file.flush()
                os.fsync(file.fileno())
            write_atomically(self.folder / f"{name}.tally.json", json.dumps(tally.to_json()) + "\n")
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def _tasks(self, samples: Iterator[tuple[str, list[str], dict[str, Any]]]) -> Iterator[tuple[str, int, str]]:
        for key, captions, _ in samples:
            for nth, text in enumerate(captions[:1] if self.captions == "first" else captions):
                yield key, nth, text

    def _enough(self, tally: Tally, results: Sequence[Planned]) -> None:
        if tally.captions < EARLIEST or tally.fallbacks <= self.max_fallbacks:
            return
        reasons = Counter(failure for one in results for failure in one.failures).most_common(1)
        got = f"{tally.fallbacks:.0%} of {tally.captions} captions; {reasons[0][0] if reasons else ''}"
        remedy = "see whether the llm answers at all, or raise max_fallbacks (1: never stop)"
        raise RunError("too many captions have no plan of the model", key="max_fallbacks", got=got,
                       allowed=f"<= {self.max_fallbacks:.0%}", remedy=remedy)  # fmt: skip


class PlannedGraphs:
    """Plans of a corpus by the key of a clip. Only places in files are kept in memory; every read opens its file anew.

    `planned["shapes-train-0000000"]` is the row of the first caption that was planned, `get` that of a certain caption.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.files = sorted(Path(folder).glob("*.jsonl"))
        if not self.files:
            remedy = "plan the corpus first: python -m dysen.plan data=<data> split=train"
            raise DataError("no plans in this folder", got=folder, remedy=remedy)
        keys, offsets = zip(*map(_places, self.files), strict=True)
        files = np.repeat(np.arange(len(self.files)), [len(part) for part in keys])
        order = np.argsort(np.concatenate(keys), kind="stable")  # the captions of a clip stay in their order
        self._keys, self._offsets = np.concatenate(keys)[order], np.concatenate(offsets)[order]
        self._files = files[order].astype(np.int32)

    def __len__(self) -> int:
        return len(np.unique(self._keys))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and len(self._rows(key)) > 0

    def __iter__(self) -> Iterator[str]:
        return (key.decode() for key in np.unique(self._keys))

    def __getitem__(self, key: str) -> dict[str, Any]:
        """{"caption", "plan", "scene_graphs", "source", ...}; plan and graphs are None where nobody could plan."""
        rows = self._rows(key)
        if not rows:
            raise KeyError(key)
        return self._read(rows[0])

    def get(self, key: str, caption: str) -> dict[str, Any] | None:
        """The row of this caption of a clip, or None."""
        rows = map(self._read, self._rows(key))
        return next((row for row in rows if row["caption"] == caption), None)

    def _rows(self, key: str) -> range:
        wanted = key.encode()
        return range(np.searchsorted(self._keys, wanted, "left"), np.searchsorted(self._keys, wanted, "right"))

    def _read(self, row: int) -> dict[str, Any]:
        path = self.files[self._files[row]]
        try:
            with open(path, "rb") as file:
                file.seek(self._offsets[row])
                return json.loads(file.readline())
        except (OSError, ValueError) as error:
            raise DataError("a plan cannot be read", got=f"{path}: {error}") from error


def _places(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the rows of a file, and where the rows begin."""
    keys, offsets, offset = [], [], 0
    with open(path, "rb") as file:
        for line in file:
            match = _ROW.match(line)
            if match is None or not line.endswith(b"\n"):
                raise DataError("this file holds no plans", got=f"{path}, at byte {offset}")
            keys.append(match[1])
            offsets.append(offset)
            offset += len(line)
    return np.array(keys, dtype=np.bytes_), np.array(offsets, dtype=np.int64)
