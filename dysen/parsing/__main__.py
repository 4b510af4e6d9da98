"""`python -m dysen.parsing`: scene graphs of the clips of a dataset into files beside its shards, or of one video."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vdm.errors import ConfigError, DataError
from vdm.runs import write_atomically

if TYPE_CHECKING:
    from dysen.parsing.corpus import ClipCorpus, CorpusParser

_LINE_SECONDS = 30.0


def main(cfg: DictConfig) -> None:
    """Parse what is asked for."""
    _check(cfg)
    if cfg.video is not None:
        _one(cfg)
        return
    corpus = _built(cfg.corpus)
    parser, truth = _built(cfg.parser), None if cfg.truth is None else _built(cfg.truth)
    _corpus(parser, truth, corpus, cfg)


def _built(node: DictConfig) -> Any:
    """What a part of the configuration names."""
    # Late, because some parsers bring torch, and a misspelt key should be answered before.
    from hydra.utils import instantiate

    return instantiate(node, _convert_="all")


def _one(cfg: DictConfig) -> None:
    """One video: its graphs as json and as a drawing."""
    from dysen.drawing import draw
    from dysen.parsing.corpus import CorpusParser, StoredClip
    from vdm.video import decode

    place = Path(cfg.out)
    # Numbers of frames, so that a part of a long video is not decoded whole.
    wanted = range(cfg.start, cfg.start + cfg.frames * cfg.stride, cfg.stride)
    video = decode(Path(cfg.video), indices=wanted)
    extras = dict(zip(("frames", "height", "width"), video.shape, strict=False)) | {"key": "video", "source": {}}
    clip = StoredClip("video", [str(cfg.caption)], cfg.fps / cfg.stride, extras, video)
    task = CorpusParser(_built(cfg.parser), _built(cfg.merging), None, _built(cfg.quality), place.parent)
    counted: Counter[str] = Counter()
    parsed = task.parse(clip, counted)
    if parsed is None or not parsed.dsg.objects:
        what = (
            f"{cfg.video}: nothing was found" if parsed is not None else f"{cfg.video}: the parser knows nothing of it"
        )
        raise DataError(what, key="video", got=", ".join(counted) or None)
    content = {"caption": str(cfg.caption), **parsed.to_json(), "source": task.parser.name}
    if parsed.plan is None:
        del content["plan"]
    drawing = place.with_suffix(f".{cfg.drawing}")
    try:
        write_atomically(place, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        draw(parsed.plan, parsed.dsg, str(cfg.caption)).save(drawing)
    except OSError as error:
        raise DataError("the graphs cannot be written", key="out", got=f"{cfg.out}: {error}") from error
    sys.stdout.write(f"{place}, {drawing}: {_summary(counted)}\n")


def _corpus(parser: Any, truth: Any, corpus: ClipCorpus, cfg: DictConfig) -> None:
    from dysen.parsing.corpus import REPORT, CorpusParser
    from dysen.parsing.quality import printed

    folder = _folder(parser.name, corpus, cfg)
    task = CorpusParser(parser, _built(cfg.merging), truth, _built(cfg.quality), folder)
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    total, began = sum(samples for _, samples in corpus.shards), time.monotonic()
    total = total if cfg.limit is None else min(total, cfg.limit)
    with _bar() as bar:
        try:
            fresh = task.run(
                corpus, limit=cfg.limit, rank=rank, world_size=world_size, on_progress=_Meter(bar, str(folder), total)
            )
        except KeyboardInterrupt:
            bar.stop()
            sys.stderr.write("interrupted; the same command continues\n")
            sys.exit(130)
    whole = task.report(corpus, cfg.limit)
    if whole is None:
        sys.stdout.write(f"{folder}: this process is done, others still work\n")
        return
    content = _report(task, whole, fresh, time.monotonic() - began)
    try:
        write_atomically(folder / REPORT, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise DataError("the report cannot be written", key="output", got=f"{folder}: {error}") from error
    run = content["this_run"]
    speed = (
        f"in {run['seconds']:.1f} s, {run['clips_per_second']:,.1f} clips/s" if run["clips"] else "(were there already)"
    )
    lines = [f"{folder}: {whole['clips']:,} clips {speed}", f"  {_summary(whole)}"]
    lines += [f"  {line}" for line in (printed(content["quality"]) if content["quality"] is not None else [])]
    sys.stdout.write("\n".join(lines) + "\n")


def _report(task: CorpusParser, whole: Counter[str], fresh: Counter[str], seconds: float) -> dict[str, Any]:
    from dysen.parsing.quality import report

    prefix = "quality/"
    counts = Counter({name.removeprefix(prefix): n for name, n in whole.items() if name.startswith(prefix)})
    return {
        "parser": task.parser.name,
        **{name: count for name, count in sorted(whole.items()) if not name.startswith(prefix)},
        "quality": report(counts) if counts else None,
        "this_run": {
            "clips": fresh["clips"],
            "seconds": round(seconds, 2),
            "clips_per_second": round(fresh["clips"] / seconds, 2),
        },
    }


def _summary(counted: Mapping[str, int]) -> str:
    kept = {name: count for name, count in counted.items() if not name.startswith("quality/") and name != "clips"}
    return ", ".join(f"{name} {count:,}" for name, count in kept.items())


def _folder(name: str, corpus: ClipCorpus, cfg: DictConfig) -> Path:
    """A trial with a limit, and a comparison, have folders of their own."""
    parts = [name] + ["judged"] * (cfg.truth is not None) + ([] if cfg.limit is None else [str(cfg.limit)])
    place = cfg.output or f"{corpus.folder}/graphs/{'-'.join(parts)}"
    if "://" in place or "::" in place:
        raise ConfigError(
            "graphs are written to a local folder", key="output", got=place, remedy="output=<local folder>"
        )
    return Path(place)


class _Meter:
    """Progress; where there is no terminal, as a line now and then."""

    def __init__(self, bar: Any, title: str, total: int):
        self.bar, self.title, self.total = bar, title, total
        self.task = bar.add_task(title, total=total)
        self.said = time.monotonic()

    def __call__(self, done: int, tally: Counter[str]) -> None:
        self.bar.update(self.task, completed=done)
        now = time.monotonic()
        if not self.bar.console.is_terminal and now - self.said > _LINE_SECONDS:
            self.said = now
            sys.stderr.write(f"{self.title}: {done:,} of {self.total:,} clips\n")


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ["{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*[TextColumn(c) if isinstance(c, str) else c for c in columns], console=Console(stderr=True),
                    transient=True)  # fmt: skip


def _check(cfg: DictConfig) -> None:
    for key, least, is_optional in (
        ("limit", 1, True),
        ("frames", 1, False),
        ("stride", 1, False),
        ("start", 0, False),
    ):
        value = cfg[key]
        if not (value is None and is_optional) and (
            not isinstance(value, int) or isinstance(value, bool) or value < least
        ):
            raise ConfigError("out of range", key=key, got=value, allowed=f"a whole number from {least}")
    if cfg.drawing not in ("svg", "png"):
        raise ConfigError("no such kind of picture", key="drawing", got=cfg.drawing, allowed=("svg", "png"))
    if not isinstance(cfg.fps, int | float) or not cfg.fps > 0:
        raise ConfigError("out of range", key="fps", got=cfg.fps, allowed="frames per second above 0")
    if not isinstance(cfg.split, str):
        raise ConfigError("one split at a time", key="split", got=cfg.split)
    if cfg.video is None:
        return
    if not str(cfg.out).endswith(".json"):
        raise ConfigError("graphs are written as json", key="out", got=cfg.out)
    if not Path(cfg.video).is_file():
        raise DataError("no such video", key="video", got=cfg.video)


if __name__ == "__main__":
    from vdm.launch import launch
    from vdm.sampling.request import verbatim

    sys.argv[1:] = verbatim(sys.argv[1:], keys=("video", "caption", "out", "output"))
    launch(main, "parsing")
