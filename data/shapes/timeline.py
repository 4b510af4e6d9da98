"""When does who do what: timelines of events, before anyone knows what the things look like or where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from data.shapes.script import CHANNELS, DIRECTIONS, MOVES, Event

T = TypeVar("T")

# Shortest and longest event in ticks. Two ticks at least where one step cannot tell the action from another.
DURATIONS = dict.fromkeys(MOVES, (1, 4)) | {
    "grow": (1, 3),
    "shrink": (1, 3),
    "rotate": (2, 4),
    "blink": (2, 4),
    "appear": (1, 1),
    "vanish": (1, 1),
    "approach": (2, 4),
    "leave": (2, 4),
    "orbit": (2, 4),
}
# How often each kind is drawn; "follow" and "stay" are fitted in afterwards.
WEIGHTS = {"move": 6, "grow": 2, "shrink": 2, "rotate": 2, "blink": 2, "appear": 1.5, "vanish": 1.5}
TARGETED_WEIGHTS = {"approach": 4, "leave": 4, "orbit": 3}
ALL_WEIGHTS = WEIGHTS | TARGETED_WEIGHTS
SEQUENTIAL = 0.6  # share of clips, among those that have the room, whose events all come one after the other
FOLLOW, STAY, TOGETHER = 0.3, 0.25, 0.2  # shares of clips with a follower, a rest, an agent doing two things at once
HIDDEN = 2  # ticks between vanishing and appearing again; a thing that is away for one tick blinks


class Chances:
    """Cheap draws from one generator, independent of how numpy implements choice and shuffle."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng
        self._pool: list[float] = []

    def uniform(self) -> float:
        if not self._pool:
            self._pool = self._rng.random(128).tolist()
        return self._pool.pop()

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.uniform()

    def integer(self, low: int, high: int) -> int:
        """Both ends included."""
        return low + int(self.uniform() * (high - low + 1))

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self.uniform() * len(options))]

    def weighted(self, weights: dict[T, float]) -> T:
        at = self.uniform() * sum(weights.values())
        for option, weight in weights.items():
            at -= weight
            if at < 0:
                return option
        return option

    def shuffled(self, options: Sequence[T]) -> list[T]:
        return [options[i] for _, i in sorted((self.uniform(), i) for i in range(len(options)))]


def draw_timeline(
    chances: Chances, num_things: int, num_events: int, ticks: int, rests: bool = True
) -> tuple[Event, ...] | None:
    """Events sorted by time, or None where the draw broke a rule of what can be told apart."""
    extras = []
    if rests and num_events >= 2 and chances.uniform() < STAY:
        extras.append(_add_stay)
    if num_events >= 2 and num_things >= 2 and chances.uniform() < FOLLOW:
        extras.append(_add_follower)
    count = max(1, num_events - len(extras))
    extras = extras[: num_events - count]
    acts = [_draw_act(chances, num_things) for _ in range(count)]
    sequential = chances.uniform() < SEQUENTIAL and sum(duration for _, duration in acts) <= ticks
    if not rests:
        acts = [(action, DURATIONS[action][1]) for action, _ in acts]
    agents = _assign(chances, count, num_things)
    _put_in_sight(chances, acts, agents)
    events = _lay_out(chances, acts, agents, num_things, ticks, sequential, rests)
    if events is None:
        return None
    if not sequential and chances.uniform() < TOGETHER:
        events = _overlap_own(chances, events)
    for extra in reversed(extras):
        events = extra(chances, events, num_things, ticks)
        if events is None:
            return None
    if max(e.end for e in events) != ticks or not _is_clear(events, num_things, ticks):
        return None
    return tuple(sorted(events, key=lambda e: (e.start, e.end, e.agent)))


def _draw_act(chances: Chances, num_things: int) -> tuple[str, int]:
    name = chances.weighted(ALL_WEIGHTS if num_things > 1 else WEIGHTS)
    action = chances.choice(MOVES) if name == "move" else name
    low, high = DURATIONS[action]
    if action == "blink":
        return action, 2 if chances.uniform() < 0.7 else 4
    # Short ones more often: that leaves room for several.
    return action, low + int((high - low + 1) * chances.uniform() ** 1.6)


