"""The worst and the best cases, each as prompt, plan timeline, scene graph and video, inside the page and within a size."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import av

from vdm.errors import DataError
from vdm.evaluation.report.markup import Markup, folded, join, long_text, number, tag
from vdm.evaluation.report.playing import playable
from vdm.evaluation.report.reading import Case

LONGEST_PLAN = 4000  # letters


class Embedder:
    """Turns files into data URIs until `most` bytes of page are used up."""

    def __init__(self, most: int):
        self.most, self.used, self.left_out = most, 0, 0

    def __call__(self, content: bytes, kind: str) -> str | None:
        size = 4 * -(-len(content) // 3)
        if self.used + size > self.most:
            self.left_out += 1
            return None
        self.used += size
        return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def gallery(cases: Sequence[Case], names: Sequence[str], *, each: int, embed: Embedder, folder: Path) -> Markup:
    """`cases` from worst to best by `names`; without names there is no worst and the first ones are shown."""
    places = {id(case): place for place, case in enumerate(cases, 1)}
    kept = [case for case in cases if "video" in case.files] or list(cases)
    half = min(each, -(-len(kept) // 2))
    ends = {"Worst": kept[:half], "Best": list(reversed(kept[half:]))[:each]} if names else {"": kept[: 2 * each]}
    # The first of both ends come before the second, so that a full page has lost the cases in between.
    articles: dict[int, Markup] = {}
    for position in range(2 * each):
        for title, chosen in ends.items():
            if position < len(chosen):
                case = chosen[position]
                label = f"{title.lower()} {position + 1}" if names else ""
                rank = f"rank {places[id(case)]:,} of {len(cases):,}" if names else ""
                articles[id(case)] = _article(label, rank, case, embed=embed, folder=folder)
    parts = []
    if names:
        of = f"{len(cases):,} clips" if len(kept) == len(cases) else f"the {len(kept):,} clips whose videos were kept"
        ranks = "From the worst, rank 1, to the best by the mean rank over"
        parts.append(tag("p", f"Of {of}. {ranks} {', '.join(names)}.", class_="note"))
    has_plans = any({"plan", "timeline", "graph"} & set(case.files) for case in kept)
    kind = "cases" if has_plans else "cases pairs" if any(case.caption for case in kept) else "cases bare"
    for title, chosen in ends.items():
        if chosen:
            shown = tag("div", *(articles[id(case)] for case in chosen), class_=kind)
            parts += [tag("h3", title) if title else "", shown]
    return join(parts)


def _article(label: str, rank: str, case: Case, *, embed: Embedder, folder: Path) -> Markup:
    videos = [
        _video(case, name, title, embed, folder) for name, title in (("video", "made"), ("original", "true clip"))
    ]
    plan, graph = _drawing(case, "timeline", "plan", embed), _drawing(case, "graph", "scene graph", embed)
    plan = plan or _plan(case)
    scores = [tag("span", f"{name} ", tag("b", number(value)), class_="chip") for name, value in case.scores.items()]
    mark = tag("span", label, class_=f"mark {label.split(' ')[0]}") if label else ""
    head = tag("header", mark, tag("code", case.key), tag("span", rank))
    return tag(
        "article",
        head,
        long_text(case.caption, class_="caption") if case.caption else "",
        tag("div", tag("div", *videos, class_="videos"), plan, class_="case"),
        graph,
        tag("div", *scores, class_="chips"),
    )


def _video(case: Case, name: str, title: str, embed: Embedder, folder: Path) -> Markup:
    path = case.files.get(name)
    if path is None:
        return Markup() if name == "original" else tag("p", "No video was kept of this clip.", class_="note")
    try:
        content = playable(path)
    except (OSError, ValueError, DataError, av.FFmpegError) as error:
        return tag("p", f"{title}: {path.name} cannot be shown: {str(error).splitlines()[0]}", class_="note")
    source = embed(content, "video/mp4")
    if source is None:
        where = path.relative_to(folder) if path.is_relative_to(folder) else path.name
        return tag("p", f"{title}: left out, the page is full. It is in {where}", class_="note")
    video = tag(
        "video", src=source, controls=True, loop=True, muted=True, autoplay=True, playsinline=True, aria_label=title
    )
    return tag("figure", video, tag("figcaption", title))


def _drawing(case: Case, name: str, title: str, embed: Embedder) -> Markup:
    path = case.files.get(name)
    if path is None:
        return Markup()
    try:
        content = path.read_bytes()
    except OSError:
        return Markup()
    if b"<svg" not in content[:1000]:
        return tag("p", f"{title}: {path.name} is no SVG", class_="note")
    source = embed(content, "image/svg+xml")  # as an image, in which nothing can run or be fetched
    if source is None:
        return tag("p", f"{title}: left out, the page is full", class_="note")
    image = tag("img", src=source, alt=f"{title} of {case.key}")
    return tag(
        "figure", tag("figcaption", title), tag("div", image, class_="scroll paper", tabindex="0"), class_="drawing"
    )


def _plan(case: Case) -> Markup:
    """The events as text where nobody drew them."""
    path = case.files.get("plan")
    if path is None:
        return Markup()
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return tag("p", f"plan: {path.name} cannot be read", class_="note")
    plan = plan.get("plan", plan) if isinstance(plan, dict) else plan
    lines = [json.dumps(event, ensure_ascii=False) for event in plan] if isinstance(plan, list) else [json.dumps(plan)]
    return folded("plan", tag("pre", "\n".join(lines)[:LONGEST_PLAN]), is_open=True)


def sheet(folder: Path, embed: Embedder) -> Markup:
    """The picture and captions that evaluations without cases have."""
    path, captions = folder / "sheet.png", folder / "captions.txt"
    if not path.is_file():
        return Markup()
    source = embed(path.read_bytes(), "image/png")
    if source is None:
        return tag("p", f"{path.name} is left out, the page is full", class_="note")
    lines = captions.read_text(encoding="utf-8", errors="replace").splitlines() if captions.is_file() else []
    listed = tag("ol", *(tag("li", tag("bdi", line)) for line in lines)) if lines else ""
    picture = tag(
        "div", tag("img", src=source, alt="frames of clips, time from left to right"), class_="scroll", tabindex="0"
    )
    about = "Pairs of rows: the clip of the caption, and what was made of it. Time goes from left to right."
    return join([tag("p", about, class_="note"), picture, listed])
