"""Clauses in a stretch of words without connectives: who does what to whom, by the places of verbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from dysen.english.phrases import NounPhrase, read_noun_phrase
from dysen.english.words import (
    ADVERBS,
    AUXILIARY,
    COPULA,
    DESCRIBING,
    DETERMINERS,
    LIGHT_VERBS,
    LINKING,
    NOUNS_AFTER_ALL,
    NUMBERS,
    PARTICLES,
    PREPOSITIONS,
    PRONOUNS,
    RELATIVE,
    WAYS,
    is_adjective,
    is_adverb,
    is_plural,
    verb,
)

SHOWN = {"see", "show", "film", "picture", "capture", "watch"}
MODAL = AUXILIARY - COPULA - {"has", "have", "had", "having"}


@dataclass(frozen=True)
class Group:
    """A verb with its auxiliaries at words[start:end]."""

    start: int
    end: int
    base: str
    form: Literal["finite", "progressive", "gerund", "infinitive", "passive", "copula"]


@dataclass
class Clause:
    """`subjects` is None where another clause says who acts; `places` are the prepositional phrases after it."""

    subjects: list[NounPhrase] | None
    base: str
    predicate: str
    targets: list[NounPhrase]
    form: str
    places: list[tuple[str, NounPhrase]] = field(default_factory=list)
    link: str = ""  # how it hangs on the clause before it: "", "participle", "infinitive", "relative"
    by: NounPhrase | None = None
    adjectives: tuple[str, ...] = ()  # "is brown"
    is_retold: bool = False  # "is still singing", "has finished singing"


def verb_groups(words: Sequence[str], has_subject: bool, is_relative: bool = False) -> list[Group]:
    """The verbs in words.

    `has_subject`: they may begin with one, because who acts was said before. `is_relative`: they follow "who", so that a
    second finite verb is that of the main clause.
    """
    found: list[Group] = []
    at = 0
    while at < len(words):
        finite = [group for group in found if group.form in ("finite", "progressive", "copula", "passive")]
        group = _group_at(words, at, has_subject, len(finite) > is_relative)
        if group is None:
            at += 1
            continue
        if found and found[-1].form == "copula" and found[-1].end == group.start:
            group = Group(found.pop().start, group.end, group.base, group.form)
        found.append(group)
        at = group.end
    return found or _guessed(words, has_subject)


def _guessed(words: Sequence[str], has_subject: bool) -> list[Group]:
    """Without a known verb, a word that looks like one and stands where one would."""
    for at, word in enumerate(words):
        after = words[at + 1] if at + 1 < len(words) else "the"
        is_end = after in DETERMINERS or after in PREPOSITIONS or after in PRONOUNS or after in ("up", "down")
        if at == 0:
            is_start = has_subject and at + 1 < len(words)
        else:
            before = words[at - 1]
            is_start = not (
                before in DETERMINERS or before in NUMBERS or before in PREPOSITIONS or is_adjective(before)
            )
            is_start = is_start and not is_plural(before) and "of" not in words[max(at - 2, 0) : at]
        looks = (is_plural(word) and len(word) > 3) or (word.endswith("ed") and len(word) > 4)
        if looks and is_start and is_end and word not in DESCRIBING:
            base = word[:-2] if word.endswith("ed") else word[:-1]
            return [Group(at, at + 1, base, "finite")]
    return []


def _group_at(words: Sequence[str], at: int, has_subject: bool, has_finite: bool) -> Group | None:
    word, before = words[at], words[at - 1] if at else None
    if word in AUXILIARY and not (word in ("do", "does", "did", "having") and not _verb_after(words, at)):
        return _auxiliary(words, at)
    known = verb(word)
    if known is None:
        return None
    base, kind = known
    if before == "to" and kind == "base" or (before is not None and before in MODAL and kind == "base"):
        return _light(words, Group(at, at + 1, base, "infinitive"))
    open_before = before is None or not (
        before in DETERMINERS
        or (before in NUMBERS and (before != "one" or at < 2))
        or before in PREPOSITIONS
        or is_adjective(before)
        and before != "one"
        or before.endswith("'s")
    )
    if kind == "gerund":
        # "a man in red dancing", "the blue one spinning" have an adjective before them, "a smiling woman" a word after.
        late = before is not None and is_adjective(before) and not _is_noun_like(words, at + 1)
        return _light(words, Group(at, at + 1, base, "gerund")) if open_before or late else None
    starts = before is None and has_subject
    relative = before in RELATIVE
    if before is not None and not (open_before or (is_adjective(before) and at > 1 and words[at - 2] in ("the", "in"))):
        return None
    if before is None and not starts or (has_finite and not relative and before not in PRONOUNS):
        return None
    if word in NOUNS_AFTER_ALL and words[at + 1 : at + 2] == ["of"]:
        return None
    if word in NOUNS_AFTER_ALL and not relative and not starts and not _is_object_next(words, at + 1):
        return None
    if kind == "third":
        return _light(words, Group(at, at + 1, base, "finite"))
    if kind == "base" and (starts or before in PRONOUNS or relative or is_plural(before or "") or has_subject):
        return _light(words, Group(at, at + 1, base, "finite"))
    if kind == "past":
        if word in DESCRIBING:
            return Group(at, at + 1, base, "copula")
        if "by" in words[at + 1 : at + 3]:
            return Group(at, at + 1, base, "passive")
        return _light(words, Group(at, at + 1, base, "finite"))
    return None


def _verb_after(words: Sequence[str], at: int) -> bool:
    at += 1
    while at < len(words) and (words[at] in ADVERBS or is_adverb(words[at])):
        at += 1
    return at < len(words) and verb(words[at]) is not None


def _auxiliary(words: Sequence[str], at: int) -> Group | None:
    """is sitting, has been thrown, can see, is (in the park)."""
    start, last = at, words[at]
    while at < len(words) and (words[at] in AUXILIARY or words[at] in ADVERBS or is_adverb(words[at])):
        last = words[at] if words[at] in AUXILIARY else last
        at += 1
    known = verb(words[at]) if at < len(words) else None
    if known is not None and (known[1] != "third"):
        base, kind = known
        if kind == "gerund":
            return _light(words, Group(start, at + 1, base, "progressive" if last in COPULA else "finite"))
        if kind == "past" and last in COPULA:
            return Group(start, at + 1, base, "copula") if words[at] in DESCRIBING else _light(
                words, Group(start, at + 1, base, "passive"))  # fmt: skip
        if last not in COPULA:
            return _light(words, Group(start, at + 1, base, "finite"))
    return Group(start, at, "be", "copula") if last in COPULA else None


def _light(words: Sequence[str], group: Group) -> Group:
    """ "starts to run", "finished moving", "is seen riding": the verb that counts is the second."""
    at = group.end + (words[group.end : group.end + 1] == ["to"])
    known = verb(words[at]) if at < len(words) else None
    if known is None or not (group.base in LIGHT_VERBS or group.form == "passive" and group.base in SHOWN):
        return group
    if known[1] == ("gerund" if at == group.end else "base"):
        form = "finite" if group.form == "passive" else group.form
        return _light(words, Group(group.start, at + 1, known[0], form))
    return group


def _is_noun_like(words: Sequence[str], at: int) -> bool:
    return at < len(words) and not (
        words[at] in PREPOSITIONS or words[at] in DETERMINERS or words[at] in ADVERBS or words[at] in PARTICLES
        or words[at] in AUXILIARY or is_adverb(words[at])
    )  # fmt: skip


def _is_object_next(words: Sequence[str], at: int) -> bool:
    return at < len(words) and (words[at] in DETERMINERS or words[at] in PREPOSITIONS or words[at] in PRONOUNS)


def read_clauses(
    words: list[str], has_subject: bool, is_relative: bool = False
) -> tuple[list[Clause], list[NounPhrase]]:
    """The clauses in words. Without a verb: none, and the noun phrases that stand there."""
    groups = verb_groups(words, has_subject, is_relative)
    if not groups:
        phrase, _ = read_noun_phrase(words)
        return [], [phrase] if phrase is not None else []
    subject, taken = read_noun_phrase(words[: groups[0].start])
    places = _places(words[taken : groups[0].start])
    found: list[Clause] = []
    for position, group in enumerate(groups):
        end = groups[position + 1].start if position + 1 < len(groups) else len(words)
        tail = words[group.end : end]
        if tail[-1:] == ["to"] or tail[-1:] in (["who"], ["which"], ["that"]):
            tail = tail[:-1]
        clause = _clause(group, tail)
        clause.is_retold = bool({"still", "finished", "finishes"} & set(words[group.start : group.end - 1]))
        if position == 0:
            clause.subjects = [subject] if subject is not None else None
            clause.places = places + clause.places
        else:
            _hang(clause, group, words, found, subject)
        found.append(clause)
    return found, []


def _hang(clause: Clause, group: Group, words: list[str], before: list[Clause], subject: NounPhrase | None) -> None:
    """Who acts in a clause that is not the first, and how it hangs on the one before."""
    last = before[-1]
    nearest = last.targets[-1] if last.targets else None
    if words[group.start - 1] in RELATIVE:
        clause.link, clause.subjects = "relative", [nearest] if nearest is not None else last.subjects
    elif words[group.start - 1] == "to":
        clause.link, clause.subjects = "infinitive", last.subjects
    elif group.form == "gerund":
        clause.link = "participle"
        perceives = last.base in ("watch", "see", "film", "follow", "chase", "show", "hear", "record", "be")
        clause.subjects = [nearest] if perceives and nearest is not None else last.subjects
    else:
        clause.subjects = [subject] if subject is not None else last.subjects


def _clause(group: Group, tail: list[str]) -> Clause:
    """Predicate, target and places after a verb."""
    tail = [w for w in tail if not (w in ADVERBS - {"still"} or (is_adverb(w) and w != "diagonally"))]
    parts, at = [group.base], 0
    if group.form == "copula":
        said = [word for word in tail[:3] if is_adjective(word)]
        return Clause(None, group.base, group.base, [], group.form, _places(tail), adjectives=tuple(said))
    if group.base in LINKING:
        while at < len(tail) and is_adjective(tail[at]):
            parts.append(tail[at])
            at += 1
    by = None
    target: NounPhrase | None = None
    while at < len(tail):
        word = tail[at]
        if group.form == "passive" and word == "by":
            by, taken = read_noun_phrase(tail[at + 1 :])
            at += 1 + taken
            continue
        if target is None and (word in PARTICLES or word in PREPOSITIONS or (word == "and" and at)):
            way = [w for w in tail[at + 1 : at + 4] if w not in DETERMINERS]
            if word in PREPOSITIONS and way and way[0] in WAYS and way[1:2] != ["of"]:
                rest = _way(tail, at)
                parts += [w for w in tail[at:rest] if w not in DETERMINERS]
                at = rest
                continue
            parts.append(word)
            at += 1
            continue
        if target is None and word in ADVERBS:
            at += 1
            continue
        if target is None and tail[at - 1 : at] != ["of"]:
            target, taken = read_noun_phrase(tail[at:])
            at += max(taken, 1)
            # "puts the cup down": a particle after the object belongs to the verb.
            if (
                at < len(tail)
                and tail[at] in ("up", "down", "off", "away", "out", "together", "apart", "back", "over")
                and (at + 1 == len(tail) or tail[at + 1] in PREPOSITIONS)
            ):
                parts.append(tail[at])
                at += 1
            continue
        break
    predicate = parts if target is not None or len(parts) == 1 else _without_hanging(parts)
    return Clause(None, group.base, " ".join(predicate), [target] if target is not None else [], group.form,
                  _places(tail[at:]), by=by)  # fmt: skip


def _way(tail: Sequence[str], at: int) -> int:
    """Where "to the upper left", "in place" ends."""
    end = at + 1
    while end < len(tail) and (tail[end] in DETERMINERS or tail[end] in WAYS):
        end += 1
    return end


def _without_hanging(parts: list[str]) -> list[str]:
    while len(parts) > 1 and parts[-1] in ("to", "of", "at", "with", "for", "from", "into"):
        parts = parts[:-1]
    return parts


def _places(words: Sequence[str]) -> list[tuple[str, NounPhrase]]:
    """(preposition, noun phrase) pairs."""
    found, at = [], 0
    while at < len(words):
        if words[at] in PREPOSITIONS:
            phrase, taken = read_noun_phrase(words[at + 1 :])
            if phrase is not None and not phrase.is_pronoun and phrase.head != "one":
                found.append((words[at], phrase))
            at += taken
        at += 1
    return found
