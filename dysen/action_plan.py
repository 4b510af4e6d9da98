"""Action plans (Dysen-VDM, step I): events (agent, predicate, target, (start, end)) in whole ticks, frozen and valid.

A tick is the atomic interval v of the paper. An event holds in [start, end). The stored form is the json list
[[agent, predicate, target or null, [start, end]], ...] that the shapes world writes beside each clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dysen.names import check_name, shorten
from vdm.errors import PlanError

MAX_EVENTS = 64
MAX_TICK = 255  # the largest end of an event; a plan then has 256 graphs


@dataclass(frozen=True)
class Event:
    """`agent` does `predicate` (to `target`) in the ticks [start, end)."""

    agent: str
    predicate: str
    target: str | None
    start: int
    end: int

    def __post_init__(self):
        check_name(self.agent, "the agent of an event")
        check_name(self.predicate, "the predicate of an event")
        if self.target is not None:
            check_name(self.target, "the target of an event")
        if type(self.start) is not int or type(self.end) is not int or not 0 <= self.start < self.end <= MAX_TICK:
            raise PlanError(
                f"no interval of ticks, in the event of {self.agent!r}",
                got=shorten(f"({self.start!r}, {self.end!r})"),
                allowed=f"whole numbers, 0 <= start < end <= {MAX_TICK}",
            )

    @property
    def triplet(self) -> Triplet:
        """What happens, without when."""
        return Triplet(self.agent, self.predicate, self.target)


@dataclass(frozen=True)
class Triplet:
    """`subject` stands in the relation `predicate` to `object`; an action may have no object."""

    subject: str
    predicate: str
    object: str | None

    def __post_init__(self):
        check_name(self.subject, "the subject of a triplet")
        check_name(self.predicate, "the predicate of a triplet")
        if self.object is not None:
            check_name(self.object, "the object of a triplet")

    @property
    def names(self) -> tuple[str, ...]:
        """The objects it speaks of."""
        return (self.subject,) if self.object is None else (self.subject, self.object)


@dataclass(frozen=True)
class Plan:
    """At least one event, in the order in which they were told; none twice."""

    events: tuple[Event, ...]

    def __post_init__(self):
        assert isinstance(self.events, tuple), "the events of a plan are a tuple"
        if not 1 <= len(self.events) <= MAX_EVENTS:
            raise PlanError("no valid number of events in a plan", got=len(self.events), allowed=f"1 to {MAX_EVENTS}")
        if len(set(self.events)) != len(self.events):
            raise PlanError(
                "an event stands twice in a plan", got=[e for e in self.events if self.events.count(e) > 1][0]
            )

    @property
    def last(self) -> int:
        """The tick at which the last event ends."""
        return max(event.end for event in self.events)

    @property
    def num_ticks(self) -> int:
        """M, the number of scene graphs: one for each tick 0..last."""
        return self.last + 1

    @property
    def objects(self) -> tuple[str, ...]:
        """Agents and targets in the order of their first mention."""
        return tuple(dict.fromkeys(name for event in self.events for name in event.triplet.names))

    def stretched(self, last: int) -> Plan:
        """The same plan with its last end at this tick, where it would end before: nothing in a caption says how long a
        tick is. Times keep their proportions, rounded.
        """
        if self.last >= last:
            return self
        times = {
            time: (2 * time * last + self.last) // (2 * self.last) for e in self.events for time in (e.start, e.end)
        }
        return Plan(tuple(replace(e, start=times[e.start], end=times[e.end]) for e in self.events))

    def to_json(self) -> list[list[Any]]:
        """[[agent, predicate, target, [start, end]], ...]."""
        return [[e.agent, e.predicate, e.target, [e.start, e.end]] for e in self.events]

    @classmethod
    def from_json(cls, data: object) -> Plan:
        """The inverse of `to_json`; exact, so a hand-edited file with a slip is a `PlanError`."""
        if not isinstance(data, (list, tuple)):
            raise PlanError("a plan is a list of events", got=shorten(repr(data)))
        return cls(tuple(_event(entry) for entry in data))


def _event(entry: object) -> Event:
    match entry:
        case [agent, predicate, target, [start, end]]:
            return Event(agent, predicate, target, start, end)
    raise PlanError("no event", got=shorten(repr(entry)), allowed="[agent, predicate, target or null, [start, end]]")
