"""Noun phrases, and the things that they mean: "the lady", "she" and "the one in red" may be one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dysen.english.words import (
    ADVERBS,
    CATEGORIES,
    COLOURS,
    CONTAINERS,
    DESCRIBING,
    DETERMINERS,
    FEMALE,
    MALE,
    NUMBERS,
    OTHERS,
    PEOPLE,
    PREPOSITIONS,
    PRONOUNS,
    REFLEXIVE,
    SUBJECT_PRONOUNS,
    is_adjective,
    is_adverb,
    is_plural,
    verb,
)

UNNAMED = {"he": "man", "him": "man", "she": "woman", "her": "woman", "they": "people", "them": "people"}


@dataclass(frozen=True)
class NounPhrase:
    """`head` is "one" where only adjectives are said, and a pronoun stands for itself."""

    head: str
    adjectives: tuple[str, ...] = ()
    is_definite: bool = False
    is_other: bool = False

    @property
    def is_pronoun(self) -> bool:
        return self.head in PRONOUNS

    @property
    def is_plural(self) -> bool:
        return (
            is_plural(self.head)
            or bool(NUMBERS - {"one"} & set(self.adjectives))
            or self.head in ("they", "we", "you", "i")
        )


def read_noun_phrase(words: Sequence[str]) -> tuple[NounPhrase | None, int]:
    """The noun phrase at the beginning of words, and how many of them it takes."""
    at, adjectives, nouns = 0, [], []
    is_definite = is_other = False
    while at < len(words):
        word = words[at]
        is_possessive = word == "her" and at + 1 < len(words) and not _ends_phrase(words[at + 1])
        if word in PRONOUNS and not nouns and not adjectives and not is_possessive:
            return NounPhrase(word, is_definite=True), at + 1
        if nouns and (word in DETERMINERS or word in PRONOUNS):
            break
        if word == "of" and nouns and at + 1 < len(words):
            inner, taken = read_noun_phrase(words[at + 1 :])
            if inner is None:
                break
            if nouns[-1] in CONTAINERS:
                quantity = ("two",) if nouns[-1] in ("pair", "couple") else ()
                return NounPhrase(inner.head, quantity + inner.adjectives, inner.is_definite), at + 1 + taken
            return NounPhrase(f"{' '.join(nouns)} of {inner.head}", tuple(adjectives), is_definite), at + 1 + taken
        if word in PREPOSITIONS and not (word == "inside" and not nouns):
            break
        if nouns and word in DESCRIBING:  # "a river surrounded by trees"
            break
        if word in OTHERS:
            is_other = True
        elif word in DETERMINERS or word.endswith(("'s", "s'")):
            is_definite = is_definite or word not in ("a", "an", "some")
        elif word == "one" and (adjectives or is_definite):
            nouns.append("one")
        elif is_adjective(word) and not nouns:
            adjectives.append(word)
        elif not nouns and (is_adverb(word) or not any(map(str.isalpha, word))):
            pass
        elif not nouns and at + 1 < len(words) and _describes(word, words[at + 1]):
            adjectives.append(word)
        else:
            nouns.append(word)
        at += 1
    if not nouns and not adjectives:
        return None, at
    return NounPhrase(" ".join(nouns) or "one", tuple(adjectives), is_definite, is_other), at


def _ends_phrase(word: str) -> bool:
    return word in PREPOSITIONS or word in DETERMINERS or word in ADVERBS or word == "and"


def _describes(word: str, following: str) -> bool:
    """A participle before a noun."""
    known = verb(word)
    return known is not None and known[1] in ("gerund", "past") and following not in PREPOSITIONS | DETERMINERS


@dataclass
class Thing:
    """Somebody or something that a caption speaks of."""

    head: str
    adjectives: dict[str, None] = field(default_factory=dict)
    is_plural: bool = False

    @property
    def is_person(self) -> bool:
        return self.head.split()[-1] in PEOPLE

    def fits(self, phrase: NounPhrase) -> bool:
        """A phrase may mean it: the same noun, and no adjective that speaks against it."""
        if phrase.head == "one":
            return set(phrase.adjectives) <= self.adjectives.keys()
        same = self.head == phrase.head or self.head.endswith(f" {phrase.head}")
        given = set(phrase.adjectives)
        for kind in CATEGORIES:
            if given & kind and self.adjectives.keys() & kind and not given & kind & self.adjectives.keys():
                return False
        is_new = not phrase.is_definite and given and self.adjectives and not given & self.adjectives.keys()
        return same and not is_new


class Things:
    """All of them, in the order of their first mention; the latest mention is tried first."""

    def __init__(self) -> None:
        self.known: list[Thing] = []
        self._recent: list[int] = []
        self.last_agent: int | None = None
        self.together: list[int] = []  # who acted together last

    def meant(self, phrase: NounPhrase, *, beside: int | None = None, is_agent: bool = False) -> int | None:
        """Whom a phrase means; somebody new where nobody known fits. None: nobody that could be named."""
        if phrase.head in REFLEXIVE:
            return None
        found = self._pronoun(phrase, beside, is_agent) if phrase.is_pronoun else self._named(phrase, beside)
        if found is not None:
            self._recent = [*(i for i in self._recent if i != found), found]
            if is_agent:
                self.last_agent = found
        return found

    def mention(self, numbers: Sequence[int]) -> None:
        """These were spoken of last."""
        self._recent = [*(i for i in self._recent if i not in numbers), *dict.fromkeys(numbers)]

    def meant_all(self, phrase: NounPhrase, *, beside: int | None = None, is_agent: bool = False) -> list[int]:
        """The same for a phrase that may mean several: "they", who acted together."""
        if phrase.head in ("they", "them") and self.together and beside not in self.together:
            plural = [i for i in self._recent if self.known[i].is_plural]
            if not plural:
                return list(self.together)
        found = self.meant(phrase, beside=beside, is_agent=is_agent)
        return [] if found is None else [found]

    def _pronoun(self, phrase: NounPhrase, beside: int | None, is_agent: bool) -> int | None:
        wanted = {"he": MALE, "him": MALE, "she": FEMALE, "her": FEMALE}.get(phrase.head)
        others = [i for i in reversed(self._recent) if i != beside]
        if wanted is not None:
            sure = [i for i in others if self.known[i].head.split()[-1] in wanted]
            if sure:
                return sure[0]
            others = [i for i in others if self.known[i].head.split()[-1] not in (MALE | FEMALE) - wanted]
            others = [i for i in others if self.known[i].is_person] or others
        elif phrase.head == "it":
            others = [i for i in others if not self.known[i].is_person] or others
        elif phrase.head in ("they", "them"):
            kinds = [i for i in others if self.known[i].is_plural] or [i for i in others if self.known[i].is_person]
            others = kinds or others
        elif phrase.head in ("someone", "somebody", "i", "we", "you", "us"):
            return self._add(Thing("person" if phrase.head not in ("we", "us") else "people"))
        if not self.known and phrase.head in UNNAMED:
            return self._add(Thing(UNNAMED[phrase.head], is_plural=phrase.head in ("they", "them")))
        if is_agent and phrase.head in SUBJECT_PRONOUNS and self.last_agent in others:
            return self.last_agent if wanted is None else others[0]
        return others[0] if others else None

    def _named(self, phrase: NounPhrase, beside: int | None) -> int | None:
        if not phrase.is_other:
            for i in reversed(self._recent):
                if i != beside and self.known[i].fits(phrase):
                    self.known[i].adjectives |= dict.fromkeys(phrase.adjectives)
                    return i
        if phrase.head == "one":
            return None
        return self._add(Thing(phrase.head, dict.fromkeys(phrase.adjectives), phrase.is_plural))

    def _add(self, thing: Thing) -> int:
        self.known.append(thing)
        return len(self.known) - 1

    def names(self) -> list[str]:
        """A name for each: the noun, with adjectives and then a number where it is not the only one of its kind."""
        heads = [thing.head for thing in self.known]
        found: list[str] = []
        for thing in self.known:
            name = thing.head
            if heads.count(thing.head) > 1:
                telling = [a for a in thing.adjectives if a in COLOURS] or list(thing.adjectives)
                name = " ".join([*telling[:2], thing.head])
            name, number, first = name[:70].strip(), 1, name[:70].strip()
            while name in found:
                number += 1
                name = f"{first} #{number}"
            found.append(name)
        return found
