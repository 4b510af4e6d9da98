"""Cuts a caption into sentences and these into words and connectives, which say when things happen."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dysen.english.words import FRAMES, LONG_PREPOSITIONS

MAX_WORDS = 400
SENTENCE = re.compile(r"[.!?;:。！？；\n]+(?=\s|$|[A-Z])|[。！？；]")
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*['’]?|,|，")

CONNECTIVES = {
    "then": """and then|then|and after that|after that|after which|after all of this|after all that|after this|afterwards
        |afterward|and afterwards|next|later|later on|and later|and next|eventually|and eventually|subsequently|before finally
        |soon|when all of this is over|moments later|seconds later|shortly after|and soon|until""",
    "last": """finally|and finally|lastly|and lastly|at last|last of all|and last of all|in the end|and in the end|at the end
        |and at the end|at the very end""",
    "followed": "followed by|and followed by|followed shortly by",
    "first": """first|at first|first of all|in the beginning|at the beginning|at the start|at the very beginning|initially
        |to begin with""",
    "after": """after|only after|but only after|once|only once|but only once|as soon as|only as soon as|having
        |just after|after having""",
    "before": "before|just before|shortly before|prior to",
    "but first": "but first|but before that|but before this",
    "prior": "before that|before this|earlier|previously",
    "prior all": "before all of this|before any of this happens|before all that",
    "between": "in between",
    "while": "while|whilst|as|when|whenever|at the same time as|during which|where|whereas|but while",
    "all while": "all while|all as|all the while",
    "meanwhile": "meanwhile|and meanwhile|in the meantime|during this",
    "together": "at the same time|all at the same time|at exactly the same time|simultaneously|at once|and at the same time",
    "and": "and|or|but|and also|and both",
    "relative": "who|whom",
}
_BY_WORDS = {
    tuple(phrase.split()): kind
    for kind, phrases in CONNECTIVES.items()
    for phrase in re.split(r"\s*\|\s*", phrases.strip())
}
_LONGEST = max(map(len, _BY_WORDS))
# Words with a connective in them that is none.
_KEPT = [
    tuple(phrase.split())
    for phrase in (
        "such as", "for a while", "as well as",
        "up and to the", "down and to the", "and left", "and right", "on and off", "back and forth", "up and down",
        "black and white", "as well",
    )
]  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A connective as it was written, a comma, or ("words") the words between two of these."""

    kind: str
    words: tuple[str, ...] = ()


def sentences(caption: str) -> list[list[Item]]:
    """The items of each sentence. At most `MAX_WORDS` words are read."""
    found, left = [], MAX_WORDS
    for text in SENTENCE.split(caption):
        words = [
            word.strip("’'").replace("’", "'") if len(word) > 1 else word for word in WORD.findall(text.casefold())
        ][:left]
        left -= len(words)
        words = _without_frame([word.replace("，", ",") for word in words if word])
        if words:
            found.append(_items(words))
    return found


def _without_frame(words: list[str]) -> list[str]:
    text = re.sub(r"\b(close) (up|ups)\b", r"\1-\2", " ".join(words)).replace("time lapse", "timelapse")
    text = re.sub(r"\b(he|she|it|who|that)'s\b", r"\1 is", text)
    for phrase, joined in LONG_PREPOSITIONS.items():
        text = re.sub(rf"\b{phrase}\b", joined, text)
    text = re.sub(r"\b(they|we|you)'re\b", r"\1 are", text)
    words = text.split()
    for frame in FRAMES:
        parts = frame.split()
        if words[: len(parts)] == parts:
            return words[len(parts) :]
    return words


def _items(words: list[str]) -> list[Item]:
    found: list[Item] = []
    stretch: list[str] = []

    def close() -> None:
        if stretch:
            found.append(Item("words", tuple(stretch)))
            stretch.clear()

    at = 0
    while at < len(words):
        kept = next((phrase for phrase in _KEPT if tuple(words[at : at + len(phrase)]) == phrase), None)
        if kept is not None:
            stretch.extend(kept)
            at += len(kept)
            continue
        if words[at] == ",":
            close()
            found.append(Item(","))
            at += 1
            continue
        for length in range(min(_LONGEST, len(words) - at), 0, -1):
            kind = _BY_WORDS.get(tuple(words[at : at + length]))
            if kind is not None:
                close()
                found.append(Item(kind, tuple(words[at : at + length])))
                at += length
                break
        else:
            stretch.append(words[at])
            at += 1
    close()
    return found
