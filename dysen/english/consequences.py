"""What stays when something has happened: the marks that an action leaves on who did it or to whom, for common verbs."""

from __future__ import annotations

from collections.abc import Iterable

from dysen.action_plan import Triplet

_LEFT: dict[str, tuple[str, ...]] = {  # mark -> verbs, as a whole predicate or its first word
    "gone": ("vanish", "disappear", "leave", "exit"),
    "in sight": ("appear", "arrive", "enter", "come into view"),
    "larger": ("grow", "expand"),
    "smaller": ("shrink", "contract"),
    "turned": ("rotate", "turn", "spin"),
    "farther left": ("move left", "move up left", "move down left"),
    "farther right": ("move right", "move up right", "move down right"),
    "higher": ("move up", "move up left", "move up right", "climb", "rise"),
    "lower": ("move down", "move down left", "move down right", "descend"),
    "open": ("open",),
    "closed": ("close", "shut"),
    "broken": ("break", "shatter"),
    "wet": ("wash", "swim", "dive"),
    "seated": ("sit", "sit down"),
    "upright": ("stand up", "get up"),
    "fallen": ("fall", "fall down", "trip"),
}
_OPPOSITES = [("gone", "in sight"), ("larger", "smaller"), ("open", "closed"), ("farther left", "farther right"),
              ("higher", "lower"), ("seated", "upright"), ("fallen", "upright")]  # fmt: skip
_DONE_TO = ("larger", "smaller", "turned", "open", "closed", "broken", "wet")  # who opens a door is not open
_DONE_BY = (
    "in sight",
    "higher",
    "lower",
    "seated",
    "upright",
    "fallen",
)  # with a target; who leaves another is still there
_UNDOES = {mark: {b if a == mark else a for a, b in _OPPOSITES if mark in (a, b)} for mark in _LEFT}


def marks_of(action: Triplet, name: str) -> list[str]:
    """What an action leaves on a thing."""
    found = marks(action.predicate)
    if action.object is None:
        return found if name == action.subject else []
    kept = {action.subject: _DONE_BY, action.object: _DONE_TO}.get(name, ())
    return [mark for mark in found if mark in kept]


def marks(predicate: str) -> list[str]:
    """What may stay of an action, whoever it was done by."""
    words = predicate.lower().replace("_", " ")
    found = [mark for mark, verbs in _LEFT.items() if words in verbs]
    first = words.partition(" ")[0]
    return found or [mark for mark, verbs in _LEFT.items() if first in verbs]


def marked(attributes: Iterable[str], fresh: Iterable[str]) -> tuple[str, ...]:
    """Attributes with marks that come new: each undoes its opposite."""
    found = dict.fromkeys(attributes)
    for mark in fresh:
        for undone in _UNDOES[mark]:
            found.pop(undone, None)
        found[mark] = None
    return tuple(found)
