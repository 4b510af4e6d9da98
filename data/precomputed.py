"""Caches of latents and text embeddings, as `python -m data.precompute` leaves them, in the place of the videos.

<root>/cached/<recipe>/<split>/shard-000000.tar ... index.json

A cache has the shards of its source again: the same files with the same samples in the same order, each as <key>.json (the
source's) and <key>.npz (its arrays). So the plan, and with it every batch, is the same with a cache and without. A sample
that training would skip is in its place, and says why it is skipped. The index says what made the arrays; where that is
not what a run would have made itself, the cache is not read.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from data.reader import BrokenSample
from data.samples import Clip, ClipReader, ClipSettings, Decoder, metadata
from data.shards import ShardIndex, read_index
from data.tar import is_remote
from vdm.errors import DataError

log = logging.getLogger(__name__)

FOLDER, LATENT, BROKEN, AUTO = "cached", "latent", "broken", "auto"
_NO_PIXELS = ClipSettings(frames=1, frame_stride=1, height=1, width=1)  # batches have room for pixels, here for none


@dataclass(frozen=True)
class CachedSplit:
    """A cache that was found to be what the run would have made. Of `arrays`, by name their dtype, only these are read."""

    index: ShardIndex
    arrays: Mapping[str, str]
    every_frame: bool  # latents of all stored frames, cut like these; else of the only clip there is

    @property
    def worth(self) -> tuple[int, bool]:
        """What a run that may choose goes by: how much it has, then how exact that is."""
        return len(self.arrays), self.arrays[LATENT] == "float32"


def settings_of_clip(clip: ClipSettings, *, every_frame: bool) -> dict[str, int]:
    """What decides the pixels that a cache was made of."""
    settings = asdict(clip)
    return {name: settings[name] for name in ("height", "width")} if every_frame else settings


def recipe_name(settings: Mapping[str, Any]) -> str:
    """Name of the folder for the caches that are made in one way, of whatever source."""
    recipe = {name: value for name, value in settings.items() if name != "source"}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def caches_in(root: str) -> list[str]:
    """The folders of a data root that may be caches, the newest first."""
    folder = f"{root}/{FOLDER}"
    if is_remote(root) or not os.path.isdir(folder):
        return []
    found = [entry for entry in os.scandir(folder) if entry.is_dir()]
    return [entry.path for entry in sorted(found, key=lambda entry: (-entry.stat().st_mtime, entry.name))]


def open_cache(
    folder: str, source: ShardIndex, clip: ClipSettings, made_by: Mapping[str, Any]
) -> tuple[CachedSplit | None, list[str], list[str]]:
    """The cache of a split, if it is the run's; why it is not; and which conditions in it are of another encoder."""
    try:
        index = read_index(f"{folder}/{source.split}")
        settings = index.settings
        cached_clip, arrays, theirs = settings["clip"], settings["arrays"], settings["made_by"]
        every_frame = "frames" not in cached_clip
        reasons = []
        if settings["source"] != source.fingerprint:
            reasons.append(_differs("the source shards", settings["source"], source.fingerprint))
        elif [(one.file, one.samples) for one in index.shards] != [(one.file, one.samples) for one in source.shards]:
            reasons.append("the shards do not match those of the source")
        reasons += _differences("data.clip", cached_clip, settings_of_clip(clip, every_frame=every_frame))
        reasons += _differences("autoencoder", theirs["autoencoder"], made_by["autoencoder"])
        others, unused = [], set()
        for name, ours in theirs["conditions"].items():
            if found := _differences(f"condition {name}", ours, made_by["conditions"].get(name, {})):
                unused |= {name, f"{name}_mask"}
                others += found if name in made_by["conditions"] else []
        wanted = {name: dtype for name, dtype in arrays.items() if name not in unused}
    except DataError as error:
        return None, [f"{error.what} ({error.got})"], []
    except (KeyError, TypeError, AttributeError) as error:
        return None, [f"its index is not that of a cache ({type(error).__name__}: {error})"], []
    if reasons:
        return None, reasons, []
    # Under the source's fingerprint: a run may go on with a cache or without, and one quarantine serves both.
    return CachedSplit(replace(index, fingerprint=source.fingerprint), wanted, every_frame), [], others


