"""What happens in a clip, as plain data: things, events in ticks, and what may be said about their order.

A script is all the renderer, the truth and the caption grammar know about a clip. Time is counted in ticks; an event
holds in [start, end). Lengths are fractions of the picture's width, x to the right and y down, angles in degrees.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "cross", "bar", "ring")
SIZES = ("small", "medium", "large")
TEXTURES = ("plain", "gradient", "stripes", "checks", "dots", "clouds")
SHADES = ("dark", "grey", "light")

# Unit steps in picture coordinates: up is -y.
DIRECTIONS = {
    "move_left": (-1, 0),
    "move_right": (1, 0),
    "move_up": (0, -1),
    "move_down": (0, 1),
    "move_up_left": (-1, -1),
    "move_up_right": (1, -1),
    "move_down_left": (-1, 1),
    "move_down_right": (1, 1),
}
MOVES = tuple(DIRECTIONS)
TARGETED = ("approach", "leave", "orbit", "follow")
ACTIONS = (*MOVES, "grow", "shrink", "rotate", "blink", "appear", "vanish", *TARGETED, "stay")

# What an action changes. Actions of one agent may overlap in time only when they change different things.
CHANNELS = {action: "place" for action in (*MOVES, *TARGETED)}
CHANNELS |= {
    "grow": "size",
    "shrink": "size",
    "rotate": "angle",
    "blink": "sight",
    "appear": "sight",
    "vanish": "sight",
}
CHANNELS["stay"] = "all"

# Turning a disc or a ring changes no pixel, so the world never does it.
ROTATABLE = ("square", "triangle", "cross", "bar")

# The thirteen relations of Allen's interval algebra, each with its converse.
CONVERSES = {
    "before": "after",
    "meets": "met_by",
    "overlaps": "overlapped_by",
    "starts": "started_by",
    "during": "contains",
    "finishes": "finished_by",
    "equals": "equals",
}
RELATIONS = (*CONVERSES, "after", "met_by", "overlapped_by", "started_by", "contains", "finished_by")

# Compositions that only the split "heldout" shows. One (colour, shape, action) of thirteen, spread over all of them;
# and these kinds of action, in this time order, by any agents: training shows them in the other order only.
HELDOUT_ORDERS = (("grow", "rotate"), ("blink", "shrink"), ("orbit", "grow"), ("vanish", "approach"))


@dataclass(frozen=True)
class Thing:
    """One object of a clip. `name` is unique in the clip: 'red square'."""

    name: str
    colour: str
    shape: str
    size: str


@dataclass(frozen=True)
class Placement:
    """Where a thing is at tick 0. The thing with the smallest depth is in front."""

    x: float
    y: float
    angle: float
    depth: int


@dataclass(frozen=True)
class Background:
    """A grey, nearly colourless ground. `phase` in [0, 1) shifts the texture, `tint` is a hue in degrees."""

    texture: str
    shade: str
    phase: float
    tint: float


@dataclass(frozen=True)
class Event:
    """things[agent] does `action` (to things[target]) in the ticks [start, end)."""

    agent: int
    action: str
    target: int | None
    start: int
    end: int


@dataclass(frozen=True)
class Script:
    """A whole clip. Events are sorted by (start, end, agent)."""

    things: tuple[Thing, ...]
    placements: tuple[Placement, ...]
    events: tuple[Event, ...]
    background: Background
    ticks: int
    seed: int  # seeds whatever else is drawn for this clip: texture, caption wording

    def plan(self) -> list[list[Any]]:
        """The action plan in the paper's form, [agent, predicate, target, [start, end]], ready for json."""
        names = [thing.name for thing in self.things]
        return [
            [names[e.agent], e.action, None if e.target is None else names[e.target], [e.start, e.end]]
            for e in self.events
        ]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Script:
        return cls(
            things=tuple(Thing(**thing) for thing in data["things"]),
            placements=tuple(Placement(**placement) for placement in data["placements"]),
            events=tuple(Event(**event) for event in data["events"]),
            background=Background(**data["background"]),
            ticks=data["ticks"],
            seed=data["seed"],
        )


@dataclass(frozen=True)
class ScriptSettings:
    """What a sampled script may contain."""

    ticks: int
    min_things: int
    max_things: int
    min_events: int
    max_events: int
    textured: float  # share of clips whose background is not plain
    shades: tuple[str, ...] = SHADES  # of the ground
    scatter: float = 1.0  # where things begin: 0 in the middle of the room that their moves leave them, 1 anywhere
    tilted: bool = True  # things begin at any angle, not upright
    rests: bool = True  # time may pass between events; if not, they last as long as they can
    sizes: tuple[str, ...] = SIZES


def kind(action: str) -> str:
    """The action without its direction: 'move' for all eight moves."""
    return "move" if action in DIRECTIONS else action


def order(a: Event, b: Event) -> str:
    """The relation of Allen's interval algebra that holds from `a` to `b`: one of RELATIONS."""
    if a.end < b.start:
        return "before"
    if a.end == b.start:
        return "meets"
    if (a.start, a.end) == (b.start, b.end):
        return "equals"
    if a.start == b.start and a.end < b.end:
        return "starts"
    if a.start > b.start and a.end < b.end:
        return "during"
    if a.start > b.start and a.end == b.end:
        return "finishes"
    if a.start < b.start < a.end < b.end:
        return "overlaps"
    return CONVERSES[order(b, a)]


def precedes(a: Event, b: Event) -> bool:
    """`a` is over when `b` begins."""
    return a.end <= b.start


def ordered_pairs(events: tuple[Event, ...]) -> list[tuple[int, int]]:
    """Positions (i, j) of all events where i is over before j begins: the pairs with one definite time order."""
    return [(i, j) for i, a in enumerate(events) for j, b in enumerate(events) if i != j and precedes(a, b)]


def active(events: tuple[Event, ...], tick: int) -> list[int]:
    """Positions of the events that hold at a tick; those that end with the last event still hold at its end."""
    last = max((event.end for event in events), default=0)
    return [
        i
        for i, e in enumerate(events)
        if e.start <= tick < e.end or (tick == last and e.end == last and e.start <= tick)
    ]


def is_heldout_composition(colour: str, shape: str, action: str) -> bool:
    """Whether only the split "heldout" may show a thing of this colour and shape do this."""
    return (3 * COLOURS.index(colour) + 5 * SHAPES.index(shape) + 7 * ACTIONS.index(action)) % 13 == 0


def heldout_compositions(script: Script) -> list[tuple[str, ...]]:
    """The held-out compositions in a script: (colour, shape, action) triples and (kind, kind) orders."""
    triples = [(script.things[e.agent].colour, script.things[e.agent].shape, e.action) for e in script.events]
    found: list[tuple[str, ...]] = [triple for triple in triples if is_heldout_composition(*triple)]
    kinds = [kind(event.action) for event in script.events]
    found += [pair for i, j in ordered_pairs(script.events) if (pair := (kinds[i], kinds[j])) in HELDOUT_ORDERS]
    return sorted(set(found))


def is_heldout(script: Script) -> bool:
    """Scripts for which this holds are in the split "heldout" and in no other."""
    return bool(heldout_compositions(script))
