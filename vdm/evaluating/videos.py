"""The videos of a folder, looked at and read by all processes of an evaluation together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vdm.evaluating.processes import Processes
from vdm.evaluation.folder import Folder
from vdm.evaluation.reading import Entry, FoundClip, Refusal
from vdm.types import VideoBatch

log = logging.getLogger(__name__)

Groups = Iterator[tuple[list[int], VideoBatch]]


class FoundVideos:
    """Each is looked at once; `good` ones in the order of their names, and why others are `refused`."""

    def __init__(self, folder: Folder, processes: Processes):
        self.folder, self.processes = folder, processes
        mine = processes.share(folder.listing.entries)
        if processes.is_first:
            log.info("looking at %d clips in %s", len(folder.listing.entries), folder.path)
        outcomes = processes.gathered(list(zip(mine, folder.examine(mine), strict=True)))
        by_key = {entry.key: (entry, outcome) for entry, outcome in outcomes}
        found = [by_key[entry.key] for entry in folder.listing.entries]
        self.good = [(entry, clip) for entry, clip in found if isinstance(clip, FoundClip)]
        names = {entry.key: _name(entry, folder.path) for entry, _ in found}
        self.refused = folder.listing.refused | {
            names[entry.key]: outcome for entry, outcome in found if isinstance(outcome, Refusal)
        }

    def spread(self, count: int) -> list[tuple[Entry, FoundClip]]:
        """So many of the good ones, evenly over their names."""
        return [self.good[position * len(self.good) // count] for position in range(count)]

    def groups(
        self, chosen: Sequence[tuple[Entry, FoundClip]], size: int, captions: Mapping[str, str] | None
    ) -> Groups:
        numbers = [list(range(first, min(first + size, len(chosen)))) for first in range(0, len(chosen), size)]
        mine = self.processes.share(numbers)
        groups = [[(chosen[n][0], chosen[n][1].content) for n in group] for group in mine]
        yield from zip(mine, self.folder.batches(groups, self.processes.device, captions=captions), strict=True)

    def one_by_one(
        self, chosen: Sequence[tuple[Entry, FoundClip]], captions: Mapping[str, str] | None
    ) -> Iterator[VideoBatch]:
        groups = [[(entry, clip.content)] for entry, clip in chosen]
        return self.folder.batches(groups, self.processes.device, captions=captions)


def _name(entry: Entry, folder: Path) -> str:
    path = Path(entry.path).relative_to(folder).as_posix()
    return path if entry.part is None else f"{path}#{entry.part:05d}"
