"""`python -m data.precompute data=<name>`: latents and text embeddings of a dataset, once, for every training that follows."""

from __future__ import annotations

import functools
import os
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vdm.errors import ConfigError

if TYPE_CHECKING:
    from data.cache_building import CacheBuilder, Outcome
    from data.shards import ShardIndex

_LINE_SECONDS = 30.0


def main(cfg: DictConfig) -> None:
    """Make the caches of the splits that are asked for."""
    # Late, because they bring the codec and torch, and a misspelt key should be answered before.
    from hydra.utils import instantiate

    from data.cache_building import CacheBuilder
    from data.check import checked_index
    from data.decode import resolve_backend
    from data.plain_mp4 import decode_stored
    from data.precomputed import FOLDER
    from data.tar import is_remote
    from vdm.precomputing import clip_encoder

    workers = cfg.num_workers
    if workers is not None and (not isinstance(workers, int) or isinstance(workers, bool) or workers < 0):
        raise ConfigError("out of range", key="num_workers", got=workers, allowed="a whole number from 0, or null")
    root, splits = str(cfg.data.root).rstrip("/"), _splits(cfg)
    output = str(cfg.output or f"{root}/{FOLDER}")
    if is_remote(output):
        remedy = "set output=<local folder>, copy it there and name it with stage.cached"
        raise ConfigError("a cache is written to a local folder", key="output", got=output, remedy=remedy)
    clip = instantiate(cfg.data.clip)
    resolve_backend(cfg.data.backend)
    sources = [checked_index(cfg.data.name, root, split, clip=asdict(clip), is_optional=False) for split in splits]
    encoder = clip_encoder(cfg)
    encoder.latent_shape(1 if encoder.every_frame else clip.frames, clip.height, clip.width)
    builder = CacheBuilder(
        root=output,
        clip=clip,
        decoder=functools.partial(decode_stored, backend=cfg.data.backend),
        encoder=encoder,
        num_workers=len(os.sched_getaffinity(0)) if workers is None else workers,
        timeout=float(cfg.data.sample_timeout or 1e9),
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
    )
    for source in sources:
        _build(builder, source, instantiate(cfg.data.cache))


def _build(builder: CacheBuilder, source: ShardIndex, copies: Any) -> None:
    from data.reader import ShardReader
    from data.tar import is_remote

    cache = copies if is_remote(source.folder) else None
    shards = ShardReader(index=source, cache=cache, max_open=8, max_tables=8, patience=copies.patience)
    began = time.monotonic()
    with _bar() as bar:
        try:
            outcome = builder.build(source, shards, on_progress=_Meter(bar, f"{source.name}/{source.split}"))
        except KeyboardInterrupt:
            bar.stop()
            sys.stderr.write("interrupted; the same command continues\n")
            sys.exit(130)
    sys.stdout.write(_report(outcome, time.monotonic() - began) + "\n")


class _Meter:
    """Shows clips/s over the last half minute; where there is no terminal, as a line now and then."""

    def __init__(self, bar: Any, title: str):
        self.bar, self.title = bar, title
        self.task = bar.add_task(title, total=None, rate="")
        self.made: list[tuple[float, int]] = []  # (when, clips)
        self.said = time.monotonic()

    def __call__(self, done: int, total: int, broken: int) -> None:
        now = time.monotonic()
        if self.made and now - self.made[-1][0] < 0.5 and done < total:
            return
        self.made = [*self.made[-60:], (now, done)]
        rate = f"{(done - self.made[0][1]) / (now - self.made[0][0] or 1.0):,.0f} clips/s"
        self.bar.update(self.task, completed=done, total=total, rate=rate)
        if not self.bar.console.is_terminal and now - self.said > _LINE_SECONDS:
            self.said = now
            sys.stderr.write(f"{self.title}: {done:,} of {total:,}, {rate}, broken {broken:,}\n")


def _report(outcome: Outcome, seconds: float) -> str:
    from data.notes import reason_table

    if outcome.index is None:
        return f"{outcome.folder}: this process is done, others still work ({seconds:.1f} s)"
    index = outcome.index
    size = sum(shard.bytes for shard in index.shards) / 1e6
    line = f"{index.folder}: {index.num_samples:,} clips in {len(index.shards):,} shards, {size:,.1f} MB"
    line += " (were there already)" if outcome.was_finished else f", {seconds:.1f} s"
    if not outcome.broken:
        return line
    return f"{line}\n  {outcome.broken.total():,} broken samples, which training skips:\n{reason_table(outcome.broken)}"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ["{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)


def _splits(cfg: DictConfig) -> list[str]:
    asked = cfg.split
    if asked is None:
        return [split for split in dict.fromkeys((cfg.data.train_split, cfg.data.val_split)) if split]
    chosen = [asked] if isinstance(asked, str) else [str(split) for split in asked]
    if not chosen:
        raise ConfigError("no split to precompute", key="split", got=asked)
    return chosen


if __name__ == "__main__":
    from vdm.launch import launch

    launch(main, "precompute")
