"""The videos below a folder, by name: published sets are unpacked into any folders, and many of their videos are gone."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable

from data.tables import VIDEO_SUFFIXES, need_folder
from vdm.errors import DataError

log = logging.getLogger(__name__)

_SUFFIXES = tuple(dict.fromkeys(suffix.lower() for suffix in VIDEO_SUFFIXES))


def videos_below(folder: str, *, what: str, remedy: str) -> dict[str, str]:
    """File name without its ending -> path. Of two files of one name the same one is taken on every machine."""
    key = "data.source.videos"
    need_folder(folder, key=key, what=f"the folder of {what} videos", remedy=remedy)
    found: dict[str, tuple[int, str]] = {}
    entered: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        entered.add(os.path.realpath(place))
        folders[:] = sorted(f for f in folders if os.path.realpath(os.path.join(place, f)) not in entered)
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() in _SUFFIXES:
                candidate = (_SUFFIXES.index(suffix.lower()), os.path.join(place, file))
                found[stem] = min(found.get(stem, candidate), candidate)
    if not found:
        raise DataError(f"no video of {what} is in its folder", key=key, got=folder,
                        allowed=f"files that end in {', '.join(_SUFFIXES)}", remedy=remedy)  # fmt: skip
    return {stem: path for stem, (_, path) in found.items()}


def say_missing(paths: Iterable[str], *, what: str, folder: str, remedy: str) -> None:
    """Before hours of work: how many videos are not there ("" among `paths`). DataError when not one is."""
    paths = list(paths)
    missing = sum(not path for path in paths)
    if paths and missing == len(paths):
        got = f"{missing:,} of {len(paths):,} videos are missing below {folder}"
        raise DataError(f"none of the videos of {what} is there", key="data.source.videos", got=got, remedy=remedy)
    if missing:
        _say(f"{what}: {missing:,} of {len(paths):,} videos are missing below {folder}")


@functools.cache  # a source is asked for its items more than once
def _say(line: str) -> None:
    log.warning("%s", line)
