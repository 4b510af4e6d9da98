"""Keys, tokens and passwords stay out of everything that is written: run folders, logs, what a logger records of the command.

A secret is what stands in an environment variable, or behind a setting, whose name says so, and the password in a URL. Secrets
belong into the environment; one that was typed is put there before anybody else reads the command.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from typing import Any

HIDDEN = "***"
_ENDS = r"(?:api_?key|secret|token|passwd|password|credentials?|access_?key(?:_?id)?|secret_?key)"
SETTING = re.compile(rf"(?i)(?<![A-Za-z0-9])({_ENDS}['\"]?\s*[=:]\s*)(['\"]?)([^\s,\]}}'\"]+)")
VARIABLE = re.compile(r"(?i)(key|token|secret|passw(or)?d|credentials?)(_id)?$")
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/@\s'\"]*:[^/@\s'\"]+@")
PLAIN = re.compile(r"(?i)^(null|none|true|false|\*\*\*|\$\{.*)$")  # values that tell nothing
SHORTEST = 8  # letters of a variable's value that is looked for in texts
GIVEN = (
    "VDM_GIVEN_{}"  # the environment variable of what was typed: a URL, or, with _TOKEN behind it, a secret as a whole
)


def redact(text: str) -> str:
    """The text without secrets."""
    for value in _of_environment():
        text = text.replace(value, HIDDEN)
    text = URL.sub(rf"\1{HIDDEN}@", text)
    return SETTING.sub(lambda m: m[0] if PLAIN.match(m[3]) else m[1] + m[2] + HIDDEN, text)


def put_away(words: list[str]) -> list[str]:
    """The words of a command, in which each value with a secret has become a reference to an environment variable."""
    kept = []
    for number, word in enumerate(words):
        key, equals, value = word.partition("=")
        if equals and redact(word) != word and "${" not in value:
            name = GIVEN.format(number) + ("" if URL.search(value) else "_TOKEN")
            os.environ[name] = value.strip("'\"")
            word = f"{key}=${{oc.env:{name}}}"
        kept.append(word)
    return kept


class Redacting(logging.Formatter):
    """Around another formatter, so that what an exception says is covered as well."""

    def __init__(self, inner: logging.Formatter):
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return redact(self.inner.format(record))


def say_no_secrets() -> None:
    """What ends the program is said without them."""

    def hook(kind: Any, error: BaseException, trace: Any) -> None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = hook


def _of_environment() -> list[str]:
    """The longest first: one may be a part of another."""
    found = {
        value
        for name, value in os.environ.items()
        if VARIABLE.search(name) and len(value) >= SHORTEST and "/" not in value[:1]
    }
    return sorted(found, key=len, reverse=True)
