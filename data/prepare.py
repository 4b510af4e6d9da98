"""`python -m data.prepare data=<name>`: turn a dataset into shards, or verify the shards that are there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vdm.errors import ConfigError, suggest

if TYPE_CHECKING:
    from data.building import Outcome, Progress, SplitBuilder

_LINE_SECONDS = 30.0


def main(cfg: DictConfig) -> None:
    """Prepare or verify the splits that are asked for."""
    # Late, because they bring the codec and torch, and a misspelt key should be answered before.
    from hydra.utils import instantiate

    from data.building import SplitBuilder
    from data.records import StoreSettings
    from data.tar import is_remote

    _check(cfg)
    source = instantiate(cfg.data.source)
    splits = _splits(cfg.split, source.splits())
    if cfg.verify:
        for split in splits:
            _verify(f"{cfg.data.root}/{split}")
        return
    if is_remote(str(cfg.data.root)):
        remedy = "prepare into a local folder and copy it there"
        raise ConfigError("shards are written to a local folder", key="data.root", got=cfg.data.root, remedy=remedy)
    store = StoreSettings(
        **{k: v for k, v in OmegaConf.to_container(cfg.data.store, resolve=True).items() if k != "_target_"}
    )
    builder = SplitBuilder(
        name=cfg.data.name,
        source=source,
        root=str(cfg.data.root),
        store=store,
        clips_per_video=cfg.clips_per_video,
        min_frames=_min_frames(cfg, store.frames),
        num_workers=len(os.sched_getaffinity(0)) if cfg.num_workers is None else cfg.num_workers,
        timeout=float(cfg.timeout),
        max_rejected=float(cfg.max_rejected),
        limit=cfg.limit,
    )
    if len(splits) > 1:
        for split in splits:  # what is missing for the last split is said before the hours that the first one takes
            source.items(split)
    for split in splits:
        _build(builder, split, overwrite=cfg.overwrite)


def _build(builder: SplitBuilder, split: str, *, overwrite: bool) -> None:
    began = time.monotonic()
    with _bar() as bar:
        meter = _Meter(bar, f"{builder.name}/{split}")
        try:
            outcome = builder.build(split, overwrite=overwrite, on_progress=meter)
        except KeyboardInterrupt:
            bar.stop()
            sys.stderr.write("interrupted; the same command continues\n")
            sys.exit(130)
    sys.stdout.write(_report(outcome, time.monotonic() - began) + "\n")


class _Meter:
    """Shows clips/s of this attempt, over the last half minute; where there is no terminal, as a line now and then."""

    def __init__(self, bar: Any, title: str):
        self.bar, self.title = bar, title
        self.task = bar.add_task(title, total=None, rejected=0, rate="")
        self.made: list[tuple[float, int]] = []  # (when, clips)
        self.said = time.monotonic()

    def __call__(self, progress: Progress, total: int) -> None:
        now = time.monotonic()
        if self.made and now - self.made[-1][0] < 0.5 and progress.items < total:
            return
        self.made = [*self.made[-60:], (now, progress.clips)]
        rate = (progress.clips - self.made[0][1]) / (now - self.made[0][0] or 1.0)
        state = {"completed": progress.items, "total": total, "rejected": progress.rejected}
        self.bar.update(self.task, **state, rate=f"{rate:,.0f} clips/s")
        if not self.bar.console.is_terminal and now - self.said > _LINE_SECONDS:
            self.said = now
            line = (
                f"{self.title}: {progress.items:,} of {total:,}, {rate:,.0f} clips/s, rejected {progress.rejected:,}\n"
            )
            sys.stderr.write(line)


def _report(outcome: Outcome, seconds: float) -> str:
    from data.notes import REJECTED, reason_table

    index = outcome.index
    size = sum(shard.bytes for shard in index.shards) / 1e6
    lines = [f"{index.folder}: {index.num_samples:,} clips in {len(index.shards):,} shards, {size:,.1f} MB"]
    lines[0] += " (were there already)" if outcome.was_finished else f", {seconds:.1f} s"
    if rejected := outcome.rejected.total():
        lines += [f"  rejected {rejected:,} of {outcome.items:,} items, named in {index.folder}/{REJECTED}:"]
        lines += [reason_table(outcome.rejected)]
    return "\n".join(lines)


def _verify(folder: str) -> None:
    from data.shards import read_index, verify_shards

    index = read_index(folder)
    with _bar() as bar:
        task = bar.add_task(folder, total=len(index.shards), rejected=0, rate="")
        verify_shards(index, on_shard=lambda _: bar.advance(task))
    sys.stdout.write(f"{folder}: {len(index.shards):,} shards with {index.num_samples:,} samples are whole\n")


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ["{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
    columns += [TextColumn("rejected {task.fields[rejected]}"), TimeRemainingColumn()]
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _splits(asked: Any, known: Sequence[str]) -> list[str]:
    chosen = list(known) if asked is None else [asked] if isinstance(asked, str) else [str(split) for split in asked]
    for split in chosen:
        if split not in known:
            raise ConfigError(
                "the source has no such split", key="split", got=split, allowed=known, remedy=suggest(split, known)
            )
    if not chosen:
        raise ConfigError("no split to prepare", key="split", got=asked, allowed=known)
    return chosen


def _min_frames(cfg: DictConfig, frames: int) -> int:
    clip = cfg.data.get("clip")
    if cfg.min_frames is not None:
        needed, key = cfg.min_frames, "min_frames"
    elif clip is None:
        needed, key = frames, "data.store.frames"
    else:
        needed, key = (clip.frames - 1) * clip.get("frame_stride", 1) + 1, "data.clip"
    if not 1 <= needed <= frames:
        remedy = "raise data.store.frames, or take fewer frames at a smaller stride"
        raise ConfigError("stored clips would be shorter than needed", key=key, got=f"{needed} frames",
                          allowed=f"1 to data.store.frames={frames}", remedy=remedy)  # fmt: skip
    return needed


def _check(cfg: DictConfig) -> None:
    whole = {"num_workers": (0, True), "clips_per_video": (1, True), "min_frames": (1, True), "limit": (1, True)}
    for key, (low, is_optional) in whole.items():
        value = cfg[key]
        if value is None and is_optional:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise ConfigError("out of range", key=key, got=value, allowed=f"a whole number from {low}, or null")
    for key, low, high in (("timeout", 0.0, 1e6), ("max_rejected", -1e-9, 1.0)):
        value = cfg[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not low < value <= high:
            allowed = "seconds above 0" if key == "timeout" else "a rate from 0 to 1"
            raise ConfigError("out of range", key=key, got=value, allowed=allowed)
    for key in ("overwrite", "verify"):
        if not isinstance(cfg[key], bool):
            raise ConfigError("not a switch", key=key, got=cfg[key], allowed="true, false")
    if cfg.overwrite and cfg.verify:
        raise ConfigError("verify=true changes nothing, overwrite=true makes everything again", key="verify, overwrite")


if __name__ == "__main__":
    from vdm.launch import launch

    launch(main, "prepare")
