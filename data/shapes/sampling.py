"""Draw scripts: first the timeline, then who does it, then where, rejecting what could not be seen or told apart.

A clip is only useful as a measure of time order if its events can be recognised from its pixels. So the sampler draws
how many events it wants once, which keeps that distribution as asked, and then tries timelines, attributes and places
until all the rules below hold. Everything is keyed by (seed, split, index).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.shapes.script import (
    COLOURS,
    ROTATABLE,
    SHADES,
    SHAPES,
    SIZES,
    TEXTURES,
    Background,
    Event,
    Script,
    ScriptSettings,
    Thing,
    is_heldout,
)
from data.shapes.staging import place
from data.shapes.timeline import Chances, draw_timeline
from vdm.errors import ConfigError

SPLITS = ("train", "val", "test", "heldout")
EVENTS_PER_THING = 3
SIZES_OF = {  # smaller things where there are more of them
    1: {"small": 1, "medium": 1, "large": 1},
    2: {"small": 5, "medium": 4, "large": 3},
    3: {"small": 5, "medium": 3, "large": 2},
}
TIMELINES, CASTS, STAGINGS = 2000, 60, 8  # tries


@dataclass(frozen=True)
class _Draws:
    """Numbers of a clip that are drawn once, whatever is rejected afterwards."""

    num_things: int
    num_events: int
    background: Background
    seed: int


def check(settings: ScriptSettings) -> None:
    """Refuse settings for which no script exists."""
    if not 1 <= settings.min_things <= settings.max_things <= 3:
        got = f"{settings.min_things} to {settings.max_things}"
        raise ConfigError("number of things out of range", key="max_things", got=got, allowed="1 <= min <= max <= 3")
    for name, given, known in (("shades", settings.shades, SHADES), ("sizes", settings.sizes, SIZES)):
        if not given or set(given) - set(known):
            what = f"{name} that the world does not have"
            raise ConfigError(what, key=f"data.source.{name}", got=list(given), allowed=list(known))
    if not 0 <= settings.scatter <= 1:
        raise ConfigError("a share of the room", key="data.source.scatter", got=settings.scatter, allowed="0 to 1")
    if settings.ticks < 4:
        raise ConfigError("too few ticks for every kind of event", key="ticks", got=settings.ticks, allowed=">= 4")
    most = EVENTS_PER_THING * settings.max_things
    if not 1 <= settings.min_events <= settings.max_events <= most:
        raise ConfigError(
            "number of events out of range",
            key="max_events",
            got=f"{settings.min_events} to {settings.max_events}",
            allowed=f"1 <= min <= max <= {most}, {EVENTS_PER_THING} for each of max_things={settings.max_things}",
            remedy="allow more things, or ask for fewer events",
        )
    if settings.ticks < settings.max_events / settings.max_things * 2:
        raise ConfigError(
            "the events do not fit into the clip",
            key="ticks",
            got=settings.ticks,
            allowed=f">= {-(-settings.max_events * 2 // settings.max_things)} for max_events={settings.max_events}",
        )


def sample_script(seed: int, index: int, settings: ScriptSettings, split: str = "train") -> Script:
    """The script of clip `index` of a split. Only scripts of the split "heldout" hold held-out compositions."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    draws = _draw_once(rng, settings)
    for _ in range(TIMELINES):
        chances = Chances(rng)
        events = draw_timeline(chances, draws.num_things, draws.num_events, settings.ticks, settings.rests)
        if events is None:
            continue
        things = _cast(chances, events, draws.num_things, settings, split == "heldout")
        if things is None:
            continue
        for _ in range(STAGINGS):
            placements = place(chances, things, events, settings)
            if placements is not None:
                return Script(things, placements, events, draws.background, settings.ticks, draws.seed)
    raise ConfigError(
        f"no clip with {draws.num_things} things and {draws.num_events} events was found in {TIMELINES} tries",
        key="max_events",
        got=f"ticks={settings.ticks}, max_things={settings.max_things}, max_events={settings.max_events}",
        remedy="ask for fewer events, or allow more ticks",
    )


def _draw_once(rng: np.random.Generator, settings: ScriptSettings) -> _Draws:
    num_events = int(rng.integers(settings.min_events, settings.max_events + 1))
    fewest = max(settings.min_things, -(-num_events // EVENTS_PER_THING), -(-2 * num_events // settings.ticks))
    num_things = int(rng.integers(fewest, settings.max_things + 1))
    textured = rng.random() < settings.textured
    background = Background(
        texture=TEXTURES[1 + int(rng.integers(len(TEXTURES) - 1))] if textured else "plain",
        shade=settings.shades[int(rng.integers(len(settings.shades)))],
        phase=int(rng.integers(4096)) / 4096,
        tint=float(rng.integers(360)),
    )
    return _Draws(num_things, num_events, background, int(rng.integers(2**31)))


def _cast(
    chances: Chances, events: tuple[Event, ...], num_things: int, settings: ScriptSettings, heldout: bool
) -> tuple[Thing, ...] | None:
    """Colours, shapes and sizes for a timeline, on the asked side of the held-out border."""
    sizes = {size: SIZES_OF[num_things][size] for size in settings.sizes}
    turning = {e.agent for e in events if e.action == "rotate"}
    for _ in range(CASTS):
        colours = chances.shuffled(COLOURS)[:num_things]
        shapes = [chances.choice(ROTATABLE if i in turning else SHAPES) for i in range(num_things)]
        things = tuple(
            Thing(f"{colour} {shape}", colour, shape, chances.weighted(sizes))
            for colour, shape in zip(colours, shapes, strict=True)
        )
        # Whether it is held out depends on things and events alone.
        if is_heldout(Script(things, (), events, Background("plain", "grey", 0.0, 0.0), settings.ticks, 0)) == heldout:
            return things
    return None
