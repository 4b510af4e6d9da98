"""Whole stored clips with what is known of them, shard by shard: what a parser of videos reads."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from data.captions import CaptionCorpus
from data.plain_mp4 import decode_stored
from data.reader import BrokenSample
from data.samples import captions_of, metadata
from data.shard_cache import ShardCache
from vdm.errors import DataError


class ClipCorpus(CaptionCorpus):
    """The samples of one split, shard by shard, with their videos where they are asked for.

    Args:
        name: of the dataset, for messages.
        root: where its splits lie.
        split: which of them.
        cache: local copies of remote shards.
        backend: decoder.
    """

    def __init__(self, *, name: str, root: str, split: str, cache: ShardCache, backend: str):
        super().__init__(name=name, root=root, split=split, cache=cache)
        self.backend = backend

    def clips(self, shard: int, *, with_video: bool) -> Iterator[dict[str, Any]]:
        """Key, captions, fps, extras and video of each sample. A broken one is left out, as training leaves it out."""
        for nth in range(self.index.shards[shard].samples):
            try:
                key, members = self._reader.read(shard, nth, ("mp4", "json") if with_video else ("json",))
                yield self._clip(key, members, with_video)
            except (BrokenSample, DataError, KeyError, TypeError, ValueError):
                continue

    def _clip(self, key: str, members: dict[str, bytes], with_video: bool) -> dict[str, Any]:
        info = metadata(key, members["json"])
        facts = {name: int(info[name]) for name in ("frames", "height", "width")}
        source = info.get("source")
        facts |= {"key": key, "source": source if isinstance(source, dict) else {}}
        video = None
        if with_video:
            if info.get("crc32", zlib.crc32(members["mp4"])) != zlib.crc32(members["mp4"]):
                raise BrokenSample("damaged video", "its checksum is not the one in the json")
            video = decode_stored(members["mp4"], range(facts["frames"]), self.backend)
        extras = {**(info.get("extras") or {}), **facts}
        return {"key": key, "captions": captions_of(info), "fps": float(info["fps"]), "extras": extras, "video": video}
