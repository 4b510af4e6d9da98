"""`python -m dysen.plan`: plan a prompt, or the captions of a whole dataset into files beside its shards."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vdm.errors import ConfigError, DataError
from vdm.runs import write_atomically

if TYPE_CHECKING:
    from dysen.planner import Planned, Planner
    from dysen.planning_corpus import Corpus, Tally

_LINE_SECONDS = 30.0
_SHOWN = 8  # kinds of repairs and failures in the printed report


def main(cfg: DictConfig) -> None:
    """Plan what is asked for."""
    _check(cfg)
    if cfg.prompt is not None:
        planner = _planner(cfg)
        try:
            _one(planner, str(cfg.prompt), cfg.out)
        finally:
            planner.llm.close()
        return
    corpus = _built(cfg.corpus)
    if cfg.write_pool is not None:
        _pool(corpus, cfg)
        return
    planner = _planner(cfg)
    try:
        _corpus(planner, corpus, cfg)
    finally:
        planner.llm.close()


def _planner(cfg: DictConfig) -> Planner:
    from dysen.llm.replay import recorded

    planner = _built(cfg.planner)
    planner.llm = recorded(planner.llm, cfg.record)
    return planner


def _built(node: DictConfig) -> Any:
    """What a part of the configuration names."""
    # Late, because language models may bring torch, and a misspelt key should be answered before.
    from hydra.utils import instantiate

    return instantiate(node, _convert_="all")


def _one(planner: Planner, prompt: str, out: str | None) -> None:
    """One prompt: its plan and graphs as json and as a drawing, or printed."""
    from dysen.drawing import draw
    from dysen.text_form import dsg_to_text, plan_to_text

    planned = planner.plan([prompt])[0]
    sys.stderr.writelines(f"{line}\n" for line in _remarks(planned))
    if planned.plan is None or planned.dsg is None:
        sys.stdout.write("no plan: the caption stands for itself\n")
    elif out is None:
        sys.stdout.write(f"{plan_to_text(planned.plan)}\n\n{dsg_to_text(planned.dsg)}\n")
    if out is None:
        return
    place = Path(out)
    if place.suffix != ".json":
        raise ConfigError("plans are written as json", key="out", got=out, remedy=f"out={place.with_suffix('.json')}")
    written = [place]
    try:
        content = json.dumps(planned.to_json(), ensure_ascii=False, indent=1) + "\n"
        write_atomically(place, content.encode("utf-8", "replace").decode())
        if planned.plan is not None:
            drawing = place.with_suffix(".svg")
            draw(planned.plan, planned.dsg, prompt).save(drawing)
            written.append(drawing)
    except OSError as error:
        raise DataError("the plan cannot be written", key="out", got=f"{out}: {error}") from error
    sys.stdout.write(f"{', '.join(map(str, written))}\n")


def _remarks(planned: Planned) -> list[str]:
    """What a user should know of how a plan came about."""
    lines = [f"repaired: {repair}" for repair in planned.repairs]
    lines += [f"failed: {failure}" for failure in planned.failures]
    return lines + ([f"the plan is from: {planned.source}"] if planned.source != "model" else [])


def _corpus(planner: Planner, corpus: Corpus, cfg: DictConfig) -> None:
    from dysen.planning_corpus import REPORT, CorpusPlanner

    folder = _folder(planner, corpus, cfg)
    task = CorpusPlanner(
        planner=planner, folder=folder, captions=cfg.captions, batch=cfg.batch, max_fallbacks=cfg.max_fallbacks
    )
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
    report = _report(whole, fresh, planner, time.monotonic() - began)
    try:
        write_atomically(folder / REPORT, json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise DataError("the report cannot be written", key="output", got=f"{folder}: {error}") from error
    sys.stdout.write(_printed(folder, report) + "\n")


def _folder(planner: Planner, corpus: Corpus, cfg: DictConfig) -> Path:
    """A trial with a limit has a folder of its own."""
    parts = [planner.name] + ["first"] * (cfg.captions == "first") + ([] if cfg.limit is None else [str(cfg.limit)])
    place = cfg.output or f"{corpus.folder}/plans/{'-'.join(parts)}"
    if "://" in place or "::" in place:
        raise ConfigError(
            "plans are written to a local folder", key="output", got=place, remedy="output=<local folder>"
        )
    return Path(place)


def _report(whole: Tally, fresh: Tally, planner: Planner, seconds: float) -> dict[str, Any]:
    """What was counted over all plans, and how fast this run was."""
    content = whole.to_json()
    run = {"captions": fresh.captions, "calls": fresh.calls, "cached": fresh.cached, "seconds": round(seconds, 2),
           "captions_per_second": round(fresh.captions / seconds, 2),
           "prompts_per_second": round(fresh.calls / seconds, 2)}  # fmt: skip
    return {
        "planner": planner.name,
        "captions": content.pop("captions"),
        "events_per_caption": round(whole.events_per_caption, 3),
        "fallbacks": round(whole.fallbacks, 5),
        "cost": planner.llm.cost(whole.prompt_tokens, whole.answer_tokens),
        **{name: value for name, value in content.items() if name != "cached"},
        "this_run": run,
    }


def _printed(folder: Path, report: dict[str, Any]) -> str:
    run = report["this_run"]
    speed = f"{run['captions_per_second']:,.1f} captions/s, {run['prompts_per_second']:,.1f} prompts/s"
    done = f"in {run['seconds']:.1f} s, {speed}" if run["captions"] else "(were there already)"
    lines = [f"{folder}: {report['captions']:,} captions {done}"]
    lines.append(f"  events per caption {report['events_per_caption']:.2f}, planned by " + _counts(report["sources"]))
    cost = "" if report["cost"] is None else f", cost {report['cost']:,.4f}"
    lines.append(f"  {report['calls']:,} questions ({run['cached']:,} of this run from the cache), {report['errors']:,} without "
                 f"answer, {report['prompt_tokens']:,} + {report['answer_tokens']:,} tokens{cost}")  # fmt: skip
    lines += [f"  {name}: {_counts(report[name])}" for name in ("repairs", "failures") if report[name]]
    return "\n".join(lines)


def _counts(counted: dict[str, int]) -> str:
    often = sorted(counted.items(), key=lambda entry: -entry[1])
    more = f", {len(often) - _SHOWN} more kinds" if len(often) > _SHOWN else ""
    return ", ".join(f"{name} {count:,}" for name, count in often[:_SHOWN]) + more


def _pool(corpus: Corpus, cfg: DictConfig) -> None:
    """The truth of the first clips of a split as demonstrations, one caption of each."""
    from dysen.demonstrations import Demonstration, demonstration_of, write_pool

    def chosen() -> Any:
        for number in range(len(corpus.shards)):
            for key, captions, extras in corpus.read(number):
                if captions:
                    nth = int.from_bytes(hashlib.sha256(f"{cfg.seed}:{key}".encode()).digest()[:4], "big") % len(
                        captions
                    )
                    yield demonstration_of(key, captions[nth], extras)

    found: list[Demonstration] = list(islice(chosen(), cfg.write_pool))
    count = write_pool(str(cfg.pool), found)
    sys.stdout.write(f"{cfg.pool}: {count:,} demonstrations\n")


class _Meter:
    """Shows questions/s over the last half minute; where there is no terminal, as a line now and then."""

    def __init__(self, bar: Any, title: str, total: int):
        self.bar, self.title, self.total = bar, title, total
        self.task = bar.add_task(title, total=total, rate="")
        self.made: list[tuple[float, int]] = [(time.monotonic(), 0)]  # (when, questions)
        self.said = time.monotonic()

    def __call__(self, done: int, tally: Tally) -> None:
        now = time.monotonic()
        self.made = [(when, calls) for when, calls in self.made if now - when < _LINE_SECONDS] or self.made[-1:]
        self.made.append((now, tally.calls))
        first = self.made[0]
        rate = f"{(tally.calls - first[1]) / (now - first[0] or 1.0):,.1f} prompts/s"
        self.bar.update(self.task, completed=done, rate=rate)
        if not self.bar.console.is_terminal and now - self.said > _LINE_SECONDS:
            self.said = now
            sys.stderr.write(f"{self.title}: {done:,} of {self.total:,} clips, {rate}, {tally.cached:,} from the cache, "
                             f"fallbacks {tally.fallbacks:.1%}\n")  # fmt: skip


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ["{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)


def _check(cfg: DictConfig) -> None:
    for key, is_optional in (("batch", False), ("limit", True), ("write_pool", True)):
        value = cfg[key]
        if not (value is None and is_optional) and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            allowed = "a whole number from 1" + (", or null" if is_optional else "")
            raise ConfigError("out of range", key=key, got=value, allowed=allowed)
    share = cfg.max_fallbacks
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
        raise ConfigError("out of range", key="max_fallbacks", got=share, allowed="a share from 0 to 1")
    if cfg.captions not in ("all", "first"):
        raise ConfigError("no such choice", key="captions", got=cfg.captions, allowed=("all", "first"))
    if not isinstance(cfg.split, str):
        raise ConfigError("one split at a time", key="split", got=cfg.split)
    if cfg.out is not None and cfg.prompt is None:
        raise ConfigError(
            "out is where the plan of a prompt goes", key="out", got=cfg.out, remedy="plans of a dataset: output="
        )


if __name__ == "__main__":
    from vdm.launch import launch
    from vdm.sampling.request import verbatim

    sys.argv[1:] = verbatim(sys.argv[1:], keys=("prompt", "out", "output", "pool", "record"))
    launch(main, "plan")
