"""What a reader knows of a caption: events, claims about their times, and the things that are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dysen.action_plan import Event, Plan, Triplet
from dysen.english.clauses import Clause
from dysen.english.phrases import Things
from dysen.english.timeline import Timeline
from dysen.english.words import ENDING_STATES, LONG_PREPOSITIONS, MOVES, STATES
from dysen.names import clean
from dysen.scene_graph import SceneGraph, SceneObject

MAX_EVENTS = 24


@dataclass(frozen=True)
class Told:
    """An event before things have names."""

    agent: int
    base: str
    predicate: str
    target: int | None


@dataclass(frozen=True)
class ReadCaption:
    """What the rules understood. `plan` is None where nothing happens and nothing is named."""

    plan: Plan | None
    details: SceneGraph  # attributes of things, and where they are


class Story:
    """What is known after each sentence."""

    def __init__(self) -> None:
        self.things = Things()
        self.events: list[Told | None] = []  # None: its agent has not been named yet
        self.claims: list[tuple[str, int, int]] = []
        self.places: list[tuple[int, str, int]] = []
        self.told: list[list[int]] = []  # events of each sentence
        self.opening: list[int] = []
        self.closing: list[int] = []

    def claim(self, relation: str, first: Sequence[int], second: Sequence[int]) -> None:
        for i in first:
            for j in second:
                if i != j:
                    lasts = relation == "before" and self._goes_on(i, j)
                    self.claims.append(("overlap" if lasts else relation, i, j))

    def _goes_on(self, i: int, j: int) -> bool:
        """Somebody who sits still sits while drinking, but not while running."""
        state, other = self.events[i], self.events[j]
        if (
            state is None
            or other is None
            or state.base not in STATES
            or state.agent != other.agent
            or other.base in STATES
        ):
            return False
        return not (state.base in ENDING_STATES and other.base in MOVES)

    def tell(self, clause: Clause, agents: Sequence[int]) -> list[int]:
        """The events of a clause, one for each agent and target."""
        return self.tell_of(clause, agents, *self.meant(clause, agents[0] if agents else None))

    def meant(self, clause: Clause, agent: int | None) -> tuple[list[int], list[tuple[str, int]]]:
        """The targets and the places of a clause."""
        targets = [i for phrase in clause.targets for i in self.things.meant_all(phrase, beside=agent)]
        places = [(word, self.things.meant(phrase, beside=agent)) for word, phrase in clause.places]
        self.things.mention(targets)  # so that "it" means the target from now on
        return targets, [(word, place) for word, place in places if place is not None]

    def reserve(self) -> int | None:
        """A place for an event whose agent is named later."""
        if len(self.events) >= MAX_EVENTS:
            return None
        self.events.append(None)
        return len(self.events) - 1

    def tell_of(
        self,
        clause: Clause,
        agents: Sequence[int],
        targets: list[int],
        places: list[tuple[str, int]],
        place: int | None = None,
    ) -> list[int]:
        """The same where targets and places are known; the first event goes to its reserved place."""
        told: list[int] = []
        self.places += [(agent, word, place) for agent in agents for word, place in places if place != agent]
        if len(agents) > 1:
            self.things.together = list(agents)
        if clause.form == "copula":
            for agent in agents:
                self.things.known[agent].adjectives |= dict.fromkeys(clause.adjectives)
            return []
        for agent in agents:
            for target in targets or [None]:
                event = Told(agent, clause.base, clause.predicate, target if target != agent else None)
                known = [i for i, e in enumerate(self.events) if e and (e.agent, e.base) == (agent, clause.base)]
                if clause.is_retold and known:
                    told.append(known[-1])
                elif place is not None and not told:
                    self.events[place] = event
                    told.append(place)
                elif len(self.events) < MAX_EVENTS:
                    self.events.append(event)
                    told.append(len(self.events) - 1)
        return told

    def result(self) -> ReadCaption:
        names = [clean(name)[:60].strip() or "thing" for name in self.things.names()]
        relations = [
            Triplet(names[i], _spaced(word), names[j])
            for i, word, j in dict.fromkeys(self.places)
            if names[i] != names[j]
        ]
        objects = [
            SceneObject(name, tuple(thing.adjectives)[:8]) for name, thing in zip(names, self.things.known, strict=True)
        ]
        details = SceneGraph.build(
            objects[: MAX_EVENTS * 2], (), relations[:MAX_EVENTS] if len(objects) <= MAX_EVENTS * 2 else ()
        )
        if not any(self.events):
            return ReadCaption(Plan((Event(names[0], "appear", None, 0, 1),)) if names else None, details)
        timeline = Timeline(len(self.events))
        for relation, i, j in self.claims:
            (timeline.before if relation == "before" else timeline.overlap)(i, j)
        events: dict[Event, None] = {}
        for told, (start, end) in zip(self.events, timeline.intervals(), strict=True):
            if told is None:
                continue
            target = None if told.target is None else names[told.target]
            events[Event(names[told.agent], _spaced(told.predicate)[:60].strip(), target, start, end)] = None
        return ReadCaption(Plan(tuple(events)), details)


def _spaced(text: str) -> str:
    """ "sit next-to" as it is written."""
    for phrase, joined in LONG_PREPOSITIONS.items():
        text = text.replace(joined, phrase)
    return text
