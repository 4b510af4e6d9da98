"""Captions of the shapes world with the plans that they decide, some of their verbs new words: what a planner learns from.

A lesson is a caption and the only plan it allows, in the order in which it tells the events, in the fewest ticks. A
lexicon puts a nonsense word in the place of every verb of some actions, in all its forms; who has not been shown a lesson
with that word cannot know what it means.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.shapes.claims import Consequences
from data.shapes.composing import Composer
from data.shapes.sampling import EVENTS_PER_THING, check
from data.shapes.script import (
    ACTIONS,
    COLOURS,
    ROTATABLE,
    SHADES,
    SHAPES,
    SIZES,
    TARGETED,
    TEXTURES,
    Background,
    Script,
    ScriptSettings,
    Thing,
)
from data.shapes.speaker import BASE, CLOSE, OPEN, Speaker
from data.shapes.timeline import Chances, draw_timeline
from data.shapes.words import FORMS, RETOLD
from vdm.bounds import Fraction, NonNegativeInt, PositiveInt
from vdm.errors import ConfigError

ONSETS = ("b", "bl", "br", "d", "dr", "f", "fl", "g", "gl", "gr", "k", "kl", "kr", "m", "n", "p", "pl", "pr", "sm", "sn",
          "sk", "sp", "tr", "v", "w", "z", "zw")  # fmt: skip
VOWELS = "aiou"
CODAS = ("b", "ck", "ft", "g", "lk", "lm", "mp", "nd", "nk", "p", "rb", "rf", "rk", "rm", "st")
ENDINGS = ("et", "ock", "im", "und", "olk")
INTRODUCED = 0.2  # share of captions that begin with who is there
LATE = ("follow", "stay")  # only beside another event
TOLD_PER_THING = 4  # events; nobody has to see them, so one more than in a clip
TRIES = 6  # scripts, of which the one is taken that shares most actions with earlier ones, or fewest
VERB = "\x03"  # stands, with the number of the event, before the words that tell it
MARKS = re.compile(f"({VERB}.)|{OPEN}.|{CLOSE}")

Lexicon = Mapping[str, str]  # action -> the stem of its new verb


@dataclass(frozen=True)
class Lesson:
    """For each event of the plan, `new` names the stem of the new verb that told it (None: a known verb), and `verbs` the
    place of its verb in the caption (None: another event has the same words).
    """

    caption: str
    plan: tuple[tuple[str, str, str | None, tuple[int, int]], ...]
    new: tuple[str | None, ...]
    verbs: tuple[int | None, ...]

    def to_json(self) -> dict[str, Any]:
        rows = [[agent, act, target, list(times)] for agent, act, target, times in self.plan]
        return {"caption": self.caption, "plan": rows, "new": list(self.new), "verbs": list(self.verbs)}


def nonsense(chances: Chances, count: int) -> list[str]:
    """Different words that nobody knows: "blick", "zwarbet"."""
    found: dict[str, None] = {}
    while len(found) < count:
        word = chances.choice(ONSETS) + chances.choice(VOWELS) + chances.choice(CODAS)
        found[word + chances.choice(ENDINGS) if chances.uniform() < 0.5 else word] = None
    return list(found)


def draw_lexicon(seed: int, count: int, *, things: int, late: bool, key: str) -> Lexicon:
    """New verbs for some of the actions that so many things can do; `late` are those beside another event."""
    possible = [a for a in ACTIONS if (late or a not in LATE) and (things > 1 or a not in TARGETED)]
    if not 0 <= count <= len(possible):
        what = "new verbs for so many actions, of those that captions can have"
        raise ConfigError(what, key=key, got=count, allowed=f"0 to {len(possible)}")
    chances = Chances(np.random.default_rng([seed, 9]))
    actions = chances.shuffled(possible)[:count]
    return dict(zip(actions, nonsense(chances, count), strict=True))


class Teller(Speaker):
    """Speaks with the words of a lexicon."""

    def __init__(self, script: Script, chances: Chances, lexicon: Lexicon):
        super().__init__(script, chances)
        self._lexicon = lexicon

    def _verb(self, number: int, form: str) -> str:
        action = self._script.events[number].action
        words = super()._verb(number, form) if action not in self._lexicon else self._new_verb(action, form)
        if form in RETOLD:
            return words
        first = len(FORMS[form][0])  # of the verb, behind "has" or "is"
        return f"{words[:first]}{VERB}{chr(BASE + number)}{words[first:]}"

    def _new_verb(self, action: str, form: str) -> str:
        before, column = FORMS[form]
        word = self._lexicon[action] + ("", "s", "ed", "ing")[column]
        return f"{before}{word}{' {T}' if action in TARGETED else ''}"


def tell_lesson(script: Script, chances: Chances, lexicon: Lexicon, *, reordered: bool | None = None) -> Lesson:
    """One caption of a script, of a clip or drawn without one, with the new verbs of a lexicon."""
    teller = Teller(script, chances, lexicon)
    composer = Composer(script.events, teller, chances, chances.uniform() < 0.5 if reordered is None else reordered)
    idle = set(range(len(script.things))) - {i for e in script.events for i in (e.agent, e.target)}
    sentences = [teller.introduce()] if idle or chances.uniform() < INTRODUCED else []
    text, verbs = _written([*sentences, *composer.tell()])
    times = Consequences(len(script.events), composer.claims).timeline()
    names = [thing.name for thing in script.things]
    events = [(script.events[i], times[i]) for i in teller.told]
    rows = tuple((names[e.agent], e.action, None if e.target is None else names[e.target], time) for e, time in events)
    new = tuple(lexicon.get(e.action) for e, _ in events)
    return Lesson(text, rows, new, tuple(verbs.get(i) for i in teller.told))


def retell(script: Script, seed: int, count: int, reordered_share: float, lexicon: Lexicon) -> tuple[str, ...]:
    """Distinct captions of a clip in the words of a lexicon, as `grammar.tell` tells them in known ones."""
    found: dict[str, None] = {}
    for number in range(TRIES * count):
        chances = Chances(np.random.default_rng([seed, script.seed, number, 2]))
        found[tell_lesson(script, chances, lexicon, reordered=chances.uniform() < reordered_share).caption] = None
        if len(found) == count:
            break
    return tuple(found)


def _written(sentences: list[str]) -> tuple[str, dict[int, int]]:
    """The text, and where the verb of each event stands."""
    text, verbs = "", {}
    for sentence in sentences:
        text += " " if text else ""
        begin = len(text)
        for piece in MARKS.split(sentence):
            if piece and piece.startswith(VERB):
                verbs[ord(piece[1]) - BASE] = len(text)
            elif piece:
                text += piece
        text = f"{text[:begin]}{text[begin].upper()}{text[begin + 1 :]}."
    return text, verbs


def check_told(settings: ScriptSettings) -> None:
    """Refuse what no caption tells."""
    most = TOLD_PER_THING * settings.max_things
    if settings.max_events > most:
        raise ConfigError("number of events out of range", key="texts.source.max_events", got=settings.max_events,
                          allowed=f"<= {most}, {TOLD_PER_THING} for each thing")  # fmt: skip
    seen = min(settings.max_events, EVENTS_PER_THING * settings.max_things)
    check(dataclasses.replace(settings, min_events=min(settings.min_events, seen), max_events=seen))
    if settings.ticks < 2 * settings.max_events / settings.max_things:
        raise ConfigError("the events do not fit into the time", key="texts.source.ticks", got=settings.ticks,
                          allowed=f">= {-(-2 * settings.max_events // settings.max_things)}")  # fmt: skip


def draw_script(chances: Chances, settings: ScriptSettings) -> Script:
    """Who does what and when; nobody has a place, so no clip can be made of it."""
    while True:
        num_events = chances.integer(settings.min_events, settings.max_events)
        fewest = max(settings.min_things, -(-num_events // EVENTS_PER_THING), -(-2 * num_events // settings.ticks))
        num_things = min(settings.max_things, fewest + int(chances.uniform() < 0.4))
        events = draw_timeline(chances, num_things, num_events, settings.ticks)
        if events is None:
            continue
        turning = {e.agent for e in events if e.action == "rotate"}
        things = []
        for i, colour in enumerate(chances.shuffled(COLOURS)[:num_things]):
            shape = chances.choice(ROTATABLE if i in turning else SHAPES)
            things.append(Thing(f"{colour} {shape}", colour, shape, chances.choice(SIZES)))
        ground = Background(chances.choice(TEXTURES), chances.choice(SHADES), 0.0, 0.0)
        return Script(tuple(things), (), events, ground, settings.ticks, 0)


class Sequences:
    """Endless sequences of lessons, each with its own lexicon: a verb that is new in one means something else in the next.

    Args:
        seed: of the world.
        num_lessons: fewest and most lessons of a sequence; the last one is the query.
        ticks, max_things, max_events: of a caption.
        ramp: training sequences over which captions become longer, from one event to max_events.
        new_share: share of the actions that return within a sequence whose verbs are new words.
        num_val: sequences to validate on.
    """

    def __init__(
        self,
        *,
        seed: int,
        num_lessons: tuple[int, int],
        ticks: PositiveInt,
        max_things: PositiveInt,
        max_events: PositiveInt,
        ramp: NonNegativeInt,
        new_share: Fraction,
        num_val: PositiveInt,
    ):
        low, high = num_lessons
        if not 1 <= low <= high:
            raise ConfigError("no number of lessons", key="texts.source.num_lessons", got=list(num_lessons),
                              allowed="1 <= fewest <= most")  # fmt: skip
        self.seed, self.num_lessons, self.new_share, self.ramp = seed, (low, high), new_share, ramp
        self.settings = ScriptSettings(ticks, 1, max_things, 1, max_events, 0.0)
        check_told(self.settings)
        self.sizes = {"train": None, "val": num_val}

    def item(self, split: str, index: int) -> dict[str, Any]:
        """Sequence `index`."""
        chances = Chances(np.random.default_rng([self.seed, ("train", "val").index(split), index]))
        settings = self.settings
        count = float(chances.integer(*self.num_lessons))
        if split == "train" and index < self.ramp:
            most = min(1 + index * settings.max_events // self.ramp, settings.max_events)
            count *= 2 - most / settings.max_events  # more of the short ones
            settings = dataclasses.replace(settings, max_events=most)
        scripts: list[Script] = []
        seen: Counter[str] = Counter()
        for place in range(round(count)):
            # First many actions, then the same ones again: were there few, guessing the most frequent would do.
            returns = 2 * place >= round(count)
            drawn = [draw_script(chances, settings) for _ in range(TRIES)]
            scripts.append(max(drawn, key=lambda script: _share(script, seen) if returns else -_share(script, seen)))
            seen.update({e.action for e in scripts[-1].events})
        # A word that is met once teaches nothing; a few of them show that some are never explained.
        new = [a for a in ACTIONS if chances.uniform() < (self.new_share if seen[a] > 1 else self.new_share / 5)]
        lexicon = dict(zip(new, nonsense(chances, len(new)), strict=True))
        lessons = [tell_lesson(script, chances, lexicon).to_json() for script in scripts]
        return {"key": f"{split}-{index}", "caption": lessons[-1]["caption"], "lessons": lessons}

    def fingerprint(self) -> dict[str, Any]:
        return {"sequences": self.seed, "lessons": self.num_lessons, "new": self.new_share, "ramp": self.ramp,
                "sizes": self.sizes, "script": vars(self.settings)}  # fmt: skip


def _share(script: Script, seen: Collection[str]) -> float:
    """How many of its events have an action that was seen."""
    return sum(e.action in seen for e in script.events) / len(script.events)


class NewVerbs:
    """Captions of a world in which the verbs of some actions are words of one fixed lexicon, and a pool that explains them.

    Every caption has a new verb. Captions of the pool are few and have any colours and shapes, so that the one with the
    most words in common is seldom the one with the verb.

    Args:
        seed: of lexicon, pool and captions.
        num_new: actions with new verbs.
        num_pool: candidates for demonstrations.
        num_train, num_val: captions with their plans.
        ticks, max_things, min_events, max_events: of a caption.
        pool_events: most events of a candidate.
    """

    def __init__(
        self,
        *,
        seed: int,
        num_new: PositiveInt,
        num_pool: PositiveInt,
        num_train: PositiveInt,
        num_val: PositiveInt,
        ticks: PositiveInt,
        max_things: PositiveInt,
        min_events: PositiveInt,
        max_events: PositiveInt,
        pool_events: PositiveInt,
    ):
        self.seed, self.num_pool = seed, num_pool
        self.settings = ScriptSettings(ticks, 1, max_things, min_events, max_events, 0.0)
        self.pool_settings = ScriptSettings(ticks, 1, max_things, 1, pool_events, 0.0)
        check_told(self.settings)
        check_told(self.pool_settings)
        self.sizes = {"train": num_train, "val": num_val}
        late, key = min(max_events, pool_events) > 1, "texts.source.num_new"
        self.lexicon = draw_lexicon(seed, num_new, things=max_things, late=late, key=key)

    def item(self, split: str, index: int) -> dict[str, Any]:
        """A caption of a split with its plan."""
        chances = Chances(np.random.default_rng([self.seed, ("train", "val").index(split), index]))
        return {"key": f"{split}-{index}", **self._with_new_verb(chances, self.settings, self.lexicon).to_json()}

    def pool(self) -> list[dict[str, Any]]:
        """Candidates, as `dysen.demonstrations` reads them: each new verb is shown about equally often."""
        chances = Chances(np.random.default_rng([self.seed, 8]))
        actions, found = list(self.lexicon), []
        for number in range(self.num_pool):
            one = {actions[number % len(actions)]: self.lexicon[actions[number % len(actions)]]}
            lesson = self._with_new_verb(chances, self.pool_settings, one).to_json()
            found.append({"id": f"pool-{number}", "caption": lesson["caption"], "plan": lesson["plan"]})
        return found

    def _with_new_verb(self, chances: Chances, settings: ScriptSettings, needed: Lexicon) -> Lesson:
        """A caption with at least one of the needed verbs; all new verbs may be in it."""
        while True:
            script = draw_script(chances, settings)
            if any(e.action in needed for e in script.events):
                return tell_lesson(script, chances, self.lexicon)

    def fingerprint(self) -> dict[str, Any]:
        return {"new verbs": self.seed, "lexicon": dict(self.lexicon), "pool": self.num_pool, "sizes": self.sizes,
                "script": vars(self.settings), "pool script": vars(self.pool_settings)}  # fmt: skip
