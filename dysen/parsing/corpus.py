"""Graphs of a whole corpus in files beside its shards, one json a line; `dysen.planning_corpus.PlannedGraphs` reads them.

<folder>/parser.json says who parsed; <folder>/<shard>.jsonl stands there when a shard is finished, and its tally beside it.
A run that was killed continues with the next shard.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dysen.parsing.frames import Parser
from dysen.parsing.merging import Merging, Parsed
from dysen.parsing.quality import Quality
from vdm.errors import PlanError, RunError
from vdm.runs import write_atomically

SETTINGS, REPORT = "parser.json", "report.json"


@dataclass(frozen=True)
class StoredClip:
    """A sample of a shard. `extras` has its truths with `key`, `source`, `frames`, `height` and `width`."""

    key: str
    captions: list[str]
    fps: float
    extras: dict[str, Any]
    video: np.ndarray | None  # T H W 3, uint8


class ClipCorpus(Protocol):
    """Clips by shard, as `data.annotating` has them."""

    folder: str
    fingerprint: str
    shards: list[tuple[str, int]]

    def clips(self, shard: int, *, with_video: bool) -> Iterator[dict[str, Any]]: ...


@dataclass(frozen=True)
class CorpusParser:
    """Parses the shards of a corpus.

    Args:
        parser: who looks at clips.
        merging: how frames become ticks.
        truth: another parser whose graphs are right, to be compared with; None: nothing is compared.
        quality: how they are compared.
        folder: where the files go.
    """

    parser: Parser
    merging: Merging
    truth: Parser | None
    quality: Quality
    folder: Path

    def run(
        self,
        corpus: ClipCorpus,
        *,
        limit: int | None,
        rank: int,
        world_size: int,
        on_progress: Callable[[int, Counter[str]], None],
    ) -> Counter[str]:
        """Parses what is missing. `on_progress` hears how many clips are done and what was counted in this run."""
        fresh: Counter[str] = Counter()
        done = 0
        try:
            self._claim(corpus, limit)
            for number, (name, samples) in enumerate(corpus.shards):
                wanted = samples if limit is None else min(samples, max(limit - done, 0))
                if wanted and number % world_size == rank and not (self.folder / f"{name}.jsonl").exists():
                    self._shard(corpus, number, wanted, done, fresh, on_progress)
                done += wanted
                on_progress(done, fresh)
        except OSError as error:
            remedy = "make room or fix the folder, and give the same command again: it continues"
            raise RunError(
                "graphs cannot be written", key="output", got=f"{self.folder}: {error}", remedy=remedy
            ) from error
        return fresh

    def report(self, corpus: ClipCorpus, limit: int | None) -> Counter[str] | None:
        """The sum over all shards, or None while some are missing."""
        total: Counter[str] = Counter()
        left = limit
        for name, samples in corpus.shards:
            if left is None or left > 0:
                try:
                    if not (self.folder / f"{name}.jsonl").exists():
                        return None
                    total.update(json.loads((self.folder / f"{name}.tally.json").read_text()))
                except (OSError, ValueError, TypeError) as error:
                    what, remedy = "a tally cannot be read", f"delete {name}.jsonl and give the same command again"
                    raise RunError(what, key="output", got=f"{self.folder}/{name}: {error}", remedy=remedy) from error
            left = None if left is None else left - samples
        return total

    def parse(self, clip: StoredClip, tally: Counter[str]) -> Parsed | None:
        """The graphs of one clip; None where the parser knows nothing of it."""
        caption = clip.captions[0] if clip.captions else ""
        tally["clips"] += 1
        try:
            frames = self.parser.parse(clip.video, caption, clip.fps, clip.extras)
            parsed = None if frames is None else self.merging.merge(frames)
        except PlanError as error:
            tally[f"failed: {error.what}"] += 1
            return None
        if parsed is None:
            tally["nothing known"] += 1
            return None
        tally["parsed"] += 1
        tally["objects"] += len(parsed.dsg.objects)
        tally["graphs"] += len(parsed.dsg)
        tally["events"] += len(parsed.plan.events) if parsed.plan is not None else 0
        tally["relations"] += sum(len(graph.relations) for graph in parsed.dsg)
        if self.truth is not None:
            known = self.truth.parse(clip.video, caption, clip.fps, clip.extras)
            if known is not None:
                counts = self.quality.count(parsed, self.merging.merge(known))
                tally.update({f"quality/{name}": count for name, count in counts.items()})
        return parsed

    def _claim(self, corpus: ClipCorpus, limit: int | None) -> None:
        """The folder holds graphs of one parser for one corpus."""
        settings = {
            "parser": self.parser.fingerprint(),
            "merging": asdict(self.merging),
            "truth": None if self.truth is None else [self.truth.fingerprint(), asdict(self.quality)],
            "corpus": corpus.fingerprint,
            "limit": limit,
        }
        text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
        place = self.folder / SETTINGS
        self.folder.mkdir(parents=True, exist_ok=True)
        if place.exists() and place.read_text() != text:
            what = "this folder has graphs of another parser, corpus or limit"
            raise RunError(
                what, key="output", got=str(self.folder), remedy="choose another output, or delete the folder"
            )
        write_atomically(place, text)

    def _shard(
        self,
        corpus: ClipCorpus,
        number: int,
        wanted: int,
        before: int,
        fresh: Counter[str],
        on_progress: Callable[[int, Counter[str]], None],
    ) -> None:
        name = corpus.shards[number][0]
        tally: Counter[str] = Counter()
        place = self.folder / f"{name}.jsonl"
        partial = place.with_name(f"{place.name}.partial")
        try:
            with open(partial, "w", encoding="utf-8") as file:
                with_video = self.parser.needs_video
                for count, found in enumerate(islice(corpus.clips(number, with_video=with_video), wanted), start=1):
                    clip, counted = StoredClip(**found), Counter()
                    parsed = self.parse(clip, counted)
                    row = {"key": clip.key, "number": 0, "caption": clip.captions[0] if clip.captions else ""}
                    row |= {"plan": None, "scene_graphs": None, "boxes": {}} if parsed is None else parsed.to_json()
                    file.write(json.dumps(row | {"source": self.parser.name}, ensure_ascii=True) + "\n")
                    tally.update(counted)
                    fresh.update(counted)
                    on_progress(before + count, fresh)
                file.flush()
                os.fsync(file.fileno())
            write_atomically(self.folder / f"{name}.tally.json", json.dumps(tally) + "\n")
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
