"""The sentence patterns of the captions, read by the writer and by the parser.

A pattern is a sentence with slots. The letter of a slot says when its event happens: W, X, Y, Z come one after the
other, in alphabetical order, whatever their order in the text; any other letter overlaps all others in time. So
"{Y} after {X}" is a pattern whose text order is not the time order, and what a pattern claims is read off its letters.
What follows the colon is the form of the clause; `+` lets the slot hold two simultaneous events.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from data.shapes.words import RETOLD, SUBJECTLESS


@dataclass(frozen=True)
class Slot:
    letter: str
    form: str
    wide: bool  # may hold two simultaneous events


@dataclass(frozen=True)
class Pattern:
    """A sentence with slots, and what can be read off it."""

    text: str
    parts: tuple[str | Slot, ...]
    slots: tuple[Slot, ...]
    letters: tuple[str, ...]  # in text order, without those told before
    chronological: bool  # text order of W, X, Y, Z is their time order
    one_agent: bool  # some clause borrows its subject from another
    one_action: bool  # one verb for several subjects
    exact: bool  # says more than that events follow or overlap each other
    successive: str  # the relation between neighbours in time: before, or meets
    simultaneous: str  # the relation between simultaneous events: overlap, or equal
    opening: bool  # says that it is the beginning of all
    closing: bool  # says that it is the end of all
    conjunction: bool  # starts with one
    is_loose: bool  # the last in time is in a side clause, so that "then" could follow something earlier


SEQUENCE_LETTERS = "WXYZ"


def pattern(text: str) -> Pattern:
    """Read a pattern."""
    assert "as soon as" not in text or len(re.findall("{[W-Z]", text)) == 2, "which two meet is not said"
    parts: list[str | Slot] = []
    for literal, letter, form, wide in re.findall(r"([^{}]+)|\{([A-Z])(?::([a-z]+))?(\+?)\}", text):
        parts.append(literal if literal else Slot(letter, form or "now", bool(wide)))
    slots = [part for part in parts if isinstance(part, Slot)]
    sequence = [slot.letter for slot in slots if slot.letter in SEQUENCE_LETTERS]
    return Pattern(
        text=text,
        parts=tuple(parts),
        slots=tuple(slots),
        letters=tuple(slot.letter for slot in slots if slot.form not in RETOLD),
        chronological=sequence == sorted(sequence),
        one_agent=any(slot.form in SUBJECTLESS for slot in slots),
        one_action=any(slot.form in ("base", "both") for slot in slots),
        exact="as soon as" in text or "exactly" in text,
        successive="meets" if "as soon as" in text else "before",
        simultaneous="equal" if "exactly" in text else "overlap",
        opening=text.startswith("first "),
        closing="finally" in text,
        conjunction=text.startswith(("after ", "before ", "once ", "as ", "while ")),
        is_loose=sequence != sorted(sequence) or bool(re.search("before {[^{]*$", text)),
    )


def patterns(*texts: str) -> tuple[Pattern, ...]:
    return tuple(pattern(text) for text in texts)


# Two simultaneous events, without a comma: these fit into wide slots.
UNITS = patterns(
    "{A} while {B}",
    "{A} while {B:going}",
    "{A} as {B}",
    "{A} and {B} at the same time",
    "{A} and {B} at exactly the same time",
    "{A} while {B:ing}",
    "{A} and {B:verb} at the same time",
    "{A:subject} and {B:both} at the same time",
    "{A:subject} and {B:base} together",
    "{A:subject} and {B:base} simultaneously",
)
PAIRS = UNITS + patterns(
    "while {A}, {B}",
    "while {A:going}, {B}",
    "as {A}, {B}",
    "{A}, and meanwhile {B}",
    "{A}, and at the same time {B}",
    "{A} at the same time as {B}",
    "while {A:ing}, {B}",
)
ONE = patterns("{X+}")
TWO = patterns(
    "{X+}, then {Y+}",
    "{X} and then {Y}",
    "{X+}, and then {Y+}",
    "{X+}, and after that {Y+}",
    "{X+}, after which {Y}",
    "{X} before {Y}",
    "after {X+}, {Y+}",
    "after {X:perfect}, {Y+}",
    "once {X:perfect}, {Y+}",
    "as soon as {X:perfect}, {Y+}",
    "first {X+}, then {Y+}",
    "first {X}, and then {Y+}",
    "{X} and then {Y:verb}",
    "{X}, then {Y:verb}",
    "{X} before {Y:ing}",
    "after {X:ing}, {Y}",
    "having {X:having}, {Y}",
    "before {Y}, {X+}",
    "{Y} after {X}",
    "{Y} after {X:perfect}",
    "{Y} once {X:perfect}",
    "{Y} as soon as {X:perfect}",
    "{Y} only after {X:perfect}",
    "{Y+}, but only after {X}",
    "{Y+}, but only once {X:perfect}",
    "{Y+}, but first {X+}",
    "{Y+}, but before that {X+}",
    "before {Y:ing}, {X}",
    "{Y} after {X:ing}",
)
THREE = patterns(
    "{X+}, then {Y+}, and then {Z+}",
    "{X+}, then {Y+}, and after that {Z+}",
    "{X+}, then {Y+}, and finally {Z+}",
    "first {X+}, then {Y+}, and then {Z+}",
    "first {X+}, then {Y+}, and finally {Z+}",
    "after {X+}, {Y+}, and then {Z+}",
    "after {X} and then {Y}, {Z+}",
    "once {X:perfect}, {Y+}, and after that {Z+}",
    "once {X:perfect}, {Y+}, and finally {Z+}",
    "{X} before {Y}, and finally {Z+}",
    "{X}, then {Y:verb}, and then {Z:verb}",
    "{X}, {Y:verb}, and finally {Z:verb}",
    "{Y} after {X} and before {Z}",
    "{Y} after {X}, and then {Z+}",
    "{Y} after {X}, and finally {Z+}",
    "{Y} once {X:perfect}, and then {Z+}",
    "after {X} and before {Z}, {Y+}",
    "before {Z}, first {X+} and then {Y+}",
    "{Y+}, but first {X+}, and finally {Z+}",
    "after {X:ing} and before {Z:ing}, {Y}",
)
SEQUENCES = {1: ONE, 2: TWO, 3: THREE}

# Events that are all simultaneous.
CLIQUES = {
    3: patterns(
        "{A}, {B} and {C}, all at the same time",
        "all at the same time, {A}, {B} and {C}",
        "while {A}, {B} and {C} at the same time",
        "{A:subject}, {B:subject} and {C:base} at the same time",
        "{A:subject}, {B:subject} and {C:base} together",
    )
} | {
    count: patterns(
        ", ".join(f"{{{letter}}}" for letter in "ABCDEFGHI"[: count - 1])
        + f" and {{{'ABCDEFGHI'[count - 1]}}}, all at the same time"
    )
    for count in range(4, 10)
}
# One or two long events (H, I) around a sequence.
HOSTS = {
    (1, 2): patterns(
        "while {H}, first {X+} and then {Y+}",
        "while {H:going}, first {X+} and then {Y+}",
        "as {H}, first {X+} and then {Y+}",
        "{H} while first {X+} and then {Y+}",
        "first {X+} and then {Y+}, all while {H}",
        "{X} before {Y}, all while {H}",
        "{Y} after {X}, all while {H}",
        "{Y} once {X:perfect}, all while {H:going}",
    ),
    (1, 3): patterns(
        "while {H}, first {X+}, then {Y+} and then {Z+}",
        "while {H:going}, first {X+}, then {Y+} and then {Z+}",
        "first {X+}, then {Y+} and then {Z+}, all while {H}",
        "{Y} after {X} and before {Z}, all while {H}",
    ),
    (1, 4): patterns("while {H}, first {W+}, then {X+}, then {Y+} and then {Z+}"),
    (2, 2): patterns(
        "while {H} and {I} at the same time, first {X+} and then {Y+}",
        "first {X+} and then {Y+}, all while {H} and {I} at the same time",
        "{Y} after {X}, all while {H} and {I} at the same time",
    ),
}


def _joined(letters: str, form: str) -> str:
    slots = [f"{{{letter}:{form}}}" for letter in letters]
    return " and ".join([", ".join(slots[:-1]), slots[-1]]) if len(slots) > 1 else slots[0]


def _continuation(num_done: int, num_going: int, length: int) -> tuple[Pattern, ...]:
    done = f"once {_joined('OPQR'[:num_done], 'done')}" if num_done else ""
    going = f"while {_joined('GKLMN'[:num_going], 'still')}" if num_going else ""
    told = "{X+}" if length == 1 else "first {X+} and then {Y+}"
    texts = [f"{' but '.join(filter(None, (done, going)))}, {told}"]
    if length == 1 and not done:
        texts.append(f"{{X}} {going}")
    return patterns(*texts)


# What comes after some events told before (done) and during others (going): (done, going, length of the sequence).
CONTINUATIONS = {
    (done, going, length): _continuation(done, going, length)
    for done in range(5)
    for going in range(6)
    for length in (1, 2)
    if done or going
}

# Words before a sentence, and where they put it in time. "single": only before a sentence about one time.
MARKERS = {
    "next": ("then", "then,", "after that,", "next,", "afterwards,", "later on,"),  # after the sentence before
    "next_all": ("after all of this,", "after all that,", "when all of this is over,"),  # the same, where order turned
    "prior": ("before that,", "before this,", "earlier,"),  # before the sentence before
    "prior_all": ("before all of this,", "before any of this happens,"),  # before everything said so far
    "first": ("at first,", "in the beginning,", "at the start,", "at the very beginning,"),  # before everything else
    "first_single": ("first,", "first of all,"),
    "last": ("at the end,", "in the end,", "at the very end,"),  # after everything else
    "last_single": ("finally,", "last of all,"),
    "between": ("in between,",),
    "meanwhile": ("meanwhile,", "at the same time,", "during this,"),  # together with the sentence before
}
