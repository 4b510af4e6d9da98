"""The captions and stored truths of prepared shards, without their videos: what a planner of captions reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from data.reader import BrokenSample, ShardReader
from data.shard_cache import ShardCache
from data.shards import read_index
from data.tar import is_remote
from vdm.errors import DataError


class CaptionCorpus:
    """The samples of one split, shard by shard.

    Args:
        name: of the dataset, for messages.
        root: where its splits lie.
        split: which of them.
        cache: local copies of remote shards, and patience with their storage; None where they are here.
    """

    def __init__(self, *, name: str, root: str, split: str, cache: ShardCache | None):
        patience = None if cache is None else cache.patience
        try:
            self.index = read_index(f"{root.rstrip('/')}/{split}", patience=patience)
        except DataError as error:
            remedy = (
                f"make the shards: python -m data.prepare data={name}; or point data.root at the folder that has them"
            )
            raise DataError(error.what, key="data.root, split", got=error.got, remedy=remedy) from error
        copies = cache if is_remote(self.index.folder) else None
        self._reader = ShardReader(index=self.index, cache=copies, max_open=1, max_tables=1, patience=patience)

    @property
    def folder(self) -> str:
        return self.index.folder

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    @property
    def shards(self) -> list[tuple[str, int]]:
        """Name, without its ending, and number of samples of each shard."""
        return [(shard.file.removesuffix(".tar"), shard.samples) for shard in self.index.shards]

    def read(self, shard: int) -> Iterator[tuple[str, list[str], dict[str, Any]]]:
        """Key, captions and extras of the samples of a shard. A broken one is left out, as training leaves it out."""
        for nth in range(self.index.shards[shard].samples):
            try:
                key, members = self._reader.read(shard, nth, ("json",))
                sample = json.loads(members["json"])
                captions = sample["captions"] if "captions" in sample else [sample["caption"]]
                extras = sample.get("extras") or {}
            except (BrokenSample, KeyError, TypeError, ValueError):
                continue
            if isinstance(captions, list) and all(isinstance(caption, str) for caption in captions):
                yield key, captions, extras
