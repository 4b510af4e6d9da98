"""The page that raters see: forms that are there before any script runs, and a script that keeps and saves the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from vdm.evaluation.report.markup import Markup, tag


def page(study: Mapping[str, Any]) -> str:
    """`study` holds what may be known: id, words, points, questions and items with their letters."""
    items = study["items"]
    # In a script element only its own end ends it, and the comment that would hide that end.
    facts = json.dumps(study, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="robots", content="noindex"),
        tag("link", rel="icon", href="data:,"),
        tag("title", study["title"]),
        tag("style", Markup(_file("page.css"))),
    ]
    start = tag(
        "section",
        tag("p", study["instructions"]),
        tag("p", f"{len(items)} sentences, {len(items[0]['places'])} videos each. The scale has {study['points']} points, from "
            f"{study['lowest']} to {study['highest']}. The questions, the scale and the number of sentences are a choice of "
            "this study.", class_="note"),
        tag("ul", *(tag("li", tag("b", _title(name)), f": {words}") for name, words in study["questions"].items())),
        tag("label", "Your name or initials ", tag("input", id="rater", autocomplete="off", maxlength="60")),
        id="start", class_="step",
    )  # fmt: skip
    end = tag(
        "section",
        tag("p", id="missing"),
        tag("p", tag("button", "Save my ratings as a file", type="button", id="save"), " and send it to who asked you."),
        tag("details", tag("summary", "If no file appears, copy this text"), tag("textarea", id="copy", rows="8", readonly=True)),
        id="end", class_="step",
    )  # fmt: skip
    bar = tag(
        "nav",
        tag("button", "Back", type="button", id="back"),
        tag("span", id="where", aria_live="polite"),
        tag("button", "Next", type="button", id="next"),
    )
    body = tag(
        "body",
        tag("main", tag("h1", study["title"]), tag("noscript", "This page keeps answers with JavaScript, which is off here."),
            tag("p", id="trouble", class_="trouble", hidden=True), start, *(_item(study, one) for one in items), end, bar),
        tag("script", Markup(facts), type="application/json", id="study"),
        tag("script", Markup(_file("page.js"))),
    )  # fmt: skip
    return f"<!doctype html>\n{tag('html', tag('head', *head), body, lang='en')}\n"


def _item(study: Mapping[str, Any], item: Mapping[str, Any]) -> Markup:
    clips = [_clip(study, item["name"], letter) for letter in item["places"]]
    prompt = tag("p", tag("bdi", item["prompt"]), class_="prompt")
    return tag(
        "section", prompt, tag("div", *clips, class_="clips"), class_="step item", data_item=item["name"], hidden=True
    )


def _clip(study: Mapping[str, Any], name: str, letter: str) -> Markup:
    source = f"media/{name}-{letter}.mp4"
    video = tag("video", src=source, controls=True, loop=True, muted=True, playsinline=True, preload="metadata")
    asked = [_question(study, f"{name}-{letter}-{question}", words) for question, words in study["questions"].items()]
    return tag("article", tag("h2", letter), video, *asked)


def _question(study: Mapping[str, Any], field: str, words: str) -> Markup:
    points = range(1, study["points"] + 1)
    boxes = [tag("label", tag("input", type="radio", name=field, value=point), tag("span", point)) for point in points]
    ends = tag("span", tag("i", study["lowest"]), tag("i", study["highest"]), class_="ends")
    return tag("fieldset", tag("legend", words), tag("div", *boxes, class_="scale"), ends)


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _file(name: str) -> str:
    return (resources.files("vdm.evaluation.study") / name).read_text(encoding="utf-8")
