"""Clauses: who is called what, and which verb form says what they do. Keeps track of what a reader already knows."""

from __future__ import annotations

from data.shapes.phrases import Pattern, Slot
from data.shapes.script import Event, Script
from data.shapes.timeline import Chances
from data.shapes.words import (
    COLOUR_WORDS,
    GROUNDS,
    INTRODUCTIONS,
    RETOLD,
    SHADE_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    SUBJECTLESS,
    TEXTURE_WORDS,
    VERB_PHRASES,
)

# A mention of thing i is wrapped as OPEN, chr(BASE + i), words, CLOSE until the caption is complete.
OPEN, CLOSE, BASE = "\x01", "\x02", ord("0")

SIZED, DEFINITE = 0.5, 0.4  # share of things with a size word; of captions that say "the" from the start
PRONOUN, SHORT = 0.8, 0.5  # share of later mentions, where unambiguous, that are "it", or "the square"


def with_article(noun_phrase: str) -> str:
    return ("an " if noun_phrase[0] in "aeiou" else "a ") + noun_phrase


class Speaker:
    """Tells the events of one script, one clause at a time."""

    def __init__(self, script: Script, chances: Chances):
        self._script, self._chances = script, chances
        things = script.things
        # One word for one thing in the whole caption: a disc that becomes a circle reads like another object.
        sizes = {size: chances.choice(words) for size, words in SIZE_WORDS.items()}
        colours = {colour: chances.choice(words) for colour, words in COLOUR_WORDS.items()}
        shapes = {shape: chances.choice(words) for shape, words in SHAPE_WORDS.items()}
        looks = [(thing.colour, thing.shape) for thing in things]
        self._first, self._long, self._short = [], [], []  # names: at the first mention, and the choices later
        for thing in things:
            plain = f"{colours[thing.colour]} {shapes[thing.shape]}"
            sized = f"{sizes[thing.size]} {plain}"
            unique = sized if looks.count((thing.colour, thing.shape)) > 1 else plain
            self._first.append(sized if chances.uniform() < SIZED else unique)
            self._long.append(f"the {unique}")
            if [other.shape for other in things].count(thing.shape) == 1:
                self._short.append(f"the {shapes[thing.shape]}")
            elif [other.colour for other in things].count(thing.colour) == 1:
                self._short.append(f"the {colours[thing.colour]} one")
            else:
                self._short.append(f"the {unique}")
        self._definite = chances.uniform() < DEFINITE
        self._mentioned: set[int] = set()
        self._here: set[int] = set()  # mentioned in this sentence
        self._before: set[int] = set()  # mentioned in the sentence before
        self._wording: dict[int, int] = {}  # which of its phrases an event was told with
        self.told: list[int] = []  # events in text order

    def begin_sentence(self) -> None:
        self._before, self._here = self._here, set()

    def introduce(self) -> str:
        """A sentence that names all things, and sometimes the background."""
        self.begin_sentence()
        names = [self._mention(i, with_article(name)) for i, name in enumerate(self._first)]
        listed = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
        sentence = f"{self._chances.choice(INTRODUCTIONS)} {listed}"
        if self._chances.uniform() < 0.5:
            ground = self._script.background
            shade = self._chances.choice(SHADE_WORDS[ground.shade])
            texture = self._chances.choice(TEXTURE_WORDS[ground.texture])
            sentence += f" {self._chances.choice(GROUNDS)} {shade} {texture} background"
        return sentence

    def say(self, pattern: Pattern, events: dict[str, tuple[int, ...]], units: dict[str, Pattern]) -> str:
        """Fill a pattern; `events` holds one event for each letter, or two and then `units` says how to tell them."""
        agents = {letter: self._script.events[inner[0]].agent for letter, inner in events.items()}
        # "Before it grows, the square moves": a pronoun may come first only where nothing else could be meant.
        alone = len(set(agents.values())) == 1 and all(
            len(inner) == 1 and self._script.events[inner[0]].target is None for inner in events.values()
        )
        forward = alone and pattern.conjunction and not self._mentioned and not pattern.one_agent
        text = ""
        for part in pattern.parts:
            if not isinstance(part, Slot):
                text += part
            elif part.letter in units:
                a, b = events[part.letter]
                text += self.say(units[part.letter], {"A": (a,), "B": (b,)}, {})
            else:
                text += self._clause(events[part.letter][0], part.form, forward)
                forward = False
        return text

    def _clause(self, number: int, form: str, forward: bool) -> str:
        event = self._script.events[number]
        if form == "subject":  # the verb comes with the last of several subjects
            self.told.append(number)
            return self._refer(event.agent, pronoun=False)
        subject, is_joint = "", form in ("base", "both")
        if forward and self._chances.uniform() < PRONOUN:
            subject = self._mention(event.agent, "it", known=False)
        elif form not in SUBJECTLESS:
            clear = not is_joint and form not in RETOLD
            subject = self._refer(event.agent, pronoun=clear, fresh=event.action == "appear")
        words = self._verb(number, form)
        if form not in RETOLD:
            if not is_joint and self._is_repeated(event):
                words += " again"
            self.told.append(number)
        if event.target is not None:
            clear = bool(subject) and subject[2:4] != "it" and not is_joint
            words = words.replace("{T}", self._refer(event.target, pronoun=clear, beside=event.agent))
        return f"{subject} {words}" if subject else words

    def _verb(self, number: int, form: str) -> str:
        """A retold event keeps its verb, so that it is recognised."""
        phrases = VERB_PHRASES[self._script.events[number].action, form]
        if form in RETOLD and self._wording.get(number, 0) < len(phrases):
            return phrases[self._wording.get(number, 0)]
        words = self._chances.choice(phrases)
        self._wording[number] = phrases.index(words)
        return words

    def _is_repeated(self, event: Event) -> bool:
        earlier = [self._script.events[number] for number in self.told]
        act = (event.agent, event.action, event.target)
        return any((e.agent, e.action, e.target) == act and e.start < event.start for e in earlier)

    def _refer(self, thing: int, pronoun: bool, fresh: bool = False, beside: int | None = None) -> str:
        """A name that is surely understood. `beside` is the subject of the clause, when that is not meant.

        "It" is the only other thing in the sentence so far or, if there is none, the only one in the sentence before.
        """
        if thing not in self._mentioned:
            name = self._first[thing]
            return self._mention(thing, with_article(name) if fresh or not self._definite else f"the {name}")
        others = (self._here - {beside}) or self._before
        if pronoun and others == {thing} and self._chances.uniform() < PRONOUN:
            return self._mention(thing, "it")
        return self._mention(thing, self._short[thing] if self._chances.uniform() < SHORT else self._long[thing])

    def _mention(self, thing: int, words: str, known: bool = True) -> str:
        if known:
            self._mentioned.add(thing)
            self._here.add(thing)
        return f"{OPEN}{chr(BASE + thing)}{words}{CLOSE}"
