"""Reads a caption: its sentences part by part, and what connectives say of the times of their events."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from dysen.english.clauses import Clause, read_clauses
from dysen.english.connectives import Item, sentences
from dysen.english.phrases import NounPhrase, read_noun_phrase
from dysen.english.story import MAX_EVENTS, ReadCaption, Story, Told

SUBORDINATE = ("while", "after", "before")
TAILS = ("while", "after", "before", "but first", "all while")


@functools.lru_cache(maxsize=1024)  # imagination asks about one caption several times
def read_caption(caption: str) -> ReadCaption:
    """Plan and details of a caption in English."""
    story = Story()
    for items in sentences(caption):
        read_sentence(story, items)
    return story.result()


def read_sentence(story: Story, items: Sequence[Item]) -> None:
    """Adds what a sentence says to the story."""
    reader = _Sentence(story, items)
    opener = reader.opener()
    earlier = [i for i, event in enumerate(story.events) if event is not None]
    now = reader.sequence()
    while reader.at < len(items):  # what the rules have no place for is read as a sequel
        reader.at += items[reader.at].kind != "words"
        now += reader.sequence()
    # What was told before and is said to go on, or to be over, has its place already.
    earlier = [i for i in earlier if i not in now]
    now = [i for i in now if i > max(earlier, default=-1) and i not in sum(story.told, [])]
    if opener in ("prior", "prior all"):
        story.claim("before", now, story.told[-1] if story.told and opener == "prior" else earlier)
    elif opener == "between":
        if len(story.told) > 1:
            story.claim("before", story.told[-2], now)
            story.claim("before", now, story.told[-1])
    elif opener == "meanwhile":
        beside = story.told[-1] if story.told else []
        story.claim("overlap", beside, now)
        story.claim("before", [i for i in earlier if i not in beside and i not in story.closing], now)
    elif opener == "first":
        story.claim("before", now, [i for i in earlier if i not in story.opening])
        story.opening += now
    else:
        story.claim("before", [i for i in earlier if i not in story.closing], now)
    if opener == "last":
        story.closing += now
    else:
        story.claim("before", now, story.closing)
    if now:
        story.told.append(now)


@dataclass(frozen=True)
class _Waiting:
    """A clause whose subject comes later: "Before vanishing, the cat ..."."""

    clause: Clause
    targets: list[int]
    places: list[tuple[str, int]]
    place: int | None


@dataclass
class _Sentence:
    """A cursor over the items of a sentence. Its methods return the events that they read."""

    story: Story
    items: Sequence[Item]
    at: int = 0
    agents: list[int] = field(default_factory=list)  # who acted last
    pending: list[NounPhrase] = field(default_factory=list)  # subjects whose verb comes later
    waiting: list[_Waiting] = field(default_factory=list)
    patients: list[int] = field(default_factory=list)  # to whom it was done, in the passive
    is_relative: bool = False

    def kind(self, ahead: int = 0) -> str | None:
        return self.items[self.at + ahead].kind if self.at + ahead < len(self.items) else None

    def opener(self) -> str | None:
        """A connective that says where the whole sentence stands."""
        kind = self.kind()
        if kind == "and":
            self.at += 1
            kind = self.kind()
        if kind == "together" and self.kind(1) == ",":
            kind = "meanwhile"
        if kind not in ("then", "last", "first", "prior", "prior all", "between", "meanwhile"):
            return None
        self.at += 1 + (self.kind(1) == ",")
        return kind

    def sequence(self, *, inner: bool = False) -> list[int]:
        """Units, one after the other. `inner`: the first comma after a verb ends it."""
        told = self.unit(inner=inner)
        while True:
            start = self.at
            if inner and self.kind() == ",":
                return told
            while self.kind() in (",", "and", "first") and self.kind(1) in (
                "then",
                "last",
                "first",
                "followed",
                "meanwhile",
                "together",
            ):
                self.at += 1
            kind = self.kind()
            if kind in ("then", "last"):
                self.at += 1 + (self.kind(1) == ",")
                following = self.unit(inner=inner)
                self.story.claim("before", told, following)
            elif kind == "followed":
                self.at += 1
                following = self._shown() or self.unit(inner=inner)
                self.story.claim("before", told, following)
            elif kind in ("meanwhile", "together") and self.kind(1) in ("words", ","):
                self.at += 1 + (self.kind(1) == ",")
                following = self.unit(inner=inner)
                self.story.claim("overlap", told, following)
            elif kind == "," and self.kind(1) == "all while" or kind == "all while":
                self.at += 1 + (kind == ",")
                following = self.unit(inner=inner)
                self.story.claim("overlap", following, told)
            elif kind == "first":
                self.at += 1
                following = self.unit(inner=inner)
            else:
                self.at = start
                return told
            told = told + following

    def unit(self, *, inner: bool) -> list[int]:
        """[while this,] this and that [after that]."""
        if self.kind() == "first":
            self.at += 1 + (self.kind(1) == ",")
        if self.kind() in SUBORDINATE and not inner:
            return self._subordinate()
        told = self.joined(inner=inner)
        while True:
            skip = self.kind() in (",", "and") and self.kind(1) in TAILS
            kind = self.kind(1) if skip else self.kind()
            if kind not in TAILS or kind == "all while":
                return told
            if inner and (
                skip or self.items[self.at].words[:1] == ("but",)
            ):  # the next part of "after A and before B, C"
                return told
            self.at += 1 + skip
            operand = self.sequence(inner=inner) if self.kind() == "first" else self.joined(inner=inner)
            while kind != "while" and self.kind() == "while":  # "..., but first A while B"
                self.at += 1
                beside = self.joined(inner=inner)
                operand = self.relate("while", operand, beside)
            told = self.relate(kind, told, operand)

    def _subordinate(self) -> list[int]:
        """While A, B. After A and before C, B."""
        parts: list[tuple[str, list[int]]] = []
        agents = self.agents
        while self.kind() in SUBORDINATE:
            kind = self.kind()
            self.at += 1
            parts.append((str(kind), self.sequence(inner=True)))
            if self.kind() == "and" and self.kind(1) in SUBORDINATE:
                self.at += 1
        if self.kind() == ",":
            self.at += 1
        if not any(told for _, told in parts):
            self.agents = self.agents or agents
        waiting, self.waiting = self.waiting, []
        told = self.sequence()
        for kind, operand in parts:
            if not operand and waiting:
                self.waiting, waiting = waiting[:1], waiting[1:]
                operand = self.waited()
            told = self.relate(kind, told, operand)
        return told

    def relate(self, kind: str | None, told: list[int], operand: list[int]) -> list[int]:
        if kind in ("while", "all while"):
            self.story.claim("overlap", told, operand)
        elif kind in ("after", "but first"):
            self.story.claim("before", operand, told)
        elif kind == "before":
            self.story.claim("before", told, operand)
        return told + operand

    def joined(self, *, inner: bool) -> list[int]:
        """Clauses with "and", a comma or nothing between them."""
        told: list[int] = []
        join, commas, forms = "", 0, []
        while True:
            if self.kind() == "words":
                fresh, form, own = self.words()
                if fresh and told:
                    self.story.claim(_relation(join, commas, forms, form, own), told, fresh)
                if fresh:
                    told, forms = told + fresh, [*forms, form]
            elif self.kind() == "together":
                self.at += 1
                self._together(told)
            if self.kind() == "relative":
                self.at += 1
                join, self.is_relative = "relative", True
                last = self.story.events[-1] if self.story.events else None
                if told and not self.pending and last is not None and last.target is not None:
                    self.agents = [last.target]
                continue
            if self.kind() in (",", "and") and self._goes_on(inner, bool(told or self.waiting)):
                join = ", and" if self.kind() == "," and self.kind(1) == "and" else str(self.kind())
                commas += self.kind() == ","
                self.at += 2 if join == ", and" else 1
                continue
            if self.kind() == "together":
                continue
            return told

    def _goes_on(self, inner: bool, has_verb: bool) -> bool:
        """Another clause follows this comma or "and", and it belongs to the same unit."""
        ahead = 2 if self.kind() == "," and self.kind(1) == "and" else 1
        if inner and self.kind() == "," and has_verb and not self.pending:
            words = self.items[self.at + ahead].words if self.at + ahead < len(self.items) else ()
            return bool(words) and not read_clauses(list(words), True)[0] and self.kind(ahead + 1) == ","
        return self.kind(ahead) in ("words", "together")

    def _together(self, told: list[int]) -> None:
        """What was told last happens at the same time, whatever was claimed of it before."""
        recent = set(told[-4:])
        claims = self.story.claims
        claims[:] = [c for c in claims if not (c[0] == "before" and c[1] in recent and c[2] in recent)]
        for a, i in enumerate(told[-4:]):
            self.story.claim("overlap", [i], told[-4:][a + 1 :])

    def words(self) -> tuple[list[int], str, bool]:
        """Reads a stretch of words: its events, the form of its first verb, and whether it has a subject of its own."""
        words = list(self.items[self.at].words)
        self.at += 1
        is_relative, self.is_relative = self.is_relative, False
        follows_having = self.at > 1 and self.items[self.at - 2].words[-1:] == ("having",)
        has_subject = bool(self.agents or self.pending or follows_having)
        clauses, phrases = read_clauses([w for w in words if w != "both"], has_subject, is_relative)
        if not clauses:
            self._verbless(words, phrases)
            return [], "", False
        told: list[int] = []
        own = clauses[0].subjects is not None or bool(self.pending)
        for position, clause in enumerate(clauses):
            agents = self._agents(clause, position == 0)
            if not agents:
                self.waiting.append(_Waiting(clause, *self.story.meant(clause, None), self.story.reserve()))
                continue
            fresh = self.story.tell(clause, agents)
            if told and fresh:
                relation = "before" if clause.link == "infinitive" else "overlap"
                self.story.claim(relation, told[-1:], fresh)
            told += fresh
            if clause.link != "relative":
                self.agents = agents
        if self.waiting and self.agents and told:
            early, late = self.waited(), told
            self.story.claim("overlap", early, late)
            told = early + late
        return told, clauses[0].form, own

    def _shown(self) -> list[int]:
        """What is named without a verb comes into view."""
        words = list(self.items[self.at].words) if self.kind() == "words" else []
        clauses, phrases = read_clauses(words, False)
        if clauses or not phrases:
            return []
        self.at += 1
        agents = [i for phrase in phrases for i in self.story.things.meant_all(phrase)]
        return self.story.tell(Clause([], "appear", "appear", [], "finite"), agents)

    def waited(self) -> list[int]:
        """The clauses that waited for somebody to act in them."""
        waiting, self.waiting = self.waiting, []
        told: list[int] = []
        for one in waiting if self.agents else []:
            told += self.story.tell_of(one.clause, self.agents, one.targets, one.places, one.place)
        return told

    def _agents(self, clause: Clause, is_first: bool) -> list[int]:
        things = self.story.things
        subjects = clause.subjects
        if is_first and self.pending:
            subjects, self.pending = [*self.pending, *(subjects or [])], []
        if clause.form == "passive":
            patients = (
                [i for phrase in subjects or [] for i in things.meant_all(phrase)] or self.patients or self.agents
            )
            agent = things.meant(clause.by, is_agent=True) if clause.by is not None else None
            self.patients = list(patients)
            if agent is not None:
                known = [things.known[i] for i in patients]
                clause.targets = [NounPhrase(thing.head, tuple(thing.adjectives), True) for thing in known]
                return [agent]
            clause.predicate = f"be {clause.predicate}"
            return list(patients)
        if subjects is None:
            return list(self.agents)
        return [i for phrase in subjects for i in things.meant_all(phrase, is_agent=True)]

    def _verbless(self, words: list[str], phrases: list[NounPhrase]) -> None:
        """Further subjects before their verb, further targets after it, or where it happens."""
        events = self.story.events
        follows = self.kind() in ("and", ",") or self.pending
        if words and words[0] in ("to", "in", "on", "at", "with", "up", "down", "off", "into", "for", "from"):
            phrase, _ = read_noun_phrase(words[1:])
            place = None if phrase is None or phrase.is_pronoun else self.story.things.meant(phrase)
            self.story.places += [(agent, words[0], place) for agent in self.agents if place is not None]
            return
        for phrase in phrases:
            last = events[-1] if events else None
            has_target = last is not None and last.target is not None and last.agent in self.agents
            if last is not None and has_target and not (follows and not self.agents) and len(events) < MAX_EVENTS:
                target = self.story.things.meant(phrase, beside=last.agent)
                if target is not None:
                    events.append(Told(last.agent, last.base, last.predicate, target))
                    self.story.claims += [("overlap", len(events) - 2, len(events) - 1)]
                continue
            self.pending.append(phrase)
            if not phrase.is_pronoun:
                self.story.things.meant(phrase)


def _relation(join: str, commas: int, forms: list[str], form: str, own: bool) -> str:
    """How clauses follow each other where no word says it."""
    if own or join == "relative":
        return "overlap"
    if join == "and":
        is_list = commas > 0
        return "overlap" if form == "gerund" and forms[-1] in ("gerund", "progressive") and not is_list else "before"
    if join in (",", ", and"):
        return "overlap" if form == "gerund" and forms[0] in ("finite", "progressive") else "before"
    return "overlap"