def _assign(chances: Chances, count: int, num_things: int) -> list[int]:
    """Who does each act: anybody, or everybody about equally often where there is much to do."""
    if count > num_things + 1:
        return chances.shuffled([i % num_things for i in range(count)])
    return [chances.integer(0, num_things - 1) for _ in range(count)]


def _put_in_sight(chances: Chances, acts: list[tuple[str, int]], agents: list[int]) -> None:
    """Let everybody appear before and vanish after what else they do; some vanish and come back instead."""
    for agent in set(agents):
        mine = [i for i, other in enumerate(agents) if other == agent]
        names = {acts[i][0] for i in mine}
        if {"appear", "vanish"} <= names and chances.uniform() < 0.5:
            continue
        ranked = sorted((acts[i] for i in mine), key=lambda act: (act[0] != "appear") + (act[0] == "vanish"))
        for i, act in zip(mine, ranked, strict=True):
            acts[i] = act


def _lay_out(
    chances: Chances,
    acts: list[tuple[str, int]],
    agents: list[int],
    num_things: int,
    ticks: int,
    sequential: bool,
    rests: bool,
) -> list[Event] | None:
    """Put the acts on one common line, or each agent's acts on a line of its own."""
    lines = (
        [list(range(len(acts)))]
        if sequential
        else [[i for i, agent in enumerate(agents) if agent == thing] for thing in range(num_things)]
    )
    lines = [line for line in lines if line]
    acts = list(acts)
    for line in lines:
        _shorten(acts, line, ticks)
    filling = chances.integer(0, len(lines) - 1)  # this line lasts to the end of the clip
    events = []
    for number, line in enumerate(lines):
        slack = ticks - sum(acts[i][1] for i in line)
        if slack < 0:
            return None
        gaps = [0] * (len(line) + 1)
        for _ in range(slack):
            gaps[chances.integer(0, len(line) - (number == filling)) if rests else 0] += 1
        time = 0
        for i, gap in zip(line, gaps, strict=False):
            action, duration = acts[i]
            targets = [t for t in range(num_things) if t != agents[i]]
            target = chances.choice(targets) if action in TARGETED_WEIGHTS else None
            events.append(Event(agents[i], action, target, time + gap, time + gap + duration))
            time += gap + duration
    return events


def _shorten(acts: list[tuple[str, int]], line: list[int], ticks: int) -> None:
    """Take ticks off the longest acts of a line until it fits, if it can."""
    while sum(acts[i][1] for i in line) > ticks:
        longest = max(line, key=lambda i: acts[i][1] - DURATIONS[acts[i][0]][0])
        action, duration = acts[longest]
        if duration == DURATIONS[action][0]:
            return
        acts[longest] = (action, 2 if action == "blink" else duration - 1)


def _overlap_own(chances: Chances, events: list[Event]) -> list[Event]:
    """Let one agent begin its next act together with the one before, if they change different things."""
    for i, (a, b) in enumerate(zip(events, events[1:], strict=False)):
        channels = {CHANNELS[a.action], CHANNELS[b.action]}
        if a.agent == b.agent and len(channels) == 2 and channels <= {"place", "size", "angle"}:
            last = max(e.end for e in events)
            start = a.start if b.end < last else max(a.start, min(a.end - 1, b.start))
            moved = Event(b.agent, b.action, b.target, start, start + b.end - b.start if b.end < last else last)
            low, high = DURATIONS[b.action]
            if b.action != "blink" and low <= moved.end - moved.start <= high:
                return [*events[: i + 1], moved, *events[i + 2 :]]
    return events


