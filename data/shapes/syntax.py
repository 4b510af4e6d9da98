"""All ways to read one sentence as a pattern with its slots filled: a chart parser without a chart.

Reading enumerates; whether a sentence makes sense where it stands is for `data.shapes.parse` to decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from data.shapes.phrases import CLIQUES, CONTINUATIONS, HOSTS, MARKERS, PAIRS, SEQUENCES, UNITS, Pattern, Slot
from data.shapes.words import (
    COLOUR_WORDS,
    GROUNDS,
    INTRODUCTIONS,
    RETOLD,
    SHADE_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    SUBJECTLESS,
    TEXTURE_WORDS,
    VERB_PHRASES,
)

Words = tuple[str, ...]


@dataclass(frozen=True)
class Name:
    """A noun phrase; all None is "it"."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    is_indefinite: bool = False

    @property
    def is_pronoun(self) -> bool:
        return self.colour is None and self.shape is None


@dataclass(frozen=True)
class Clause:
    form: str
    subject: Name | None
    action: str | None  # None: the verb follows with a later subject
    target: Name | None


@dataclass(frozen=True)
class Reading:
    """A pattern and what fills its slots, in text order."""

    pattern: Pattern
    fillers: tuple[tuple[Slot, Clause | Reading], ...]


def words_of(text: str) -> Words:
    return tuple(re.findall(r"[a-z]+(?:-[a-z]+)*|[,;:]", text.lower()))


def _meanings(synonyms: dict[str, Words]) -> dict[str, str]:
    return {word: meaning for meaning, words in synonyms.items() for word in words}


_COLOURS, _SHAPES, _SIZES = _meanings(COLOUR_WORDS), _meanings(SHAPE_WORDS), _meanings(SIZE_WORDS)
_SHADES, _TEXTURES = _meanings(SHADE_WORDS), _meanings(TEXTURE_WORDS)
# (form, words before the target) -> action. A verb phrase with a target and one without may share their words.
_VERBS: dict[tuple[str, Words, bool], str] = {}
for (_action, _form), _phrases in VERB_PHRASES.items():
    for _phrase in _phrases:
        _key = (_form, words_of(_phrase.replace("{T}", "")), "{T}" in _phrase)
        assert _VERBS.setdefault(_key, _action) == _action, f"{_phrase!r} has two meanings"
_PATTERNS = [
    (pattern, [part if isinstance(part, Slot) else words_of(part) for part in pattern.parts])
    for group in (*SEQUENCES.values(), PAIRS, *CLIQUES.values(), *HOSTS.values(), *CONTINUATIONS.values())
    for pattern in group
]
_UNITS = [(pattern, [p if isinstance(p, Slot) else words_of(p) for p in pattern.parts]) for pattern in UNITS]
_NEEDED = {
    pattern.text: {word for part in parts if not isinstance(part, Slot) for word in part}
    for pattern, parts in _PATTERNS + _UNITS
}
_MARKERS = [(kind.removesuffix("_single"), words_of(words)) for kind, choices in MARKERS.items() for words in choices]


def read_sentence(words: Words) -> list[tuple[str | None, Reading]]:
    """Every (kind of opening words, reading) of a sentence."""
    sentence = _Sentence(words)
    starts = [(None, 0)] + [(kind, len(marker)) for kind, marker in _MARKERS if words[: len(marker)] == marker]
    return [(kind, reading) for kind, start in starts for reading in sentence.readings(_PATTERNS, start, len(words))]


