"""Parts that must fit each other, checked on plain numbers before anything is built. Named by `checks` in conf/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vdm.errors import ConfigError


def clip_fits_stride(*, autoencoder: Mapping[str, Any], frames: int, height: int, width: int) -> None:
    """The autoencoder reduces a clip by whole strides; a 2D one halves it between its levels."""
    spatial = 2 ** (len(autoencoder["multipliers"]) - 1)
    stride = autoencoder.get("stride", (1, spatial, spatial))
    for key, size, step in zip(("frames", "height", "width"), (frames, height, width), stride, strict=True):
        if size % step:
            below, above = size // step * step, (size // step + 1) * step
            raise ConfigError(
                f"the autoencoder reduces {key} by {step}, which does not divide the clip",
                key=f"data.clip.{key}",
                got=size,
                allowed=f"multiples of {step}",
                remedy=f"set data.clip.{key}={below or above}, or another stride with autoencoder.stride",
            )


def steps_are_given(*, max_steps: int, max_epochs: int | None) -> None:
    """Training is counted in steps: the data is an endless stream."""
    if max_steps < 1:
        raise ConfigError("training needs a number of steps", key="trainer.max_steps", got=max_steps, allowed=">= 1")
    if max_epochs not in (None, -1):
        remedy = "set trainer.max_steps instead; samples per epoch / (batch size x ranks) is one epoch"
        raise ConfigError(
            "training is counted in steps, not epochs", key="trainer.max_epochs", got=max_epochs, remedy=remedy
        )


def resume_is_known(*, resume: str) -> None:
    """`auto`, `never`, or the folder of a run or checkpoint."""
    if not isinstance(resume, str) or not resume:
        raise ConfigError("unknown way to resume", key="resume", got=resume, allowed="auto, never, or a run folder")


def seed_is_whole(*, seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError("the seed is a whole number", key="seed", got=seed, allowed="0 to 4294967295")
