"""Are the shards of a dataset there, whole, and large enough for the clips that training takes? Asked before anything heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.buckets import Bucket, buckets_of
from data.remote import Patience
from data.shards import ShardIndex, read_index
from vdm.errors import ConfigError, DataError


def shards_are_there(*, data: Mapping[str, Any]) -> None:
    """Named by `checks` in conf/; `data` is the group as settings, not as objects."""
    for split in filter(None, (data["train_split"], data["val_split"])):
        is_optional = split == data["val_split"]
        root = str(data["root"]).rstrip("/")
        times = {name: data["cache"][name] for name in ("retries", "pause", "timeout")}
        buckets = buckets_of(data["buckets"]) if split == data["train_split"] else ()
        checked_index(data["name"], root, split, clip=data["clip"], is_optional=is_optional, buckets=buckets,
                      patience=Patience(**times), max_lost=data["max_broken"])  # fmt: skip


def checked_index(
    name: str,
    root: str,
    split: str,
    *,
    clip: Mapping[str, int],
    is_optional: bool,
    buckets: Sequence[Bucket] = (),
    patience: Patience | None = None,
    max_lost: float = 0.0,
) -> ShardIndex:
    """The index of a split, or an error that says which command makes it or which setting fits it."""
    folder = f"{root}/{split}"
    command = f"python -m data.prepare data={name}"
    place = "data.root, or paths.data_root above it"
    try:
        index = read_index(folder, patience=patience, max_lost=max_lost)
    except DataError as error:
        remedy = f"make the shards: {command}; or point {place} at the folder that has them"
        if is_optional:
            remedy += "; without validation: data.val_split=null"
        raise DataError(error.what, key=place, got=error.got, allowed=error.allowed, remedy=remedy) from error
    if index.name != name or index.split != split:
        got, allowed = f"{index.name}/{index.split} in {folder}", f"{name}/{split}"
        raise DataError("these shards are of another dataset", key=place, got=got, allowed=allowed, remedy=command)
    stored = index.settings.get("store", {})
    _clip_fits("data.clip", clip, stored)
    for number, bucket in enumerate(buckets):
        sizes = {"frames": bucket.frames, "height": bucket.height, "width": bucket.width}
        _clip_fits(f"data.buckets[{number}]", {**clip, **sizes}, stored)
    return index


def _clip_fits(key: str, clip: Mapping[str, int], stored: Mapping[str, int]) -> None:
    stride = clip["frame_stride"]
    wanted = {"frames": (clip["frames"] - 1) * stride + 1, "height": clip["height"], "width": clip["width"]}
    # Clips are at most `frames` long, and at least `min_frames`: only that many are in every one.
    limits = {**stored, "frames": stored.get("min_frames", stored.get("frames"))}
    for name, size in wanted.items():
        limit = limits.get(name)
        if limit is not None and size > limit:
            every = f" at frame_stride {stride}" if name == "frames" else ""
            raise ConfigError(
                f"training wants more {name} than the shards hold",
                key=f"{key}.{name}",
                got=f"{clip[name]}{every}, needs {size}",
                allowed=f"up to {limit}",
                remedy=f"lower it, or prepare again with a larger data.store.{name}",
            )
