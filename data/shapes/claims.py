"""What a caption commits to about time, and what follows from it.

A caption states claims about pairs of events, each a few inequalities between their starts and ends, and nothing else
(the point algebra of Vilain and Kautz, 1986). What follows from a set of claims is reachability in the graph of those
inequalities, so "does the caption determine the order of these two events" has an exact answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.shapes.phrases import SEQUENCE_LETTERS, Pattern
from data.shapes.script import Event
from data.shapes.words import RETOLD


@dataclass(frozen=True, order=True)
class Claim:
    """`relation` holds between the events at positions `first` and `second`.

    before: the first is over when the second begins, at once or later. meets: the second begins when the first ends.
    overlap: at some time both are under way. joins: the first is under way when the second begins. equal: they begin
    together and end together.
    """

    relation: str
    first: int
    second: int


# Inequalities between the points (0 start, 1 end) of the first and the second event: (point, point, strict).
_FORWARD = {"before": [(1, 0, False)], "meets": [(1, 0, False)], "overlap": [(0, 1, True)]}
_BACKWARD = {"meets": [(0, 1, False)], "overlap": [(0, 1, True)]}
_FORWARD |= {"joins": [(0, 0, False)], "equal": [(0, 0, False), (1, 1, False)]}
_BACKWARD |= {"joins": [(0, 1, True)], "equal": [(0, 0, False), (1, 1, False)]}
RELATIONS = tuple(_FORWARD)


def inequalities(claim: Claim) -> list[tuple[int, int, bool]]:
    """(a, b, strict): point a is before point b, or not after it. Point 2 i is the start of event i, 2 i + 1 its end."""
    i, j = 2 * claim.first, 2 * claim.second
    forward = [(i + a, j + b, strict) for a, b, strict in _FORWARD[claim.relation]]
    return forward + [(j + a, i + b, strict) for a, b, strict in _BACKWARD.get(claim.relation, [])]


def holds(claim: Claim, events: Sequence[Event]) -> bool:
    """Whether a claim is true of events with known times."""
    points = [time for event in events for time in (event.start, event.end)]
    return all(points[a] < points[b] if strict else points[a] <= points[b] for a, b, strict in inequalities(claim))


class Consequences:
    """Everything that follows from claims about `num_events` events."""

    def __init__(self, num_events: int, claims: Iterable[Claim]):
        self.num_events = num_events
        num_points = 2 * num_events
        edges = [(2 * i, 2 * i + 1, True) for i in range(num_events)]
        for claim in claims:
            edges += inequalities(claim)
        # Row a holds, as bits, the points that are not before a.
        reach = [1 << a for a in range(num_points)]
        for a, b, _ in edges:
            reach[a] |= 1 << b
        for via in range(num_points):
            bit, row = 1 << via, reach[via]
            reach = [other | row if other & bit else other for other in reach]
        self._reach = reach
        self._strict = [(1 << a, reach[b]) for a, b, strict in edges if strict]

    def _after(self, a: int) -> int:
        """As bits, the points that are after a."""
        after, row = 0, self._reach[a]
        for tail, heads in self._strict:
            if row & tail:
                after |= heads
        return after

    def is_consistent(self) -> bool:
        return not any(self._after(a) >> a & 1 for a in range(2 * self.num_events))

    def order(self, i: int, j: int) -> str | None:
        """ "before", "after" or "overlap", or None where the claims leave it open."""
        if self._reach[2 * i + 1] >> (2 * j) & 1:
            return "before"
        if self._reach[2 * j + 1] >> (2 * i) & 1:
            return "after"
        if self._after(2 * i) >> (2 * j + 1) & 1 and self._after(2 * j) >> (2 * i + 1) & 1:
            return "overlap"
        return None

    def is_complete(self) -> bool:
        """Whether the order of every pair follows."""
        return all(self.order(i, j) for i in range(self.num_events) for j in range(i))

    def timeline(self) -> list[tuple[int, int]]:
        """The shortest whole-numbered [start, end) of every event that satisfies the claims."""
        assert self.is_consistent(), "contradicting claims have no timeline"
        points = range(2 * self.num_events)
        times, after = [0] * len(points), [self._after(a) for a in points]
        moved = True
        while moved:  # ends, because without contradictions no chain of points is longer than their number
            moved = False
            for a in points:
                for b in points:
                    least = times[a] + (after[a] >> b & 1)
                    if self._reach[a] >> b & 1 and times[b] < least:
                        times[b], moved = least, True
        return [(times[2 * i], times[2 * i + 1]) for i in range(self.num_events)]


def within_sentence(pattern: Pattern, events: dict[str, tuple[int, ...]], units: dict[str, Pattern]) -> list[Claim]:
    """What a filled pattern says: `events` in each slot, told by `units` where a slot holds two."""
    claims = [Claim(units[letter].simultaneous, *events[letter]) for letter in units]
    forms = {slot.letter: slot.form for slot in pattern.slots}
    sequence = sorted(letter for letter in forms if letter in SEQUENCE_LETTERS)
    for x, y in zip(sequence, sequence[1:], strict=False):
        claims += [Claim(pattern.successive, i, j) for i in events[x] for j in events[y]]
    others = [letter for letter in pattern.letters if letter not in sequence]
    for number, a in enumerate(others):
        claims += [
            Claim(pattern.simultaneous, i, j) for b in others[number + 1 :] for i in events[a] for j in events[b]
        ]
        claims += [Claim("overlap", i, j) for x in sequence for i in events[a] for j in events[x]]
    for letter, form in forms.items():
        if form in RETOLD:
            relation = "joins" if form == "still" else "before"
            claims += [Claim(relation, i, j) for i in events[letter] for b in pattern.letters for j in events[b]]
    return claims


def between_sentences(kinds: Sequence[str | None]) -> list[Claim]:
    """What the words before sentences say about their order: claims about positions in the text.

    `kinds` are keys of phrases.MARKERS; None says nothing.
    """
    claims = []
    for here, kind in enumerate(kinds):
        said, others = range(here), [i for i in range(len(kinds)) if i != here]
        if kind == "next":
            claims.append(Claim("before", here - 1, here))
        elif kind == "next_all":
            claims += [Claim("before", i, here) for i in said]
        elif kind == "prior":
            claims.append(Claim("before", here, here - 1))
        elif kind == "prior_all":
            claims += [Claim("before", here, i) for i in said]
        elif kind in ("first", "first_single"):
            claims += [Claim("before", here, i) for i in others]
        elif kind in ("last", "last_single"):
            claims += [Claim("before", i, here) for i in others]
        else:
            assert kind in (None, "between"), f"{kind} places no sentence"
    return claims
