"""What a study is asked for, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from vdm.bounds import NonNegativeInt, PositiveInt
from vdm.errors import ConfigError, DataError, RunError

MOST = 8  # systems beside each other


def can_be_made(
    *,
    samples: Sequence[str],
    names: Sequence[str] | None,
    to: str,
    items: PositiveInt | None,
    match: Literal["auto", "key", "prompt"],
    seed: NonNegativeInt,
    points: PositiveInt,
    questions: Mapping[str, str],
) -> None:
    if not 2 <= len(samples) <= MOST:
        raise ConfigError("a study compares several systems", key="samples", got=f"{len(samples)} folders",
                          allowed=f"2 to {MOST}", remedy="name their folders: samples=[<folder>,<folder>]")  # fmt: skip
    for folder in samples:
        if not Path(folder).is_dir():
            raise DataError("there is no such folder of samples", key="samples", got=folder)
    titles = names if names is not None else titles_of(samples)
    if len(titles) != len(samples) or len(set(titles)) != len(titles):
        raise ConfigError("every system needs a name of its own", key="names", got=list(titles),
                          remedy=f"give {len(samples)} different names")  # fmt: skip
    if not 2 <= points <= 11:
        raise ConfigError("this is no scale", key="points", got=points, allowed="2 to 11")
    if not questions:
        raise ConfigError("a study asks something", key="questions", got="no question")
    if Path(to).exists():
        raise RunError("this folder is there already, and people may have rated what is in it", key="to", got=to,
                       remedy="name another one, or remove it yourself")  # fmt: skip


def can_be_counted(*, key: str, ratings: str | Sequence[str], draws: PositiveInt, seed: NonNegativeInt) -> None:
    if not Path(key).is_file():
        raise DataError(
            "there is no key of a study here", key="key", got=key, allowed="key.json of evaluate.py study make"
        )
    for place in [ratings] if isinstance(ratings, str) else ratings:
        if not Path(place).exists():
            raise DataError("there are no ratings here", key="ratings", got=place)


def titles_of(samples: Sequence[str]) -> list[str]:
    """Names of folders, as much of their paths as tells them apart."""
    paths = [Path(folder).absolute().parts for folder in samples]
    for depth in range(1, max(map(len, paths)) + 1):
        found = ["/".join(path[-depth:]) for path in paths]
        if len(set(found)) == len(found):
            return found
    return [str(folder) for folder in samples]