def read_introduction(words: Words) -> tuple[list[Name], tuple[str, str] | None] | None:
    """The things, and (shade, texture) of the background if it is told; None if this is no introduction."""
    for introduction in map(words_of, INTRODUCTIONS):
        if words[: len(introduction)] != introduction:
            continue
        rest, ground = words[len(introduction) :], None
        for preposition in map(words_of, GROUNDS):
            if rest[-5:-3] == preposition and rest[-1] == "background":
                shade, texture = _SHADES.get(rest[-3]), _TEXTURES.get(rest[-2])
                if shade and texture:
                    rest, ground = rest[:-5], (shade, texture)
        names, sentence, at = [], _Sentence(rest), 0
        while at < len(rest):
            name, at = sentence.name(at)
            if name is None or (at < len(rest) and rest[at] not in (",", "and")):
                return None
            names.append(name)
            at += 1
        return (names, ground) if names else None
    return None


def read_names(words: Words) -> list[Name]:
    """The noun phrases with a shape, in any text: the rest need not be in the grammar."""
    sentence = _Sentence(words)
    names = [sentence.name(at)[0] for at in range(len(words))]
    return [name for name in names if name is not None and name.shape is not None]


class _Sentence:
    def __init__(self, words: Words):
        self._words, self._bag = words, set(words)
        self._read: dict[tuple[str, bool, int, int], list[Clause | Reading]] = {}

    def readings(self, patterns: list, start: int, end: int) -> list[Reading]:
        return [
            Reading(pattern, fillers)
            for pattern, parts in patterns
            if _NEEDED[pattern.text] <= self._bag
            for fillers in self._fillings(parts, start, end)
        ]

    def _fillings(self, parts: list[Slot | Words], start: int, end: int) -> Iterator[tuple]:
        """Fillers of all slots such that the parts make up the words from start to end."""
        if not parts:
            if start == end:
                yield ()
            return
        part, rest = parts[0], parts[1:]
        if not isinstance(part, Slot):
            if self._words[start : start + len(part)] == part:
                yield from self._fillings(rest, start + len(part), end)
            return
        stops = [end]
        if rest:  # a slot is followed by words
            stops = [i for i in range(start + 1, end) if self._words[i : i + len(rest[0])] == rest[0]]
        for stop in stops:
            for filler in self._slot(part, start, stop):
                for others in self._fillings(rest, stop, end):
                    yield ((part, filler), *others)

    def _slot(self, slot: Slot, start: int, end: int) -> list[Clause | Reading]:
        key = (slot.form, slot.wide, start, end)
        if key not in self._read:
            clause = self._clause(slot.form, start, end)
            found: list[Clause | Reading] = [clause] if clause else []
            self._read[key] = found + (list(self.readings(_UNITS, start, end)) if slot.wide else [])
        return self._read[key]

    def _clause(self, form: str, start: int, end: int) -> Clause | None:
        subject = None
        if form not in SUBJECTLESS:
            subject, start = self.name(start)
            if subject is None:
                return None
            if form == "subject":
                return Clause(form, subject, None, None) if start == end else None
        if form not in RETOLD and self._words[end - 1 : end] == ("again",):
            end -= 1
        action = _VERBS.get((form, self._words[start:end], False))
        if action:
            return Clause(form, subject, action, None)
        for split in range(max(start + 1, end - 4), end):
            action = _VERBS.get((form, self._words[start:split], True))
            if action:
                target, stop = self.name(split)
                if target is not None and stop == end:
                    return Clause(form, subject, action, target)
        return None

    def name(self, at: int) -> tuple[Name | None, int]:
        """The noun phrase that begins here, and where it ends."""
        words = self._words[at : at + 4]
        if words[:1] == ("it",):
            return Name(), at + 1
        if words[:1] not in (("a",), ("an",), ("the",)):
            return None, at
        length = 1
        found: list[str | None] = []
        for meanings in (_SIZES, _COLOURS, _SHAPES):
            meaning = meanings.get(words[length]) if length < len(words) else None
            length += meaning is not None
            found.append(meaning)
        size, colour, shape = found
        if shape is None and words[length : length + 1] == ("one",) and colour is not None:
            length += 1
        elif shape is None:
            return None, at
        return Name(colour, shape, size, words[0] != "the"), at + length
