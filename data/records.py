"""What a dataset is before it becomes shards: a `Source` lists cheap items and loads each into a `Record`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vdm.errors import ConfigError, DataError
from vdm.video import PIXEL_FORMATS

KEY_LENGTH = 80  # `<key>.mp4` must fit into the 100 bytes that plain tar has for a name
_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{KEY_LENGTH}}}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One clip with its text: `frames` with their `fps`, or the `path` of a video, cut to [start, end) seconds."""

    key: str
    captions: tuple[str, ...]
    frames: np.ndarray | None = None  # T H W 3, uint8
    fps: float | None = None
    path: str | None = None
    start: float | None = None
    end: float | None = None
    source: dict[str, Any] = field(default_factory=dict)  # where it came from: free, for people
    extras: dict[str, Any] = field(default_factory=dict)  # truth that fits into json
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # truth that does not


class Source(Protocol):
    """A dataset before it is shards. Instances are pickled and sent to worker processes."""

    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the order in which they are prepared."""
        ...

    def items(self, split: str) -> Sequence[Any]:
        """Cheap, ordered, deterministic and picklable; a broken row is an item too, and `load` refuses it."""
        ...

    def load(self, item: Any) -> Record:
        """The expensive part, run in a worker process. Raises DataError for a broken item."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """The settings that decide the content, in json. What concerns one split only stands in `splits: {name: ...}`."""
        ...


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """How clips are stored. `frames` is an upper bound; `fps` null keeps each video's own rate."""

    frames: int
    height: int
    width: int
    fps: float | None
    gop: int  # frames between keyframes: short ones make a jump into a clip cheap
    crf: int  # x264 quality, 0 is lossless
    pixel_format: str
    samples_per_shard: int

    def __post_init__(self):
        for name, low in (("frames", 1), ("height", 2), ("width", 2), ("gop", 1), ("samples_per_shard", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ConfigError("a setting of the store is out of range", key=f"data.store.{name}", got=value,
                                  allowed=f"a whole number from {low}")  # fmt: skip
        if not 0 <= self.crf <= 51:
            raise ConfigError("a setting of the store is out of range", key="data.store.crf", got=self.crf,
                              allowed="0 (lossless) to 51 (worst)")  # fmt: skip
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError("a setting of the store is out of range", key="data.store.fps", got=self.fps,
                              allowed="frames per second above 0, or null to keep each video's own")  # fmt: skip
        if self.pixel_format not in PIXEL_FORMATS:
            raise ConfigError("unknown pixel format", key="data.store.pixel_format", got=self.pixel_format,
                              allowed=PIXEL_FORMATS)  # fmt: skip
        if self.pixel_format == "yuv420p" and (self.height % 2 or self.width % 2):
            raise ConfigError("yuv420p stores colour for blocks of 2x2 pixels and needs an even size",
                              key="data.store.height, data.store.width", got=f"{self.height}x{self.width}",
                              remedy="choose an even size, or data.store.pixel_format=yuv444p")  # fmt: skip


def check_key(key: str) -> str:
    """The key itself when it can name the members of a sample, else DataError."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise DataError("unusable key", got=repr(key), allowed=f"1 to {KEY_LENGTH} of A-Z a-z 0-9 _ -")
    return key