def _add_follower(chances: Chances, events: list[Event], num_things: int, ticks: int) -> list[Event] | None:
    """Another thing follows one that moves for at least two ticks."""
    for lead in chances.shuffled([e for e in events if e.action in DIRECTIONS and e.end - e.start >= 2]):
        for agent in chances.shuffled([i for i in range(num_things) if i != lead.agent]):
            busy = [e for e in events if e.agent == agent and e.start <= lead.end and lead.start <= e.end]
            if not any(CHANNELS[e.action] in ("place", "all") or CHANNELS[e.action] == "sight" for e in busy):
                return [*events, Event(agent, "follow", lead.agent, lead.start, lead.end)]
    return None


def _add_stay(chances: Chances, events: list[Event], num_things: int, ticks: int) -> list[Event] | None:
    """A thing rests for a whole gap between its acts (or for the whole clip, if it does nothing else)."""
    gaps = []
    for agent in range(num_things):
        mine = sorted((e for e in events if e.agent == agent), key=lambda e: e.start)
        edges, on = 0, not (mine and next((e.action for e in mine if CHANNELS[e.action] == "sight"), "") == "appear")
        for e in [*mine, None]:
            start = ticks if e is None else e.start
            if on and start - edges >= 2:
                gaps.append(Event(agent, "stay", None, edges, start))
            if e is not None:
                edges = max(edges, e.end)
                on = {"vanish": False, "appear": True}.get(e.action, on)
    return [*events, chances.choice(gaps)] if gaps else None


def _is_clear(events: list[Event], num_things: int, ticks: int) -> bool:
    """Whether everybody's acts can be told apart from pixels."""
    for agent in range(num_things):
        mine = sorted((e for e in events if e.agent == agent), key=lambda e: (e.start, e.end))
        if not _is_sight_clear([e for e in mine if e.action != "stay"]):
            return False
        for i, a in enumerate(mine):
            for b in mine[i + 1 :]:
                if not _is_pair_clear(a, b):
                    return False
    for e in events:
        if e.target is not None and not _is_target_ready(events, e):
            return False
    return _are_moves_distinct(events)


def _is_sight_clear(mine: list[Event]) -> bool:
    """A hidden thing does nothing; it is away for long enough not to blink; it is there at some time."""
    on = next((e.action for e in mine if CHANNELS[e.action] == "sight"), "") != "appear"
    since = 0
    for e in mine:
        if e.action == "appear":
            if on or (since and e.start - since < HIDDEN):
                return False
            on = True
        elif not on:
            return False
        elif e.action == "vanish":
            on, since = False, e.end
    return True


def _is_pair_clear(a: Event, b: Event) -> bool:
    """a is not later than b and both are of one agent."""
    channels = CHANNELS[a.action], CHANNELS[b.action]
    if a.end > b.start:
        return channels[0] != channels[1] and not {"sight", "all"} & set(channels)
    if a.end < b.start:
        return True
    if a.action == b.action or channels == ("sight", "sight"):
        return False
    if channels != ("place", "place"):
        return True
    if a.target is not None or b.target is not None:
        return False
    (ax, ay), (bx, by) = DIRECTIONS[a.action], DIRECTIONS[b.action]
    return ax * bx + ay * by <= 0  # at least a right angle: smaller turns look like an orbit


def _is_target_ready(events: list[Event], e: Event) -> bool:
    """The target rests in full sight, or moves steadily if it is followed."""
    for other in events:
        if other.agent != e.target or other.start > e.end or other.end < e.start:
            continue
        touching = other.start == e.end or other.end == e.start
        if CHANNELS[other.action] == "sight" or (CHANNELS[other.action] == "place" and not touching):
            if e.action == "follow" and other.action in DIRECTIONS and (other.start, other.end) == (e.start, e.end):
                continue
            return False
    hidden = [o for o in events if o.agent == e.target and o.action in ("appear", "vanish")]
    return all(o.end <= e.start if o.action == "appear" else o.start >= e.end for o in hidden)


def _are_moves_distinct(events: list[Event]) -> bool:
    """Two things that move alike at the same time look like one following the other."""
    moves = [e for e in events if e.action in DIRECTIONS]
    for i, a in enumerate(moves):
        for b in moves[i + 1 :]:
            if a.agent != b.agent and a.action == b.action and a.start < b.end and b.start < a.end:
                return False
    return True
