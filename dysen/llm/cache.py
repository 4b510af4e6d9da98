"""Answers of language models on disk, by a hash of model, prompt and form of the answer: nothing is asked twice.

One sqlite file, so that millions of short answers take little room. Several processes may share it; what is damaged is
asked again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dysen.imagination import Question
from dysen.llm.base import Answer, LanguageModel
from dysen.llm.divided import Divided
from dysen.replies import Reply
from vdm.errors import RunError

FILE = "answers.sqlite"
WAIT_SECONDS = 120.0  # for other processes that write
AT_ONCE = 500  # keys in one look-up: sqlite has a limit
TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, content TEXT, checksum TEXT) WITHOUT ROWID"

log = logging.getLogger(__name__)


def cached(llm: LanguageModel, folder: str | None) -> LanguageModel:
    """The model with its answers kept in `folder`; the model itself where that would not pay."""
    if isinstance(llm, Divided):
        return Divided(plans=cached(llm.plans, folder), scenes=cached(llm.scenes, folder))
    return Cached(llm=llm, folder=folder) if folder is not None and llm.worth_caching else llm


class Cached(LanguageModel):
    """Answers from the cache where it has them, and asks `llm` for the others. Errors are never kept."""

    def __init__(self, *, llm: LanguageModel, folder: str):
        self.llm, self.answers = llm, AnswerFile(folder)
        self._identity = json.dumps(llm.fingerprint(), sort_keys=True)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        keys = [self._key(question) for question in questions]
        known = self.answers.read(keys)
        missing = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}
        if missing:
            fresh = dict(zip(missing, self.llm.answer(list(missing.values())), strict=True))
            self.answers.write({key: answer for key, answer in fresh.items() if answer.error is None})
            known |= fresh
        return [known[key] for key in keys]

    def fingerprint(self) -> dict[str, Any]:
        return self.llm.fingerprint()

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float | None:
        return self.llm.cost(prompt_tokens, answer_tokens)

    def close(self) -> None:
        self.answers.close()
        self.llm.close()

    def _key(self, question: Question) -> str:
        return _digest(self._identity, question.prompt, _schema(question.reply))


class AnswerFile:
    """Key -> answer in a sqlite file. Every process, and every process that is forked from one, opens it for itself."""

    def __init__(self, folder: str):
        self.path = Path(folder) / FILE
        self._connection: sqlite3.Connection | None = None
        self._owner = 0

    def read(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers that are there and whole."""
        wanted, found = list(dict.fromkeys(keys)), {}
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            marks = ",".join("?" * len(part))
            rows = self._do(lambda db, part=part, marks=marks: db.execute(
                f"SELECT key, content, checksum FROM answers WHERE key IN ({marks})", part).fetchall())  # fmt: skip
            for key, content, checksum in rows:
                if (answer := _read(key, content, checksum)) is not None:
                    found[key] = answer
        return found

    def write(self, answers: dict[str, Answer]) -> None:
        """All of them or, where the process ends on the way, none."""
        rows = []
        for key, answer in answers.items():
            content = json.dumps([answer.text, answer.prompt_tokens, answer.answer_tokens])
            rows.append((key, content, _digest(key, content)))

        def insert(db: sqlite3.Connection) -> None:
            with db:
                db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

        if rows:
            self._do(insert)

    def close(self) -> None:
        if self._connection is not None and self._owner == os.getpid():
            self._connection.close()
        self._connection = None

    def _do(self, action: Any) -> Any:
        """Runs it, and once more on a new file where the old one turns out to be damaged."""
        try:
            try:
                return action(self._open())
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self.close()
                aside = self.path.with_name(f"{FILE}.damaged-{os.getpid()}")
                log.warning("%s is damaged (%s); it is kept as %s and begun anew", self.path, error, aside.name)
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    self.path.replace(aside)
                return action(self._open())
        except (sqlite3.Error, OSError) as error:
            self.close()
            remedy = "make room or set paths.answers=<a folder on a local disk>; null goes without a cache"
            what = "the cache of answers cannot be used"
            raise RunError(what, key="paths.answers", got=f"{self.path}: {error}", remedy=remedy) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._owner != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=WAIT_SECONDS, check_same_thread=False)
            self._owner = os.getpid()
            self._connection.execute(TABLE)
        return self._connection


@functools.cache
def _schema(reply: type[Reply]) -> str:
    return json.dumps(reply.model_json_schema(), sort_keys=True)


def _read(key: str, content: object, checksum: object) -> Answer | None:
    if not isinstance(content, str) or checksum != _digest(key, content):
        return None
    text, prompt_tokens, answer_tokens = json.loads(content)
    return replace(Answer(text, prompt_tokens, answer_tokens), cached=True)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
