"""Errors a user can mend: one message with what, got, allowed, key and remedy. They leave the program with exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something outside the code is wrong. Entry points print the message, without a traceback, and exit with 2."""

    def __init__(self, what: str, *, key: str = "", got: object = None, allowed: object = None, remedy: str = ""):
        self.what, self.key, self.got, self.allowed, self.remedy = what, key, got, allowed, remedy
        parts = [what]
        if key:
            parts.append(f"  key:     {key}")
        if got is not None:
            parts.append(f"  got:     {got}")
        if allowed is not None:
            is_list = isinstance(allowed, Iterable) and not isinstance(allowed, str)
            parts.append(f"  allowed: {', '.join(map(str, allowed)) if is_list else allowed}")
        if remedy:
            parts.append(f"  remedy:  {remedy}")
        super().__init__("\n".join(parts))

    def __reduce__(self):
        # Keyword-only fields do not survive the default pickling, and loader workers send these between processes.
        state = {name: getattr(self, name) for name in ("key", "got", "allowed", "remedy")}
        return _rebuild, (type(self), self.what, state)


class ConfigError(UserError):
    """A setting, or two settings that do not fit each other."""


class DataError(UserError):
    """Data that is missing, unreadable, or not what its index says."""


class RunError(UserError):
    """A run folder or a checkpoint that is missing, incomplete or foreign."""


class PlanError(UserError):
    """A plan or a scene graph that is not one, often because a language model's answer could not be read."""


def _rebuild(cls: type[UserError], what: str, state: dict) -> UserError:
    return cls(what, **state)


def suggest(name: str, known: Iterable[str]) -> str:
    """'Did you mean ...?' for a misspelt name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else ""
