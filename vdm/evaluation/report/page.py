"""The page: its sections in the order in which a reader asks for them, and what they are dressed in."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from vdm.evaluation.report import gallery, numbers
from vdm.evaluation.report.bins import breakdowns
from vdm.evaluation.report.gallery import Embedder
from vdm.evaluation.report.markup import Markup, facts, folded, join, table, tag
from vdm.evaluation.report.plots import Series, plot
from vdm.evaluation.report.reading import Ancestor, Case, Result, ranked, read_curves, read_side

ENOUGH = 2048  # clips of published distances
POINTS = 240  # of a training curve
TILES = 6


def page(
    result: Result, cases: Sequence[Case], unreadable: int, lineage: Sequence[Ancestor], *, each: int, embed: Embedder
) -> str:
    ordered, names = ranked(list(cases))
    shown = gallery.gallery(ordered, names, each=each, embed=embed, folder=result.folder) if ordered else Markup()
    sheet = gallery.sheet(result.folder, embed) if not names else Markup()
    lost = tag("p", f"Lines of cases.jsonl that cannot be read: {unreadable}.", class_="note") if unreadable else ""
    found = {
        "Numbers": join([numbers.all_numbers(result), _skipped(result)]),
        "Beside others": numbers.comparison(result, lineage),
        "By bins": breakdowns(result),
        "Cases": join([lost, shown, sheet]),
        "Protocol": _protocol(result),
        "Training": _curves(lineage[0].run.folder / "metrics.csv") if lineage else Markup(),
        "Lineage": join(map(_ancestor, lineage)),
        "Commands": _commands(result, lineage),
    }
    sections = {title: content for title, content in found.items() if content}
    return _document(f"{result.subject}, protocol {result.protocol}", _head(result, embed), sections)


def _document(title: str, head: Markup, sections: Mapping[str, Markup]) -> str:
    style, script = _file("page.css"), _file("page.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    )
    links = [tag("a", name, href=f"#{_anchor(name)}") for name in sections]
    parts = [tag("section", tag("h2", name), part, id=_anchor(name)) for name, part in sections.items()]
    top = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Markup(style)),
    ]
    body = tag("body", tag("main", head, tag("nav", *links), *parts), tag("script", Markup(script)))
    return f"<!doctype html>\n{tag('html', tag('head', *top), body, lang='en')}\n"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _file(name: str) -> str:
    return (resources.files("vdm.evaluation.report") / name).read_text(encoding="utf-8")


def _head(result: Result, embed: Embedder) -> Markup:
    about = [(result.kind, result.subject), ("checkpoint", result.content.get("checkpoint")), ("id", result.id)]
    about += [
        (name, f"{value:,}" if isinstance(value, int) else value) for name, value in numbers.counts(result).items()
    ]
    chips = [tag("span", f"{name} ", tag("b", str(value)), class_="chip") for name, value in about if value is not None]
    warnings = _warnings(result)
    if embed.left_out:
        warnings.append(
            f"{embed.left_out} videos or pictures are left out: the page has a bound of {embed.most:,} bytes."
        )
    return tag(
        "header",
        tag("p", "Evaluation by the protocol", class_="over"),
        tag("h1", tag("bdi", result.protocol)),
        tag("div", *chips, class_="chips"),
        numbers.tiles(result, most=TILES),
        tag("ul", *(tag("li", line) for line in warnings), class_="warnings") if warnings else "",
    )


def _warnings(result: Result) -> list[str]:
    """What a reader must know before the first number."""
    found = []
    distances = [m.name for m in result.measures if numbers.better(m.name) == "lower" and re.search(r"\d", m.name)]
    clips = numbers.counts(result).get("clips")
    if distances and isinstance(clips, int) and clips < ENOUGH:
        found.append(
            f"{clips:,} clips: distances are larger than those of {ENOUGH:,} clips, which papers report. "
            "Compare them with numbers of the same name only."
        )
    if result.part("skipped"):
        found.append(f"Without a number: {', '.join(result.part('skipped'))}. The reasons are below.")
    rejected = sum(value for value in result.part("rejected").values() if isinstance(value, int))
    if rejected:
        found.append(f"{rejected:,} videos were rejected and count for nothing. The reasons are under Protocol.")
    return found


def _skipped(result: Result) -> Markup:
    skipped = result.part("skipped")
    if not skipped:
        return Markup()
    return join([tag("h3", "Without a number"), table(["metric", "reason"], skipped.items(), class_="facts")])


def _protocol(result: Result) -> Markup:
    """First what decides most, then every setting."""
    protocol = result.part("protocol")
    sampler = protocol.get("sampler") if isinstance(protocol.get("sampler"), Mapping) else {}
    first = {"id": result.id or "none: made before results had one", "name": result.protocol}
    first |= {
        name: protocol[name] for name in ("split", "clips", "reference_split", "reference_clips") if name in protocol
    }
    if sampler:
        first["sampler"] = str(sampler.get("_target_", "")).rpartition(".")[2]
        first |= {f"sampler.{name}": value for name, value in sampler.items() if not name.startswith("_")}
    first |= {name: value for name, value in protocol.items() if name.startswith("guidance") or name == "seed"}
    measured = {name: value for name, value in numbers.counts(result).items() if protocol.get(name) != value}
    first |= {f"measured {name}": value for name, value in measured.items()}
    for name in ("data", "reference"):
        if result.part(name):
            first[name] = result.part(name)
        elif isinstance(result.content.get(name), str):
            first[name] = result.content[name]
    parts = [facts(first), folded("Every setting of the protocol", facts(protocol))]
    if result.part("weights"):
        parts.append(folded("Weights, by SHA-256", facts(result.part("weights"))))
    if result.part("decided"):
        parts.append(folded("What the id is of", facts(result.part("decided"))))
    side = read_side(result.folder)
    if side:
        parts.append(folded("Where and how long it was evaluated", facts(side)))
    rejected = result.part("rejected")
    if rejected:
        rows = sorted(rejected.items(), key=lambda row: -row[1] if isinstance(row[1], int) else 0)
        parts += [tag("h3", "Rejected videos"), table(["reason", "videos"], rows, class_="facts")]
        if (result.folder / "rejected.csv").is_file():
            parts.append(tag("p", "rejected.csv in the folder of this report names each.", class_="note"))
    return join(parts)


def _curves(path: Path) -> Markup:
    """Losses in the open, the rest folded. What differs in a number or in being of training or validation shares a plot."""
    groups: dict[str, list[Series]] = {}
    for name, points in sorted(read_curves(path, points=POINTS).items()):
        part, _, title = name.rpartition("/")
        key = f"{part}/{title}" if part == "perf" else re.sub(r"_\d+$", "", title)
        groups.setdefault(key, []).append(Series(name, points))
    first = [name for name in groups if name == "loss"] + [n for n in groups if n in ("psnr", "accuracy")]
    rest = [name for name in groups if name not in first]
    if not first:
        first, rest = rest[:2], rest[2:]
    drawn = {name: plot(groups[name], title=name, x="step") for name in groups}
    parts = [tag("div", *(drawn[name] for name in first), class_="plots")]
    if rest:
        parts.append(folded(f"{len(rest)} more", tag("div", *(drawn[name] for name in rest), class_="plots")))
    return join(parts) if groups else Markup()


def _ancestor(one: Ancestor) -> Markup:
    info = one.info
    gave = f"gave {one.gave['network']}" if one.gave.get("network") else ""
    title = join([tag("b", one.run.name), f" {info.get('stage', '')} ", tag("small", gave)])
    if not info:
        return tag(
            "div", folded(title, tag("p", "Its folder is not beside this run.")), class_=f"depth-{min(one.depth, 4)}"
        )
    listed = {
        "stage": info.get("stage"), "data": info.get("data"), "state": info.get("state"), "step": info.get("step"),
        "checkpoint taken": one.gave.get("checkpoint"), "sha256 of its weights": one.gave.get("sha256"),
        "data fingerprint": info.get("data_fingerprint"), "made": _date(info.get("created")),
        "finished": _date(info.get("finished")), "commit": info.get("commit"),
        "changed since that commit": info.get("changed"), "best": info.get("best"),
    }  # fmt: skip
    listed = {name: value for name, value in listed.items() if value is not None}
    more = {name: info[name] for name in ("python", "platform", "packages", "unreadable") if name in info}
    settings = one.run.folder / "config.yaml"
    parts = [facts(listed), folded("Versions", facts(more)) if more else ""]
    if settings.is_file():
        text = settings.read_text(encoding="utf-8", errors="replace")
        parts.append(folded("Every setting (config.yaml)", tag("pre", text)))
    opened = folded(title, *parts, is_open=one.depth == 0)
    return tag("div", opened, class_=f"ancestor depth-{min(one.depth, 4)}")


def _date(seconds: Any) -> str | None:
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return None
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return None


def _commands(result: Result, lineage: Sequence[Ancestor]) -> Markup:
    """Oldest first. What was not recorded is put together from the stage, the data and the name of the run."""
    lines, guessed = [], False
    deepest = {one.run.folder: one for one in sorted(lineage, key=lambda one: one.depth)}
    for one in sorted(deepest.values(), key=lambda one: -one.depth):
        command = one.info.get("command")
        if not command and one.info.get("stage"):
            command, guessed = _said("train.py", f"stage={one.info['stage']}", f"data={one.info.get('data')}",
                                     f"run.id={one.run.name}"), True  # fmt: skip
        lines += [command] if command else []
    by = read_side(result.folder).get("evaluated_by")
    command = result.content.get("command") or (by.get("command") if isinstance(by, Mapping) else None)
    if not command:
        command, guessed = _said("evaluate.py", f"protocol={result.protocol}", f"{result.kind}={result.subject}"), True
    lines += [command, _said("-m", "vdm.evaluation.report", f"folder={result.folder}")]
    shown = [tag("pre", tag("code", str(line)), class_="command") for line in lines]
    note = "Commands that were not recorded are given without their further settings, which are under Lineage and Protocol."
    return join([*shown, tag("p", note, class_="note") if guessed else ""])


def _said(*words: str) -> str:
    return shlex.join(["python", *words])
