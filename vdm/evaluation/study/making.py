"""Makes the page of a study: clips of several systems matched, mixed by a seed, and encoded alike.

<to>/page/index.html, <to>/page/media/   for the raters: no name of a system, of a folder or of a file
<to>/key.json                            what each letter stood for
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from vdm.errors import DataError, RunError
from vdm.evaluation.report.playing import encoded_again
from vdm.evaluation.report.reading import read_cases
from vdm.evaluation.study.page import page
from vdm.evaluation.study.request import titles_of

log = logging.getLogger(__name__)

VIDEOS = (".mp4", ".gif", ".webm", ".mov", ".mkv", ".avi")
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Sample:
    """A clip of one system; the prompt is empty where nothing tells it."""

    key: str
    prompt: str
    path: Path


def make(
    *,
    samples: Sequence[str],
    names: Sequence[str] | None,
    to: str,
    items: int | None,
    match: str,
    seed: int,
    points: int,
    lowest: str,
    highest: str,
    title: str,
    instructions: str,
    questions: Mapping[str, str],
) -> Path:
    """The folder of the study."""
    systems = list(names) if names is not None else titles_of(samples)
    found = [read_samples(Path(folder)) for folder in samples]
    for folder, one in zip(samples, found, strict=True):
        if not one:
            raise DataError("there are no videos in this folder", key="samples", got=folder, allowed=VIDEOS)
    matched = matched_by(found, match)
    random.Random(seed).shuffle(matched)
    if items is not None and len(matched) < items:
        log.warning("%d captions are in every folder, not the %d that were asked for", len(matched), items)
    target = Path(to)
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    asked = {
        "points": points, "lowest": lowest, "highest": highest, "title": title, "instructions": instructions,
        "questions": dict(questions),
    }  # fmt: skip
    try:
        shown, key = _write_media(matched, systems, partial / "page" / "media", most=items, seed=seed)
        study = hashlib.sha256(json.dumps([asked, shown, key], sort_keys=True).encode()).hexdigest()[:12]
        (partial / "page" / "index.html").write_text(page({"id": study, **asked, "items": shown}), encoding="utf-8")
        whole = {
            "study": study,
            "seed": seed,
            "systems": systems,
            "folders": [str(s) for s in samples],
            **asked,
            "items": key,
        }
        (partial / "key.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.rename(target)
    except OSError as error:
        raise RunError("the study cannot be written", key="to", got=f"{target}: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("%d captions, each by %d systems", len(shown), len(systems))
    return target


def read_samples(folder: Path) -> list[Sample]:
    """From cases.jsonl of an evaluation, or videos with the records that sample.py writes beside them, or just videos."""
    if (folder / "cases.jsonl").is_file():
        cases, _ = read_cases(folder)
        return [Sample(case.key, case.caption, case.files["video"]) for case in cases if "video" in case.files]
    found = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEOS and p.is_file()):
        try:
            record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = None
        record = record if isinstance(record, dict) else {}
        found.append(Sample(str(record.get("key") or path.stem), str(record.get("prompt") or ""), path))
    return found


def matched_by(found: Sequence[Sequence[Sample]], match: str) -> list[list[Sample]]:
    """One sample of each system for everything that all of them made, in the order of the first system."""
    by_key = _matched([{sample.key: sample for sample in one} for one in found])
    same = [row for row in by_key if len({_plain(s.prompt) for s in row if s.prompt}) <= 1]
    by_prompt = _matched([_by_prompt(one) for one in found])
    chosen = {"key": same, "prompt": by_prompt, "auto": same or by_prompt}[match]
    if len(same) < len(by_key) and match != "prompt":
        log.warning("%d keys have another prompt in another folder and are left out", len(by_key) - len(same))
    if not chosen:
        raise DataError("the folders share no clips", key="samples", got=f"{', '.join(str(len(one)) for one in found)} clips",
                        allowed="the same keys, or the same prompts in the json beside each video",
                        remedy="sample all systems with the same prompts")  # fmt: skip
    return chosen


def _matched(found: Sequence[Mapping[Any, Sample]]) -> list[list[Sample]]:
    return [[one[name] for one in found] for name in found[0] if all(name in one for one in found)]


def _by_prompt(samples: Sequence[Sample]) -> dict[tuple[str, int], Sample]:
    """By prompt and which of its copies it is. A name that a prompt was made a file of is one where there is no other."""
    named: dict[tuple[str, int], Sample] = {}
    for sample in samples:
        prompt = _plain(sample.prompt or said_by_name(sample.path))
        copy = sum(one == prompt for one, _ in named)
        named[prompt, copy] = sample
    return named


def said_by_name(path: Path) -> str:
    return re.sub(r"-\d+$", "", path.stem).replace("_", " ")


def _plain(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


def mixed(count: int, seed: int) -> Iterator[list[int]]:
    """Orders of so many systems, forever; in every `count` of them each system is once at each place."""
    generator = random.Random(f"places {seed}")
    while True:
        base = generator.sample(range(count), count)
        turned = [base[i:] + base[:i] for i in range(count)]
        yield from generator.sample(turned, count)


def _write_media(
    matched: Sequence[Sequence[Sample]], systems: Sequence[str], folder: Path, *, most: int | None, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the page shows and what the key holds, item by item. A caption with a clip that cannot be read is left out."""
    folder.mkdir(parents=True)
    shown: list[dict[str, Any]] = []
    key: list[dict[str, Any]] = []
    orders = mixed(len(systems), seed)
    for row in matched:
        if len(shown) == most:
            break
        name = f"{len(shown) + 1:03d}"
        order = next(orders)
        try:
            clips = [encoded_again(row[system].path) for system in order]
        except (OSError, ValueError, DataError, av.FFmpegError) as error:
            log.warning("%s is left out, one of its clips cannot be read: %s", row[0].key, str(error).splitlines()[0])
            continue
        places = {}
        for letter, system, content in zip(LETTERS, order, clips, strict=False):
            (folder / f"{name}-{letter}.mp4").write_bytes(content)
            places[letter] = systems[system]
        prompt = next((s.prompt for s in row if s.prompt), "") or said_by_name(row[0].path)
        shown.append({"name": name, "prompt": prompt, "places": list(places)})
        key.append({"name": name, "key": row[0].key, "prompt": prompt, "places": places})
    if not shown:
        raise DataError("none of the clips can be read", key="samples", got=f"{len(matched)} captions")
    return shown, key
