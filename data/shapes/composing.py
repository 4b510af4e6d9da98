"""From events to sentences: which stages share a sentence, in which order they are told, by which patterns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.shapes.claims import Claim, Consequences, between_sentences, within_sentence
from data.shapes.phrases import (
    CLIQUES,
    CONTINUATIONS,
    HOSTS,
    MARKERS,
    PAIRS,
    SEQUENCE_LETTERS,
    SEQUENCES,
    UNITS,
    Pattern,
)
from data.shapes.script import Event
from data.shapes.speaker import Speaker
from data.shapes.stages import Stage, overlap, stages
from data.shapes.timeline import Chances

SENTENCE_LENGTHS = {1: 1.0, 2: 3.0, 3: 2.0}  # how often a sentence tells one, two, three stages
SENTENCE_EVENTS = 4  # at most
ALSO_REORDERED = 0.3  # share of further places in a reordered caption where the order is turned
MEANWHILE = 0.25  # share of long events told in a sentence before what happens meanwhile
SHUFFLES = 8  # tries for an order of sentences that their first words can make clear
SPECIAL = 0.5  # share of sentences with a shared subject or verb, where there can be one
LAST = 0.7  # share of last sentences that may begin with "At the end,"
BARE = 0.6  # share of first sentences without "In the beginning,"


_WORDS = re.compile("[a-z]+")


@dataclass
class Chunk:
    """Consecutive stages that are told together."""

    stages: list[Stage]
    turned: bool = False  # to be told in another order than they happen

    @property
    def is_simple(self) -> bool:
        return max(map(len, self.stages)) <= 2


class Composer:
    """Tells all events of a script through a speaker, and keeps what was claimed."""

    def __init__(self, events: Sequence[Event], speaker: Speaker, chances: Chances, reordered: bool):
        self._events, self._speaker, self._chances, self._reordered = events, speaker, chances, reordered
        self.claims: list[Claim] = []
        self.is_fixed = False  # no place to leave time order

    def tell(self) -> list[str]:
        """All sentences, without capitals and full stops."""
        chunks = self._chunks()
        order, kinds = list(range(len(chunks))), None
        if self._reordered:
            order, kinds = self._turn(chunks)
        if kinds is None:
            kinds = self._kinds(order, chunks)
        sentences: list[str] = []
        used: list[str] = []
        for place, (number, kind) in enumerate(zip(order, kinds, strict=True)):
            marker = ""
            if kind is not None:
                single = len(chunks[number].stages) == 1 and chunks[number].is_simple
                words = MARKERS[kind] + (MARKERS.get(f"{kind}_single", ()) if single else ())
                marker = self._chances.choice([w for w in words if w not in used] or words)
                used.append(marker)
                marker += " "
            opening = number == 0 and place == 0 and not marker
            closing = number == place == len(chunks) - 1 and kind not in ("last", "first")
            firm = kinds[place + 1 : place + 2] == ["next"]
            sentences += self._sentences(chunks[number], marker, opening, closing, firm)
        for claim in between_sentences(kinds):
            before, after = chunks[order[claim.first]].stages, chunks[order[claim.second]].stages
            self.claims += [Claim("before", i, j) for a in before for i in a for b in after for j in b]
        return sentences

    def _chunks(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        length = 0
        for stage in stages(self._events):
            told = sum(map(len, chunks[-1].stages)) + len(stage) if chunks else 0
            fits = chunks and len(chunks[-1].stages) < length and told <= SENTENCE_EVENTS
            if fits and len(stage) <= 2 and chunks[-1].is_simple:
                chunks[-1].stages.append(stage)
            else:
                chunks.append(Chunk([stage]))
                length = self._chances.weighted(SENTENCE_LENGTHS)
        return chunks

    def _turn(self, chunks: list[Chunk]) -> tuple[list[int], list[str | None] | None]:
        """Choose where text order leaves time order: inside chunks, or between them."""
        inside = [chunk for chunk in chunks if len(chunk.stages) > 1 or self._can_turn(chunk.stages[0])]
        sites: list[Chunk | None] = [*inside, *([None] if len(chunks) > 1 else [])]
        self.is_fixed = not sites
        if not sites:
            return list(range(len(chunks))), None
        sure = self._chances.choice(sites)
        for chunk in inside:
            chunk.turned = chunk is sure or self._chances.uniform() < ALSO_REORDERED
        if sure is None or (len(chunks) > 1 and self._chances.uniform() < ALSO_REORDERED):
            for _ in range(SHUFFLES):
                order = self._shuffled(len(chunks))
                kinds = self._kinds(order, chunks)
                if order != sorted(order) and kinds is not None:
                    return order, kinds
        return list(range(len(chunks))), None

    def _shuffled(self, count: int) -> list[int]:
        """Any order of a few sentences; of many, the end first or the beginning last, which a reader can follow."""
        if count <= 3:
            return self._chances.shuffled(range(count))
        every = list(range(count))
        return [every[-1], *every[:-1]] if self._chances.uniform() < 0.5 else [*every[1:], every[0]]

    def _kinds(self, order: list[int], chunks: list[Chunk]) -> list[str | None] | None:
        """Kinds of opening words that make an order of chunks clear, if there are any."""
        last, kinds = len(order) - 1, []
        in_time = order == sorted(order)
        for place, number in enumerate(order):
            said, previous = order[:place], chunks[order[place - 1]]
            options: list[str | None] = []
            if place == 0:
                if last > 0 and number == 0 and self._chances.uniform() > BARE:
                    options = ["first"]
                elif not in_time and number == last:
                    options = ["last", None]
                else:
                    options = [None]
            else:
                if order[place - 1] == number - 1 and previous.is_simple and not previous.turned:
                    options += ["next"] * 2
                if max(said) < number:
                    if number == last and self._chances.uniform() < LAST:
                        options.append("last")
                    elif not options or sum(len(stage) for i in said for stage in chunks[i].stages) > 1:
                        options.append("next_all")
                if number < min(said):
                    single = len(previous.stages) == 1 and previous.is_simple
                    options.append("prior" if place == 1 and single else "prior_all")
                    if number == 0:
                        options.append("first")
                if order == [0, 2, 1] and place == 2:
                    options.append("between")
            if not options:
                return None
            kinds.append(self._chances.choice(options))
        if in_time:
            return kinds
        return kinds if Consequences(len(order), between_sentences(kinds)).is_complete() else None

    def _sentences(self, chunk: Chunk, marker: str, opening: bool, closing: bool, firm: bool) -> list[str]:
        def allowed(pattern: Pattern) -> bool:
            if (pattern.opening and not opening) or (pattern.closing and not closing) or (pattern.is_loose and firm):
                return False
            return not marker or not _clashes(marker, pattern)

        if len(chunk.stages) > 1:
            return [marker + self._sequence(chunk.stages, chunk.turned, allowed)]
        return self._stage(chunk.stages[0], chunk.turned, marker, allowed)

    def _stage(self, stage: Stage, turned: bool, marker: str, allowed: Callable[[Pattern], bool]) -> list[str]:
        if len(stage) == 1:
            return [marker + self._fill(SEQUENCES[1][0], {"X": (stage[0],)})]
        if len(stage) == 2:
            return [marker + self._fill(*self._pair(stage, PAIRS, allowed))]
        if self._is_clique(stage):
            letters = dict(zip("ABCDEFGHI", ((i,) for i in self._chances.shuffled(stage)), strict=False))
            fitting = [p for p in CLIQUES[len(stage)] if allowed(p) and self._fits(p, letters)]
            return [marker + self._fill(self._choose(fitting or CLIQUES[len(stage)][:1]), letters)]
        if hosts := self._hosts(stage):
            return self._around(hosts, stage, turned, marker, allowed)
        size = self._beginning(stage)
        sentences = self._stage(stage[:size], turned and not self._repeats(stage), marker, allowed)
        while size < len(stage):
            for step in (4, 3, 2, 1):
                found = self._continues(stage[:size], stage[size : size + step])
                if found is not None:
                    break
            assert found is not None, "a single event can always be added"
            sentences.append(self._fill(*found))
            size += step
        return sentences

    def _sequence(self, parts: list[Stage], turned: bool, allowed: Callable[[Pattern], bool]) -> str:
        letters = {letter: tuple(part) for letter, part in zip("XYZ", parts, strict=False)}
        every = SEQUENCES[len(parts)]
        fitting = [p for p in every if allowed(p) and self._fits(p, letters)] or every[:1]
        wanted = [p for p in fitting if p.chronological != turned] or fitting
        return self._fill(self._choose(wanted), letters)

    def _is_clique(self, stage: Stage) -> bool:
        return all(overlap(self._events[i], self._events[j]) for i in stage for j in stage)

    def _can_turn(self, stage: Stage) -> bool:
        """Whether events that follow each other inside a stage can be told in another order."""
        if len(stage) < 3:
            return False
        if self._hosts(stage):
            return True
        return bool(self._hosts(stage[: self._beginning(stage)])) and not self._repeats(stage)

    def _repeats(self, stage: Stage) -> bool:
        """Whether somebody does the same again: what is told twice must then be the last that was told."""
        acts = [(self._events[i].agent, self._events[i].action, self._events[i].target) for i in stage]
        return len(set(acts)) < len(acts)

    def _hosts(self, stage: Stage) -> list[int]:
        """Events that overlap all others of a stage, if the others are a sequence for which there is a pattern."""
        if len(stage) < 3:
            return []
        hosts = [i for i in stage if all(overlap(self._events[i], self._events[j]) for j in stage)]
        rest = stages(self._events, [i for i in stage if i not in hosts])
        if not hosts or not rest:
            return []
        return hosts if (len(hosts), len(rest)) in HOSTS and max(map(len, rest)) <= 2 else []

    def _around(
        self, hosts: list[int], stage: Stage, turned: bool, marker: str, allowed: Callable[[Pattern], bool]
    ) -> list[str]:
        rest = stages(self._events, [i for i in stage if i not in hosts])
        if len(hosts) == 1 and len(rest) <= 3 and self._chances.uniform() < MEANWHILE:
            begin = marker + self._fill(SEQUENCES[1][0], {"X": (hosts[0],)})
            also = self._chances.choice(MARKERS["meanwhile"]) + " "
            text = self._sequence(rest, turned, lambda p: not p.closing and (p.opening or not _clashes(also, p)))
            self.claims += [Claim("overlap", hosts[0], i) for part in rest for i in part]
            return [begin, also + text]
        letters = dict(zip("HI", ((i,) for i in self._chances.shuffled(hosts)), strict=False))
        names = SEQUENCE_LETTERS if len(rest) == len(SEQUENCE_LETTERS) else SEQUENCE_LETTERS[1:]
        letters |= {letter: tuple(part) for letter, part in zip(names, rest, strict=False)}
        every = HOSTS[len(hosts), len(rest)]
        fitting = [p for p in every if allowed(p) and self._fits(p, letters)] or every[:1]
        wanted = [p for p in fitting if p.chronological != turned] or fitting
        return [marker + self._fill(self._chances.choice(wanted), letters)]

    def _beginning(self, stage: Stage) -> int:
        """How many of the first events of a tangle, in the order in which they begin, there is a pattern for."""
        sizes = range(len(stage), 2, -1)
        return next((n for n in sizes if self._is_clique(stage[:n]) or self._hosts(stage[:n])), 2)

    def _continues(
        self, told: Sequence[int], added: Sequence[int]
    ) -> tuple[Pattern, dict[str, tuple[int, ...]]] | None:
        """A pattern that adds events to a tangle by saying what is over and what still goes on, if there is one."""
        events = self._events
        parts = stages(events, added)
        if len(parts) > 2 or max(map(len, parts)) > 2:
            return None
        inside = [Claim("before", i, j) for i in parts[0] for j in parts[-1]] if len(parts) > 1 else []
        inside += [Claim("overlap", *part) for part in parts if len(part) == 2]
        done, going = [], []
        known = Consequences(len(events), self.claims + inside)
        for i in sorted(told, key=lambda i: (-events[i].end, i)):
            if all(known.order(i, j) for j in added):
                continue  # it follows from what is said already
            relation = "joins" if overlap(events[i], events[added[0]]) else "before"
            if any(overlap(events[i], events[j]) != (relation == "joins") for j in added):
                return None
            (going if relation == "joins" else done).append(i)
            inside += [Claim(relation, i, j) for j in added]
            known = Consequences(len(events), self.claims + inside)
        choices = CONTINUATIONS.get((len(done), len(going), len(parts)))
        if choices is None:
            return None
        letters = {letter: (i,) for letter, i in [*zip("OPQR", done, strict=False), *zip("GKLMN", going, strict=False)]}
        letters |= {letter: tuple(part) for letter, part in zip("XY", parts, strict=False)}
        fitting = [p for p in choices if self._fits(p, letters)]
        return self._chances.choice(fitting), letters

    def _pair(
        self, stage: Sequence[int], choices: Sequence[Pattern], allowed: Callable[[Pattern], bool] | None = None
    ) -> tuple[Pattern, dict[str, tuple[int, ...]]]:
        a, b = self._chances.shuffled(stage)
        letters = {"A": (a,), "B": (b,)}
        fitting = [p for p in choices if (allowed is None or allowed(p)) and self._fits(p, letters)]
        return self._choose(fitting), letters

    def _choose(self, fitting: Sequence[Pattern]) -> Pattern:
        """Patterns that need one agent or one action seldom fit, and read best when they do."""
        special = [p for p in fitting if p.one_agent or p.one_action]
        return self._chances.choice(special if special and self._chances.uniform() < SPECIAL else fitting)

    def _fits(self, pattern: Pattern, letters: dict[str, tuple[int, ...]]) -> bool:
        """Whether a pattern has room for the events, and says nothing false of them."""
        full = [letter for letter, inner in letters.items() if len(inner) > 1]
        if full and any(slot.letter in full and not slot.wide for slot in pattern.slots):
            return False
        if not (pattern.one_agent or pattern.one_action or pattern.exact):
            return True
        told = [self._events[i] for inner in letters.values() for i in inner]
        agents = {event.agent for event in told}
        if pattern.one_agent and (len(agents) > 1 or len(told) > len(letters)):
            return False
        if pattern.one_action and (len({(e.action, e.target) for e in told}) > 1 or len(agents) < len(told)):
            return False
        if pattern.successive == "meets" and (len(told) > 2 or told[0].end != told[1].start):
            return False
        return pattern.simultaneous == "overlap" or len({(e.start, e.end) for e in told}) == 1

    def _fill(self, pattern: Pattern, letters: dict[str, tuple[int, ...]]) -> str:
        units = {}
        letters = dict(letters)
        for letter, inner in letters.items():
            if len(inner) == 2:
                units[letter], inside = self._pair(inner, UNITS)
                letters[letter] = (*inside["A"], *inside["B"])
        self.claims += within_sentence(pattern, letters, units)
        self._speaker.begin_sentence()
        return self._speaker.say(pattern, letters, units)


def _clashes(marker: str, pattern: Pattern) -> bool:
    """Whether a sentence would sound wrong after its first words: "Then first", "After that, after", "Then, then"."""
    words = _WORDS.findall(marker)
    if pattern.opening or (pattern.conjunction and (words[0] in ("after", "before", "when") or marker == "then ")):
        return True
    return any(word in ("first", "then", "after", "before", "same") for word in words if word in pattern.text)