def find_cache(
    wanted: str, root: str, source: ShardIndex, clip: ClipSettings, made_by: Callable[[], Mapping[str, Any]]
) -> tuple[str, CachedSplit] | None:
    """Folder and training split of the cache that is named, or, for auto, of the one with the most to offer."""
    folders = caches_in(root) if wanted == AUTO else [wanted.rstrip("/")]
    made = made_by() if folders else {}
    best, refused = None, []
    for folder in folders:
        found, reasons, others = open_cache(folder, source, clip, made)
        if found is None or (others and wanted != AUTO):
            refused.append((folder, [*reasons, *others]))
        elif best is None or found.worth > best[1].worth:
            best = (folder, found)
    if wanted != AUTO and refused:
        raise DataError(
            "this cache is not what this run would make",
            key="stage.cached",
            got="\n           ".join([wanted, *refused[0][1]]),
            remedy="make it again with python -m data.precompute, or set stage.cached=auto to use only what fits",
        )
    for folder, reasons in refused if best is None else ():
        log.info("the cache %s is not used: %s", folder, "; ".join(reasons))
    return best


class CachedClips:
    """Reads what `ClipReader` would make of the same samples, with arrays in the place of pixels."""

    extensions = ("json", "npz", BROKEN)
    clip = _NO_PIXELS

    def __init__(self, *, cached: CachedSplit, clip: ClipSettings, seed: int, extras: Sequence[str], decoder: Decoder):
        self.cached = cached
        self.videos = ClipReader(clip=clip, seed=seed, extras=extras, decoder=decoder)

    def cut_to(self, frames: int, height: int, width: int) -> CachedClips:
        return self

    def read(self, key: str, members: dict[str, bytes], epoch: int) -> Clip:
        """One sample. BrokenSample where training on the videos would have met one."""
        if BROKEN in members:
            raise self._broken(key, members[BROKEN])
        if not members.get("json") or not members.get("npz"):
            raise self._damaged(key, "a member is missing")
        info = metadata(key, members["json"])
        choice = self.videos.choose(key, info, epoch)
        asked = self.videos.truths(info, None, choice) if self.videos.extras else {}
        # One embedding of each caption: this one's. Arrays of tokens are never cut in time, whatever their length.
        stored = {name: name if name == LATENT else f"{name}.{choice.caption}" for name in self.cached.arrays}
        try:
            with np.load(io.BytesIO(members["npz"]), allow_pickle=False) as content:
                arrays = {name: content[member] for name, member in stored.items()}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise self._damaged(key, f"{type(error).__name__}: {error}") from error
        if self.cached.every_frame:
            window = choice.window
            arrays[LATENT] = arrays[LATENT][:, window.start : window.stop : window.step]
        nothing = np.zeros((1, 1, 1, 3), np.uint8)
        return Clip(nothing, choice.text, choice.fps, key, asked | arrays)

    def _broken(self, key: str, content: bytes) -> Exception:
        try:
            reason = json.loads(content)
            return BrokenSample(str(reason["kind"]), str(reason["detail"]))
        except (ValueError, KeyError, TypeError) as error:
            return self._damaged(key, f"{type(error).__name__}: {error}")

    def _damaged(self, key: str, detail: str) -> DataError:
        remedy = "delete the folder and precompute again"
        return DataError("the cache is damaged", key="stage.cached", got=f"{key} in {self.cached.index.folder}: {detail}",
                         remedy=remedy)  # fmt: skip


def batch_of_latents(batch: Any, arrays: Mapping[str, str]) -> Any:
    """From what the loader collated to what a stage reads: `latent` (b c t h w) instead of `video`. In place."""
    extras = batch["extras"]
    for name, dtype in arrays.items():
        if dtype == "bfloat16":  # numpy has none: its bits travel as integers
            extras[name] = extras[name].view(torch.bfloat16)
    batch["latent"] = extras.pop(LATENT)
    del batch["video"]
    if not extras:
        del batch["extras"]
    return batch


def _differences(what: str, cached: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    names = sorted(cached.keys() | wanted.keys())
    return [
        _differs(f"{what}: {name}", cached.get(name), wanted.get(name))
        for name in names
        if cached.get(name) != wanted.get(name)
    ]


def _differs(what: str, cached: Any, wanted: Any) -> str:
    short = [str(value)[:12] if isinstance(value, str) else value for value in (cached, wanted)]
    return f"{what} is {short[0]} in the cache and {short[1]} here"
