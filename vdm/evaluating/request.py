"""What was asked for, checked before anything heavy is imported. Named by `checks` in conf/evaluate.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vdm.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from vdm.errors import ConfigError


def is_possible(*, videos: Any, reference: Any, run: Any, stage: Any, target: str) -> None:
    """A run or a folder of videos, and folders that are there. `target` is the protocol's code."""
    if videos is not None and run is not None:
        raise ConfigError("a run or a folder of videos is measured", key="videos", got=f"run={run} videos={videos}",
                          remedy="leave one of them out")  # fmt: skip
    if (videos is not None or reference is not None) and target.endswith("Reconstruction"):
        raise ConfigError("this protocol measures a network, not videos", key="videos" if videos else "reference",
                          got=f"a protocol of stage={stage}", remedy="choose another, such as protocol=ucf101")  # fmt: skip
    for key, folder in (("videos", videos), ("reference", reference)):
        if folder is not None and not Path(str(folder)).is_dir():
            raise ConfigError("there is no such folder", key=key, got=folder)


def numbers_are_in_range(
    *,
    seed: NonNegativeInt,
    batch_size: PositiveInt,
    num_workers: NonNegativeInt,
    report: bool,
    frames: PositiveInt | None,
    stride: PositiveInt | None,
    height: PositiveInt | None,
    width: PositiveInt | None,
    fps: PositiveFloat | None,
    still_fps: PositiveFloat,
    grey: Literal["refuse", "take"],
    max_pixels: PositiveInt,
    enlarge: PositiveFloat,
    timeout: PositiveFloat,
    memory: PositiveFloat,
) -> None:
    """Its annotations say all."""
