"""The tokens of the small language model: known words, and slots for all others.

A word that is not known takes a slot, chosen by its letters, for the length of one prompt: the same word in a demonstration
and in the query is the same token, and it means nothing else. So the model has to look up what a slot means, and learns to,
because in training the words of the slots are new in every sequence. Endings (-s, -ed, -ing) are kept beside a token, so
that "blicks" and "blicking" are one word in two forms.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from dysen.action_plan import Event, Plan
from vdm.errors import PlanError

# Their order is the order of token ids: a change makes older runs unreadable.
WORDS = """
a after afterwards again against all along also an and any appear approach around as at away background bar become before
beginning behind between big bigger blink blue both but chase checkered circle clip closer cloudy come contains contract
cross cyan dark diagonally disappear disc dotted down downward drift during earlier end exactly expand final finally
finished first flash flicker follow for from get getting glide go gone got gradient green grey grow grown happens has having
head hoop in into invisible is it keep kept large larger last later left leftward light little lower meanwhile medium-sized
mid-sized move next of off on once one only orange orbit over pale pink place plain purple red remain rest retreat revolve
right rightward ring rod rotate same scene see show shown shrink shrunk simultaneously slid slide small smaller soon spin
spinning spotted spun square start stay still striped that the then this time tiny to together towards trail travel
travelled travelling triangle turn turquoise up upper upward vanish very video view violet visible we when which while
yellow
move_left move_right move_up move_down move_up_left move_up_right move_down_left move_down_right leave
. ,
""".split()  # noqa: SIM905
PAD, CAPTION, PLAN, END, PART, STOP, UNKNOWN = range(7)  # STOP ends an event, PART begins its target
NUMBERS = 64  # ticks
ORDINALS = 64  # which event of its plan one is
FIRST_NUMBER = UNKNOWN + 1
SLOTS = 48
FIRST_ORDINAL = FIRST_NUMBER + NUMBERS
FIRST_SLOT = FIRST_ORDINAL + ORDINALS
FIRST_WORD = FIRST_SLOT + SLOTS
NUM_TOKENS = FIRST_WORD + len(WORDS)
IDS = {word: FIRST_WORD + i for i, word in enumerate(WORDS)}
ENDINGS = (("ing", 3), ("ed", 2), ("s", 1), ("es", 1))
NUM_FORMS = 4
TOKEN = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")


@dataclass
class Tokens:
    """Ids with their forms. `slots` remembers, for one prompt, which word stands in which slot."""

    ids: list[int] = field(default_factory=list)
    forms: list[int] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def mark(self, token: int) -> None:
        self.ids.append(token)
        self.forms.append(0)

    def words(self, text: str) -> dict[int, int]:
        """Which token begins at which letter."""
        places = {}
        for found in TOKEN.finditer(text.casefold()):
            token, form = self._token(found.group())
            places[found.start()] = len(self)
            self.ids.append(token)
            self.forms.append(form)
        return places

    def caption(self, text: str) -> dict[int, int]:
        self.mark(CAPTION)
        places = self.words(text)
        self.mark(PLAN)
        return places

    def plan(self, plan: Plan) -> list[int]:
        """agent ordinal predicate [PART target] start end STOP ... END; where each predicate begins.

        The ordinal of the event stands where its verb has to be found.
        """
        places = []
        for number, event in enumerate(plan.events):
            self.words(event.agent)
            self.mark(FIRST_ORDINAL + min(number, ORDINALS - 1))
            places.append(len(self))
            self.words(event.predicate)
            if event.target is not None:
                self.mark(PART)
                self.words(event.target)
            for time in (event.start, event.end):
                self.mark(FIRST_NUMBER + min(time, NUMBERS - 1))
            self.mark(STOP)
        self.mark(END)
        return places

    def _token(self, word: str) -> tuple[int, int]:
        if word in IDS:
            return IDS[word], 0
        if not word[0].isalnum():
            return UNKNOWN, 0
        stem, form = word, 0
        for ending, number in ENDINGS:
            if word.endswith(ending) and len(word) - len(ending) >= 2:
                cut = word.removesuffix(ending)
                known = next((IDS[base] for base in (cut, cut + "e") if base in IDS), None)
                if known is not None:
                    return known, number
                if not form and len(cut) >= 3:
                    stem, form = cut, number
        return self._slot(stem), form

    def _slot(self, stem: str) -> int:
        if stem not in self.slots:
            taken = set(self.slots.values())
            first = zlib.crc32(stem.encode("utf-8", "replace"))
            free = (FIRST_SLOT + (first + i) % SLOTS for i in range(SLOTS))
            token = next((token for token in free if token not in taken), None)
            if token is None:
                return UNKNOWN  # more unknown words than slots: these cannot be told apart
            self.slots[stem] = token
        return self.slots[stem]


def plan_of(ids: Sequence[int], slots: dict[str, int]) -> Plan | None:
    """The plan in an answer, without an event that is not complete; None where it has none."""
    names = {token: word for word, token in slots.items()} | {token: word for word, token in IDS.items()}
    events: dict[Event, None] = {}
    parts: list[list[str]] = [[]]
    times: list[int] = []
    for token in ids:
        if token == END:
            break
        if token == STOP:
            if 2 <= len(parts) <= 3 and all(parts) and len(times) == 2 and times[0] < times[1]:
                agent, predicate, *target = (" ".join(part) for part in parts)
                with contextlib.suppress(PlanError):  # a name far too long
                    events[Event(agent, predicate, target[0] if target else None, *times)] = None
            parts, times = [[]], []
        elif token == PART or FIRST_ORDINAL <= token < FIRST_SLOT:
            parts.append([])
        elif FIRST_NUMBER <= token < FIRST_ORDINAL:
            times.append(token - FIRST_NUMBER)
        elif token in names:
            parts[-1].append(names[token])
    return Plan(tuple(events)) if events else None
