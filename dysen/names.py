"""Names of objects, predicates and attributes: what a valid one looks like, and when two spellings mean one object.

A name is the identity of an object in every graph of a clip. Two objects of one kind are told apart by a number at the
end, "person #2", which is not part of the label that an encoder reads.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from vdm.errors import PlanError

MAX_NAME = 80
NUMBER = re.compile(r" #\d{1,6}$")
ARTICLE = re.compile(r"^(?:a|an|the)\s+(?=\S)")
# Characters that turn the reading direction of the text after them, and two that no XML may hold.
UNWANTED = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\ufffe\uffff")


def clean(text: str) -> str:
    """One line in one Unicode form: no control characters, no lone surrogates, single spaces."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(" " if c.isspace() else c for c in text if _is_wanted(c))
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def _is_wanted(character: str) -> bool:
    return character.isspace() or (unicodedata.category(character) not in ("Cc", "Cs") and character not in UNWANTED)


@functools.lru_cache(maxsize=8192)
def _is_clean(name: str) -> bool:
    return clean(name) == name


def check_name(name: object, what: str) -> None:
    """A `PlanError` unless this is a clean, non-empty name of bounded length."""
    if not isinstance(name, str):
        raise PlanError(f"{what} is not a text", got=shorten(repr(name)))
    if not name or len(name) > MAX_NAME:
        raise PlanError(f"{what} has no valid length", got=shorten(name), allowed=f"1 to {MAX_NAME} characters")
    if not _is_clean(name):
        allowed = "one line, single spaces, no control characters"
        raise PlanError(f"{what} is not a clean text", got=shorten(ascii(name)), allowed=allowed)


def identity(name: str) -> str:
    """The same for all spellings of one object: "The Lady" and "lady"."""
    key = name.casefold()
    return ARTICLE.sub("", key)


def label(name: str) -> str:
    """The name without the number that tells it from others of its kind."""
    return NUMBER.sub("", name)


def shorten(text: str, limit: int = 160) -> str:
    """The text on one line, its middle left out where it is long."""
    if len(text) > 4 * limit:
        text = f"{text[: 2 * limit]} {text[-2 * limit :]}"
    line = clean(text)
    if len(line) <= limit:
        return line
    half = (limit - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"
